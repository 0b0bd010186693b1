"""What the service's tests let be done with a file: its first word says what happens, the rest is copied.

As a function, ``work(input, output)``, and as a program with the same arguments.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable


def work(source: str, output: str) -> None:
    """Obey the first word of the input, and copy it in capital letters."""
    with open(source, "rb") as file:
        data = file.read()
    word = data.split()[0].decode() if data.split() else ""
    if word in _DEEDS:
        _DEEDS[word](source, output)
    if word not in {"nothing", "link", "folder", "pair", "variables"}:
        with open(output, "wb") as file:
            file.write(data.upper())


def _eat(*_: str) -> None:
    block = bytearray(1 << 30)
    block[::4096] = b"x" * len(block[::4096])


def _litter(_source: str, output: str) -> None:
    """Leave what is hard to remove."""
    os.chdir(os.path.dirname(output))
    for number in range(1500):
        os.mkdir("deep")
        os.chdir("deep")
        if number % 100 == 0:
            os.mkdir("closed")
            os.chmod("closed", 0)


def _kill_parent(*_: str) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def _raise(*_: str) -> None:
    raise ValueError("not a good file \udcff\x1b[31m")


def _pair(_source: str, output: str) -> None:
    with open(f"{output}.other", "wb"):
        pass
    os.link(f"{output}.other", output)


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return "the one that listed them"


def _environment(_source: str, output: str) -> None:
    with open(f"{os.path.dirname(output)}/../../../seen", "w", encoding="utf-8") as file:
        descriptors = [_target(fd) for fd in os.listdir("/proc/self/fd")]
        names = sorted(name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG")))
        wakeup = signal.set_wakeup_fd(-1)
        print([os.getcwd(), os.environ.get("TMPDIR"), names, wakeup, *descriptors], file=file)


def _variables(_source: str, output: str) -> None:
    with open(output, "w", encoding="utf-8") as file:
        file.write("\0".join(f"{name}={value}" for name, value in os.environ.items()))


_DEEDS: dict[str, Callable[[str, str], object]] = {
    "oom": _eat,
    "hang": lambda *_: time.sleep(600),
    "slow": lambda *_: time.sleep(1),
    "crash": lambda *_: os.abort(),
    "exit": lambda *_: os._exit(3),
    "raise": _raise,
    "kill-parent": _kill_parent,
    "eat-input": lambda source, _: os.unlink(source),
    "link": lambda _, output: os.symlink("/etc/passwd", output),
    "folder": lambda _, output: os.mkdir(output),
    "pair": _pair,
    "litter": _litter,
    "environment": _environment,
    "variables": _variables,
}

if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2])
