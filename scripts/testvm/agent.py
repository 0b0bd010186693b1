"""The machine's end: takes the work tree, runs one command at a time, reports.

A systemd unit of the image starts it as root, from what the host passes at boot, with the machine's own Python (3.11
to 3.14) and nothing but its standard library.
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
import tty
from collections.abc import Container
from pathlib import Path

from testvm.shared_folder import AgentEnd
from testvm.wire import Channel, Disconnected, FileHeader, Kind, RunRequest, Stamp

PORT = "/dev/virtio-ports/gwsandbox.agent"  # of QEMU
SERIAL = "/dev/ttyS0"  # of User-mode Linux
TREE = Path("/gwsandbox")
OUT = Path("/out")
HOST = Path("/run/gwsandbox/host")  # where User-mode Linux shows a folder of the host
STATUS = Path("/run/gwsandbox/status")
USER, UID = "tester", 1000
PATH = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUNTIME = f"/run/user/{UID}"
CONTAINER = "/mnt"  # where its root is; systemd-nspawn takes no overlay of / itself
ROOT_LOGIN = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}
# Where systemd sorts processes in a machine that boots hybrid, with version 1, or with version 2.
HIERARCHIES = [Path("/sys/fs/cgroup", name) for name in ("unified", "systemd", "")]
# Where systemd puts the command. The agent kills all that is left there when the command has ended.
CGROUPS = {
    "unit": "system.slice/gwsandbox-exec.service",
    "nspawn": "system.slice/gwsandbox-exec.service",
    "user": f"user.slice/user-{UID}.slice/user@{UID}.service/app.slice/gwsandbox-exec.service",
    "root": "user.slice/user-0.slice/gwsandbox-exec.scope",
}


def main() -> None:
    channel = open_channel()
    while True:
        try:
            answer(channel, *channel.receive())
        except Disconnected:
            # An unconnected port reads as an endless end of file, and no event says that a host is back.
            channel.forget()
            time.sleep(0.1)


def open_channel() -> Channel:
    """Open the line to the host."""
    if os.path.exists(PORT):
        return Channel(os.open(PORT, os.O_RDWR | os.O_NONBLOCK))
    fd = os.open(SERIAL, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    tty.setraw(fd)
    return AgentEnd(fd, HOST)


def answer(channel: Channel, kind: Kind, payload: bytes) -> None:
    if kind is Kind.HELLO:
        channel.send(Kind.READY, payload)
    elif kind is Kind.TREE:
        channel.send(Kind.NEED, json.dumps(prune(json.loads(payload))).encode())
    elif kind is Kind.FILE:
        write_file(payload)
    elif kind is Kind.TREE_DONE:
        chown_to_user(TREE)
        channel.send(Kind.TREE_DONE)
    elif kind is Kind.RUN:
        run_and_report(channel, json.loads(payload))


# ── the work tree ────────────────────────────────────────────────────────────


def prune(wanted: dict[str, Stamp]) -> list[str]:
    """Remove what the host's tree has not, and return the paths whose content differs."""
    TREE.mkdir(exist_ok=True)
    for folder, folders, files in os.walk(TREE, topdown=False):
        for name in [*files, *folders]:
            remove_unless_wanted(Path(folder, name), wanted.keys())
    return [path for path, stamp in wanted.items() if not is_same(TREE / path, stamp)]


def remove_unless_wanted(path: Path, wanted: Container[str]) -> None:
    # Compiled modules stay: compiling all of them takes half a minute under emulation.
    if "__pycache__" in path.parts or str(path.relative_to(TREE)) in wanted:
        return
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    elif not any(path.iterdir()):
        path.rmdir()
    elif [child.name for child in path.iterdir()] == ["__pycache__"]:
        shutil.rmtree(path)


def is_same(path: Path, stamp: Stamp) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return [found.st_mode, found.st_mtime_ns, found.st_size] == stamp


