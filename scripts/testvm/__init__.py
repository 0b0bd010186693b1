"""A throw-away virtual machine with a real cgroup v2 and a real systemd, for `scripts/vm`.

    scripts/vm ──unix socket── qemu ──virtio-serial── agent (guest, root) ──systemd-run── the command
    scripts/vm ──named pipes, folder── User-mode Linux ──serial line, hostfs── the same

| module | what | runs |
|---|---|---|
| `cli`, `commands` | the command line, and what each subcommand does | host |
| `probe` | whether this host needs the machine | host |
| `recipe` | what is in the image | host |
| `image`, `requirements`, `build_host` | build the image, once per recipe, outside the repository | host |
| `machine`, `boot`, `qemu`, `uml` | boot an image; know which machine runs under which name | host |
| `session` | copies the work tree into the machine, runs a command there, fetches its output and `$OUT` | host |
| `wire`, `shared_folder` | messages between `session` and `agent`; how they travel under User-mode Linux | both |
| `agent` | runs the command | machine |

The agent, `wire`, `shared_folder` and this file travel into the machine at boot, so that changing them rebuilds no
image. They use the standard library only.
"""

import sys


class VmError(Exception):
    """A failure of the machine, not of the command in it. The text names the step, its object, and what to do."""


def log(text: str) -> None:
    """Write one line to stderr; stdout belongs to the command."""
    print(f"vm: {text}", file=sys.stderr, flush=True)
