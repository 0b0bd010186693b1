"""The guest's end: lays the work tree, runs one command at a time, reports.

Started by a systemd unit of the image from what the host passes at boot, as root, with the guest's own Python
(3.11 to 3.14) and nothing but its standard library.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

from vmlib.wire import Channel, Gone, Kind

PORT = "/dev/virtio-ports/gwsandbox.agent"
TREE = Path("/gwsandbox")
OUT = Path("/out")
STATUS = Path("/run/gwsandbox/status")
USER, UID = "tester", 1000
PATH = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUNTIME = f"/run/user/{UID}"
CONTAINER = "/mnt"  # where its root is; systemd-nspawn takes no overlay of / itself
# What systemd itself sorts processes by, in a machine that was told to boot hybrid, with version 1, or neither.
HIERARCHIES = [Path("/sys/fs/cgroup", name) for name in ("unified", "systemd", "")]
# Where systemd puts the command; all that is left there is killed when an order ends.
CGROUPS = {
    "unit": "system.slice/gwsandbox-exec.service",
    "nspawn": "system.slice/gwsandbox-exec.service",
    "user": f"user.slice/user-{UID}.slice/user@{UID}.service/app.slice/gwsandbox-exec.service",
    "root": "user.slice/user-0.slice/gwsandbox-exec.scope",
}


def main() -> None:
    channel = Channel(os.open(PORT, os.O_RDWR | os.O_NONBLOCK))
    wanted: dict[str, list[int]] = {}
    while True:
        try:
            kind, payload = channel.receive()
            if kind is Kind.HELLO:
                channel.send(Kind.READY, payload)
            elif kind is Kind.TREE:
                wanted = json.loads(payload)
                channel.send(Kind.NEED, json.dumps(prune(wanted)).encode())
            elif kind is Kind.FILE:
                lay(payload)
            elif kind is Kind.LAID:
                give_away(TREE)
                channel.send(Kind.LAID)
            elif kind is Kind.RUN:
                obey(channel, json.loads(payload))
        except Gone:
            # An unconnected port reads as an endless end of file, and nothing to wait on tells its return.
            channel.forget()
            time.sleep(0.1)


# ── the work tree ────────────────────────────────────────────────────────────


def prune(wanted: dict[str, list[int]]) -> list[str]:
    """Remove what the host's tree has not, and name what must be sent."""
    TREE.mkdir(exist_ok=True)
    keep = set(wanted)
    for folder, folders, files in os.walk(TREE, topdown=False):
        here = Path(folder)
        for name in [*files, *folders]:
            remove_unless_wanted(here / name, keep)
    return [path for path, entry in wanted.items() if not is_same(TREE / path, entry)]


def remove_unless_wanted(path: Path, keep: set[str]) -> None:
    # Compiled modules stay, since compiling all of them takes half a minute under emulation.
    if "__pycache__" in path.parts or str(path.relative_to(TREE)) in keep:
        return
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    elif not any(path.iterdir()):
        path.rmdir()
    elif [child.name for child in path.iterdir()] == ["__pycache__"]:
        shutil.rmtree(path)


def is_same(path: Path, entry: list[int]) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return [found.st_mode, found.st_mtime_ns, found.st_size] == entry


