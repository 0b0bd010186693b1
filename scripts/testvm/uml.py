"""The command line that boots an image under User-mode Linux, and the host's end of its serial line.

The serial line is two named pipes in the machine's folder. The kernel holds both open for reading and writing, so a
host may come and go, and reads an end of file when the kernel has ended.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from testvm import recipe
from testvm.boot import SHARED, Boot
from testvm.shared_folder import NAME_BYTES, HostEnd
from testvm.wire import Channel, Disconnected

TO_AGENT = "to-agent"
FROM_AGENT = "from-agent"

# Of the LSMs that Debian builds in, only yama takes part: systemd takes seconds to load the policies of the others.
KERNEL_WORDS = (
    "root=/dev/ubda rw con=null con0=null,fd:1 console=tty0 quiet loglevel=3 panic=-1 seccomp=on lsm=yama "
    "systemd.show_status=0 systemd.wants=gwsandbox-agent-uml.service systemd.mask=gwsandbox-agent.service "
    "systemd.mask=systemd-udev-trigger.service"
)


def command(boot: Boot, folder: Path, line: tuple[int, int]) -> list[str]:
    """The command line of a machine that lives in a folder.

    Args:
        boot: What to start.
        folder: Gets what is written to the disk; the agent's program is in it, and the machine can mount it.
        line: The descriptors of the pipes to the agent and from it.
    """
    libraries = boot.image.uml / recipe.UML_LIBRARIES
    loader = libraries / "ld-linux-x86-64.so.2"
    namespace = ["unshare", "--pid", "--fork", "--kill-child", *([] if os.geteuid() == 0 else ["--map-current-user"])]
    return [
        # The program finds its loader at this descriptor; see recipe.UML_LOADER.
        *("sh", "-c", f'exec {recipe.UML_LOADER_FD}<"$0" && exec "$@"', str(loader)),
        # The kernel's processes are traced children, which a kill of the tracer alone would set free on the host.
        *(*namespace, "env", f"LD_LIBRARY_PATH={libraries}", str(boot.image.uml / recipe.UML_PROGRAM)),
        *(*KERNEL_WORDS.split(), *boot.append.split(), f"mem={boot.memory}"),
        # The s in ubdas: without it the image would be locked, and no other machine could read it.
        *(f"ubdas={folder / 'written'},{boot.image.disk}", f"uml_dir={folder}", f"umid={folder.name}"),
        *(f"hostfs={folder / SHARED}", f"ssl0=fd:{line[0]},fd:{line[1]}"),
    ]


def environment() -> dict[str, str]:
    """Where the kernel keeps the machine's memory: in a file, which must be on a tmpfs for speed."""
    folder = "/dev/shm"  # noqa: S108 - the kernel removes the file as soon as it has opened it
    return {"TMPDIR": folder if os.access(folder, os.W_OK) else tempfile.gettempdir()}


@contextlib.contextmanager
def pipes(folder: Path) -> Iterator[tuple[int, int]]:
    """Make both pipes, and hold them open for the machine to inherit."""
    line = []
    try:
        for name in (TO_AGENT, FROM_AGENT):
            (folder / name).unlink(missing_ok=True)
            os.mkfifo(folder / name, 0o600)
            line.append(os.open(folder / name, os.O_RDWR | os.O_CLOEXEC))
        yield line[0], line[1]
    finally:
        for fd in line:
            os.close(fd)


@contextlib.contextmanager
def connected(folder: Path) -> Iterator[Channel]:
    """The host's end. Any byte ends the command of a host that leaves in the middle of it.

    Raises:
        Disconnected: The machine is not up.
    """
    with contextlib.ExitStack() as stack:
        reader = open_end(folder / FROM_AGENT, os.O_RDONLY, stack)
        writer = open_end(folder / TO_AGENT, os.O_WRONLY, stack)
        try:
            yield HostEnd(reader, writer, folder / SHARED)
        except BaseException:
            with contextlib.suppress(OSError):
                os.write(writer, b"\0" * NAME_BYTES)
            raise


def open_end(path: Path, mode: int, stack: contextlib.ExitStack) -> int:
    """Open one pipe without waiting for the machine."""
    try:
        fd = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Disconnected from error
    stack.callback(os.close, fd)
    return fd
