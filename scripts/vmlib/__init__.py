"""A throw-away virtual machine with a real cgroup v2 and a real systemd, for `scripts/vm`.

    scripts/vm ──unix socket── qemu ──virtio-serial── agent (guest, root) ──systemd-run── the command

`recipe` says what is in the image and `image` builds it, once per recipe, outside the repo. `machine` boots
an image and knows what is running under which name. `session` speaks to the `agent` inside, in the frames of
`wire`: it lays the work tree into the machine, runs one command there and carries its output and what it left
in $OUT back. `run` and `test` do that with a private machine, `exec` with one that `up` left running.

The agent and `wire` travel into the machine at boot, so that changing them rebuilds no image.
"""

import sys


class VmError(Exception):
    """Our failure, not the command's: names the step, what it was about, and what mends it."""


def say(text: str) -> None:
    """Tell the person; the command's own output has stdout to itself."""
    print(f"vm: {text}", file=sys.stderr, flush=True)