def write_file(payload: bytes) -> None:
    """Write one file of the tree."""
    head, _, content = payload.partition(b"\n")
    header: FileHeader = json.loads(head)
    path = TREE / header["path"]
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if header["link"] is not None:
        path.symlink_to(header["link"])
    else:
        path.write_bytes(content)
        path.chmod(stat.S_IMODE(header["mode"]))
    os.utime(path, ns=(header["mtime_ns"], header["mtime_ns"]), follow_symlinks=False)
    # Python compares a compiled module by size and whole seconds: too coarse while somebody edits.
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def chown_to_user(top: Path) -> None:
    """Root may write everywhere; the ordinary user has to own the tree for that."""
    os.chown(top, UID, UID)
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            os.chown(os.path.join(folder, name), UID, UID, follow_symlinks=False)


# ── the command ──────────────────────────────────────────────────────────────


def run_and_report(channel: Channel, request: RunRequest) -> None:
    """Run the command, send its output as it comes, and report how it ended."""
    remove(OUT)
    OUT.mkdir()
    chown_to_user(OUT)
    STATUS.unlink(missing_ok=True)
    code = refuse(channel, request["argv"][0]) or run(channel, request)
    if request["out"]:
        send_out(channel)
    channel.send(Kind.EXIT, json.dumps({"code": code}).encode())


def refuse(channel: Channel, program: str) -> int:
    """127 for a program that is not found, 126 for one that is not executable, as a shell does; otherwise 0.

    systemd-run reports these differently in each role.
    """
    os.chdir(TREE)
    if shutil.which(program, path=PATH):
        return 0
    found = os.path.exists(program) and "/" in program
    why = "not executable" if found else f"not found in {TREE if '/' in program else PATH}"
    channel.send(Kind.OUTPUT, f"{program}: {why}\n".encode())
    return 126 if found else 127


def run(channel: Channel, request: RunRequest) -> int:
    role = request["role"]
    if role == "user":
        # Blocks until the user's manager answers, which takes a while right after boot.
        subprocess.run(["systemctl", "start", f"user@{UID}.service"], check=True)
    elif role == "root":
        subprocess.run(["systemctl", "start", "user@0.service"], check=False)
    STATUS.parent.mkdir(exist_ok=True)
    chown_to_user(STATUS.parent)
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe:
        try:
            process = start(request, writer)
        finally:
            os.close(writer)
        try:
            relay(channel, process, pipe.fileno())
        finally:
            kill_remains(process, role)
    return exit_code(process.returncode)