def lay(payload: bytes) -> None:
    """Write one file of the tree."""
    head, _, content = payload.partition(b"\n")
    about: dict[str, Any] = json.loads(head)
    path = TREE / about["path"]
    clear(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if about["link"] is not None:
        path.symlink_to(about["link"])
    else:
        path.write_bytes(content)
        path.chmod(stat.S_IMODE(about["mode"]))
    os.utime(path, ns=(about["mtime_ns"], about["mtime_ns"]), follow_symlinks=False)
    # Python takes a compiled module for current by size and whole seconds: too coarse for someone at work.
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def clear(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def give_away(top: Path) -> None:
    """Root may write everywhere; the ordinary user needs to own the tree for it."""
    os.chown(top, UID, UID)
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            os.chown(os.path.join(folder, name), UID, UID, follow_symlinks=False)


# ── orders ───────────────────────────────────────────────────────────────────


def obey(channel: Channel, order: dict[str, Any]) -> None:
    """Run the ordered command, its output going out as it comes, and tell how it ended."""
    clear(OUT)
    OUT.mkdir()
    give_away(OUT)
    STATUS.unlink(missing_ok=True)
    code = unrunnable(channel, order["argv"][0]) or run(channel, order)
    if order["out"]:
        send_out(channel)
    channel.send(Kind.EXIT, json.dumps({"code": code}).encode())


def unrunnable(channel: Channel, program: str) -> int:
    """As a shell puts it: 127 not found, 126 not executable. systemd-run has other words for it in each role."""
    os.chdir(TREE)
    if shutil.which(program, path=PATH):
        return 0
    found = os.path.exists(program) and "/" in program
    why = "not executable" if found else f"not found in {TREE if '/' in program else PATH}"
    channel.send(Kind.OUTPUT, f"{program}: {why}\n".encode())
    return 126 if found else 127


def run(channel: Channel, order: dict[str, Any]) -> int:
    mode = order["as"]
    if mode == "user":
        # Blocks until the user's manager answers, which right after booting takes a while.
        subprocess.run(["systemctl", "start", f"user@{UID}.service"], check=True)
    elif mode == "root":
        subprocess.run(["systemctl", "start", "user@0.service"], check=False)
    STATUS.parent.mkdir(exist_ok=True)
    give_away(STATUS.parent)
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as pipe:
        try:
            process = start(mode, order, writing)
        finally:
            os.close(writing)
        try:
            relay(channel, process, pipe.fileno())
        finally:
            end(process, mode)
    return exit_code(process.returncode)


def start(mode: str, order: dict[str, Any], output: int) -> subprocess.Popen[bytes]:
    environment = {"PATH": PATH, "LANG": "C.UTF-8"}
    who: dict[str, Any] = {}
    if mode == "user":
        environment |= {"XDG_RUNTIME_DIR": RUNTIME, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={RUNTIME}/bus"}
        who = {"user": UID, "group": UID, "extra_groups": []}
    if mode == "root":
        # A scope is a child of ours with our environment, not the service manager's.
        environment |= {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}
    command = command_line(mode, order["argv"], variables(mode, order["env"]))
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=TREE, **who
    )


def command_line(mode: str, argv: list[str], settings: list[str]) -> list[str]:
    if mode == "root":
        # Ours is -1000, and a scope's processes are our children.
        return [*systemd_run(mode), *settings, "--", "choom", "-n", "0", "--", *argv]
    if mode == "nspawn":
        argv = nspawn(settings, argv)
    # A unit's command line knows variables.
    return [*systemd_run(mode), *settings, "--", *(word.replace("$", "$$") for word in argv)]


def systemd_run(mode: str) -> list[str]:
    common = ["systemd-run", "--quiet", "--collect", "--unit=gwsandbox-exec"]
    if mode == "root":
        return [*common, "--scope", "--slice=user-0.slice"]
    # systemd-run --wait calls a death by SIGTERM a success and every other signal 255: so the unit tells itself.
    service = [
        "--pipe",
        "--wait",
        f"--working-directory={TREE}",
        "--property=Delegate=yes",
        f"--property=ExecStopPost=/usr/local/lib/gwsandbox/record-exit {STATUS}",
    ]
    own = {"user": ["--user"], "nspawn": [f"--property=BindPaths=/:{CONTAINER}:norbind"]}
    return [*common, *service, *own.get(mode, [])]


def nspawn(settings: list[str], argv: list[str]) -> list[str]:
    """A container without a systemd of its own, as container engines make them; what it writes is lost with it."""
    return [
        *("systemd-nspawn", "--quiet", "--pipe", "--as-pid2", "--register=no", "--keep-unit", "--link-journal=no"),
        # The overlay is in memory; without a source, a folder of the disk that goes with the container.
        *(f"--directory={CONTAINER}", "--volatile=overlay", "--bind=:/var/tmp", f"--bind={TREE}", f"--bind={OUT}"),
        *("--hostname=gwsandbox-container", f"--chdir={TREE}", *settings, "--"),
        # The stub that is its process 1 calls every death by a signal 255.
        *("sh", "-c", '"$@"; exit $?', "sh", *argv),
    ]


def variables(mode: str, extra: dict[str, str]) -> list[str]:
    values = {"PATH": PATH, "LANG": "C.UTF-8", "OUT": str(OUT)}
    if mode in ("unit", "nspawn"):
        values |= {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}
    values |= extra
    return [f"--setenv={name}={value}" for name, value in values.items()]


def relay(channel: Channel, process: subprocess.Popen[bytes], output: int) -> None:
    """Send output until the command has ended; a word or a hang-up from the host ends it early."""
    os.set_blocking(output, False)
    pidfd = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        selector.register(pidfd, selectors.EVENT_READ)
        selector.register(channel.fd, selectors.EVENT_READ)
        try:
            ended = False
            while not ended:
                ready = {key.fd for key, _ in selector.select()}
                if channel.fd in ready:
                    raise Gone
                ended = pidfd in ready
                if output in ready and not forward(channel, output):
                    selector.unregister(output)
        finally:
            os.close(pidfd)
    while forward(channel, output):
        pass


def forward(channel: Channel, output: int) -> bool:
    try:
        data = os.read(output, 65536)
    except BlockingIOError:
        return False
    if data:
        channel.send(Kind.OUTPUT, data)
    return bool(data)


def exit_code(of_systemd_run: int) -> int:
    """The command's code, or 128 + n for a death by signal n."""
    try:
        how, value = STATUS.read_text().split()[:2]
    except (OSError, ValueError):
        return 128 - of_systemd_run if of_systemd_run < 0 else of_systemd_run
    if how == "exited":
        return int(value)
    return 128 + int(getattr(signal, f"SIG{value}", signal.SIGKILL))


def end(process: subprocess.Popen[bytes], mode: str) -> None:
    """Kill all that is left of an order, and wait until it is gone."""
    group = next(mount for mount in HIERARCHIES if mount.exists()) / CGROUPS[mode]
    deadline = time.monotonic() + 20
    # Over and over: a systemd-run that is still asking for its unit would come after a single kill.
    while process.poll() is None or (group.exists() and time.monotonic() < deadline):
        kill_all(group)
        time.sleep(0.02)


def kill_all(group: Path) -> None:
    with contextlib.suppress(OSError):
        if (group / "cgroup.kill").exists():
            (group / "cgroup.kill").write_text("1")
            return
        # cgroup v1 never had it, and version 2 has it since Linux 5.14.
        for procs in group.rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                os.kill(int(pid), signal.SIGKILL)


def send_out(channel: Channel) -> None:
    for path in sorted(OUT.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        found = path.stat()
        about = {"path": str(path.relative_to(OUT)), "mode": found.st_mode, "mtime_ns": found.st_mtime_ns}
        channel.send(Kind.FILE, json.dumps(about).encode() + b"\n" + path.read_bytes())


if __name__ == "__main__":
    main()
