"""Landlock: rules that a process lays on itself, and that what descends from it cannot lift (landlock(7)).

A ruleset is a descriptor, made once; ``confine.prepare_landlock_restrict_self`` puts a process into a domain of its
own that obeys it. Processes of one domain may trace and signal each other, so each guest gets one. What a kernel
claims by its version of the interface is not always what it does, as vendors take over a part of it: what matters
is probed by its effect.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from gwsandbox.linux import confine

# include/uapi/linux/landlock.h
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV, RESOLVE_UNIX = (1 << bit for bit in range(13, 17))
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1 << 0, 1 << 1
_VERSION = 1 << 0  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1
_PATH_RULE = struct.Struct("=Qi")  # struct landlock_path_beneath_attr, packed
_ALL_WORDS = struct.Struct("=QQQ")  # struct landlock_ruleset_attr: files, network, scopes

READ = EXECUTE | READ_FILE | READ_DIR
WRITE = (
    WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER
)
DEVICES = MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV | RESOLVE_UNIX

# The version of the interface that brought them. The first is Linux 5.13, 6 is Linux 6.12, 10 is Linux 7.2.
_FIRST = MAKE_SYM * 2 - 1
_SINCE = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV, 9: RESOLVE_UNIX}
NETWORK_SINCE, SCOPES_SINCE = 4, 6

_NOT_OBEYED = 1 << 7  # beside the errno, in the exit code of a child that tries

# By permissions or Landlock, by a read-only mount, or as there is nothing (any more).
_REFUSALS = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOENT, errno.ECONNREFUSED}


def version() -> int:
    """The version of the interface that the kernel claims; 0 where it has none."""
    return 0 if why_none() else confine.landlock_create_ruleset(b"", _VERSION)


def why_none() -> str | None:
    """Why there is no Landlock here; ``None`` where there is."""
    try:
        confine.landlock_create_ruleset(b"", _VERSION)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return "the kernel has no Landlock, which came with Linux 5.13"
        if error.errno == errno.EOPNOTSUPP:
            return "Landlock is off; add landlock to lsm= of the kernel's command line"
        return f"Landlock cannot be asked for: {error}"
    return None


def file_rights(of_version: int) -> int:
    """The rights over files that a version of the interface knows; a ruleset with others is refused."""
    return _FIRST | sum(rights for since, rights in _SINCE.items() if since <= of_version) if of_version else 0


def make_ruleset(rules: Mapping[str, int], *, files: int = 0, network: int = 0, scopes: int = 0) -> int:
    """A ruleset, as a descriptor.

    Args:
        rules: For each path, the rights over files that are given at and below it. Links are not followed, and what
            is not there is left out.
        files: Rights over files that are taken where no rule gives them.
        network: Rights over the network that are taken.
        scopes: What is confined to the domain and those in it.

    Raises:
        OSError: The kernel has no Landlock, or does not know one of these.
    """
    words = _ALL_WORDS.pack(files, network, scopes)
    # The kernel before a part was added takes more only where that is 0; one word at least is always there.
    ruleset = confine.landlock_create_ruleset(words[: 8 * (3 if scopes else 2 if network else 1)], 0)
    try:
        for path, rights in rules.items():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                _give(ruleset, path, rights)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _give(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        kind = os.fstat(fd).st_mode
        given = rights if stat.S_ISDIR(kind) else rights & _OF_FILES
        if given and not stat.S_ISLNK(kind):
            confine.landlock_add_rule(ruleset, _PATH_BENEATH, _PATH_RULE.pack(given, fd))
    finally:
        os.close(fd)


def all_but(excluded: Collection[str], top: str = "/") -> Iterator[str]:
    """Paths that together are everything below ``top`` but those excluded: Landlock knows no exceptions.

    What is made later in a folder that holds an excluded one is not among them.
    """
    try:
        names = os.listdir(top)
    except OSError:
        return
    for name in names:
        path = os.path.join(top, name)
        if path in excluded:
            continue
        if any(other.startswith(f"{path}/") for other in excluded) and not os.path.islink(path):
            yield from all_but(excluded, path)
        else:
            yield path


def refused(ruleset: int, attempts: Sequence[Callable[[], object]]) -> list[bool]:
    """Which attempts (seven at most) are refused to a child of this process that obeys ``ruleset``, or none if -1.

    Raises:
        OSError: It cannot be obeyed.
    """
    call = confine.prepare_landlock_restrict_self(ruleset) if ruleset >= 0 else None
    pid = os.fork()
    if pid == 0:
        code = _NOT_OBEYED
        try:
            if call is not None:
                confine.no_new_privs()
                confine.apply(call, "landlock_restrict_self")
            code = sum(_is_refused(attempt) << place for place, attempt in enumerate(attempts))
        except OSError as error:
            code |= error.errno or 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not 0 <= code < _NOT_OBEYED:
        number = code - _NOT_OBEYED if code > _NOT_OBEYED else errno.EINVAL
        raise OSError(number, f"landlock_restrict_self: a ruleset cannot be obeyed: {os.strerror(number)}")
    return [bool(code >> place & 1) for place in range(len(attempts))]


def _is_refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError as error:
        return error.errno in _REFUSALS
    return False