def start(request: RunRequest, output: int) -> subprocess.Popen[bytes]:
    role = request["role"]
    environment = {"PATH": PATH, "LANG": "C.UTF-8"}
    if role == "user":
        environment |= {"XDG_RUNTIME_DIR": RUNTIME, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={RUNTIME}/bus"}
    if role == "root":
        # A scope's processes are children of the agent, with its environment and not the service manager's.
        environment |= ROOT_LOGIN
    return subprocess.Popen(
        command_line(role, request["argv"], setenv_options(role, request["env"])),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        cwd=TREE,
        user=UID if role == "user" else None,
        group=UID if role == "user" else None,
        extra_groups=[] if role == "user" else None,
    )


def command_line(role: str, argv: list[str], settings: list[str]) -> list[str]:
    if role == "root":
        # The agent's own score is -1000, and a scope's processes inherit it.
        return [*systemd_run(role), *settings, "--", "choom", "-n", "0", "--", *argv]
    if role == "nspawn":
        argv = nspawn(settings, argv)
    # A unit's command line expands variables.
    return [*systemd_run(role), *settings, "--", *(word.replace("$", "$$") for word in argv)]


def systemd_run(role: str) -> list[str]:
    common = ["systemd-run", "--quiet", "--collect", "--unit=gwsandbox-exec"]
    if role == "root":
        return [*common, "--scope", "--slice=user-0.slice"]
    # systemd-run --wait reports SIGTERM as success and every other signal as 255: so the unit records it.
    service = [
        "--pipe",
        "--wait",
        f"--working-directory={TREE}",
        "--property=Delegate=yes",
        f"--property=ExecStopPost=/usr/local/lib/gwsandbox/record-exit {STATUS}",
    ]
    own = {"user": ["--user"], "nspawn": [f"--property=BindPaths=/:{CONTAINER}:norbind"]}
    return [*common, *service, *own.get(role, [])]


def nspawn(settings: list[str], argv: list[str]) -> list[str]:
    """A container without a systemd of its own, as container engines make them. What it writes is lost with it."""
    return [
        *("systemd-nspawn", "--quiet", "--pipe", "--as-pid2", "--register=no", "--keep-unit", "--link-journal=no"),
        # The overlay is in memory. --bind without a source is a folder of the disk that goes with the container.
        *(f"--directory={CONTAINER}", "--volatile=overlay", "--bind=:/var/tmp", f"--bind={TREE}", f"--bind={OUT}"),
        *("--hostname=gwsandbox-container", f"--chdir={TREE}", *settings, "--"),
        # The stub that is process 1 there reports every death by a signal as 255.
        *("sh", "-c", '"$@"; exit $?', "sh", *argv),
    ]


def setenv_options(role: str, extra: dict[str, str]) -> list[str]:
    """The command's environment, as options of systemd-run and systemd-nspawn."""
    values = {"PATH": PATH, "LANG": "C.UTF-8", "OUT": str(OUT)}
    if role in ("unit", "nspawn"):
        values |= ROOT_LOGIN
    values |= extra
    return [f"--setenv={name}={value}" for name, value in values.items()]


def relay(channel: Channel, process: subprocess.Popen[bytes], output: int) -> None:
    """Send output until the command has ended. A message or a hang-up from the host ends it early."""
    os.set_blocking(output, False)
    pidfd = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as selector:
        for fd in (output, pidfd, channel.fd):
            selector.register(fd, selectors.EVENT_READ)
        try:
            ended = False
            while not ended:
                ready = {key.fd for key, _ in selector.select()}
                if channel.fd in ready:
                    raise Disconnected
                ended = pidfd in ready
                if output in ready and not forward(channel, output):
                    selector.unregister(output)
        finally:
            os.close(pidfd)
    while forward(channel, output):
        pass


def forward(channel: Channel, output: int) -> bool:
    """Send what is there to read; whether there was something."""
    try:
        data = os.read(output, 65536)
    except BlockingIOError:
        return False
    if data:
        channel.send(Kind.OUTPUT, data)
    return bool(data)


def exit_code(of_systemd_run: int) -> int:
    """The command's exit code, or 128 + n for a death by signal n."""
    try:
        how, value = STATUS.read_text().split()[:2]
    except (OSError, ValueError):
        return 128 - of_systemd_run if of_systemd_run < 0 else of_systemd_run
    if how == "exited":
        return int(value)
    return 128 + int(getattr(signal, f"SIG{value}", signal.SIGKILL))


def kill_remains(process: subprocess.Popen[bytes], role: str) -> None:
    """Kill all that is left of a command, and wait until it is gone."""
    group = next(mount for mount in HIERARCHIES if mount.exists()) / CGROUPS[role]
    deadline = time.monotonic() + 20
    # Repeatedly: a systemd-run that is still asking for its unit would come after a single kill.
    while process.poll() is None or (group.exists() and time.monotonic() < deadline):
        kill_all(group)
        time.sleep(0.02)


def kill_all(group: Path) -> None:
    with contextlib.suppress(OSError):
        if (group / "cgroup.kill").exists():
            (group / "cgroup.kill").write_text("1")
            return
        # cgroup v1 has no cgroup.kill, and version 2 has it since Linux 5.14.
        for procs in group.rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                os.kill(int(pid), signal.SIGKILL)


def send_out(channel: Channel) -> None:
    """Send the files that the command left in $OUT."""
    for path in sorted(OUT.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        found = path.stat()
        header = FileHeader(path=str(path.relative_to(OUT)), mode=found.st_mode, mtime_ns=found.st_mtime_ns, link=None)
        channel.send(Kind.FILE, json.dumps(header).encode() + b"\n" + path.read_bytes())


if __name__ == "__main__":
    main()
