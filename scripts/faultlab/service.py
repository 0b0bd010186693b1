"""Calls of the spool service fail while files go through it; then a service without faults takes over."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from faultlab import driver, hook
from faultlab.options import Options
from faultlab.process_tree import Role
from faultlab.spool import Spool
from faultlab.tally import Finding, Kind
from gwsandbox.linux import syscalls

INPUTS = 5
_TROUBLED_FOR = 6.0  # seconds that the service with the fault gets; it may have to wait until a disk is there again

_SERVE = """
import sys
from faultlab import hook
from faultlab.process_tree import Role
hook.install(sys.argv.pop(1), Role.CALLER)
from gwsandbox.cli import main
sys.argv[0] = "gwsandbox"
main()
"""


class _FaultySpool(Spool):
    """A spool whose first service has a fault."""

    folder = ""

    def start(self) -> None:
        words = [sys.executable, "-c", _SERVE, self.folder, "serve", f"{self.root}/config.toml"]
        if self.folder:
            self.launch(words)
        else:
            super().start()


def injected(options: Options, fault: Mapping[str, Any] | None) -> tuple[int, dict[str, int], tuple[Finding, ...]]:
    """Files go through a service with a fault, and then through one without.

    Returns:
        How many calls failed, which calls there are, and what went wrong.
    """
    syscalls.be_subreaper()
    root = tempfile.mkdtemp(prefix="faultlab-")
    folder = tempfile.mkdtemp(prefix="faultlab-")
    spool = _FaultySpool(root, random.Random(options.seed), options.backend)
    try:
        spool.prepare()
        spool.folder = folder
        hook.prepare(folder, None if fault is None else {**fault, "role": Role.CALLER})
        findings = tuple(_through_both(spool))
        failed, counts = hook.counts(folder)
        log = hook.stacks(folder)
        made = {call: count for (role, call), count in counts.items() if role is Role.CALLER}
        return failed, made, tuple(Finding(one.kind, one.text, log + one.evidence) for one in findings)
    finally:
        driver.clear_up()
        shutil.rmtree(root)
        shutil.rmtree(folder)


def _through_both(spool: _FaultySpool) -> Iterator[Finding]:
    spool.start()
    for number in range(INPUTS):
        spool.deliver(number)
    spool.await_quiet(_TROUBLED_FOR, restart=False)
    if not spool.stop():
        yield Finding(Kind.HUNG, "the service with the fault does not stop", spool.log())
    if "Traceback" in spool.log():
        yield Finding(Kind.WRONG, f"a traceback: {spool.log().strip().rpartition(chr(10))[2]}", spool.log())
    for left in driver.wait_for_children():
        yield Finding(Kind.LEFT, left, spool.log())
    spool.folder = ""
    spool.start()
    yield from spool.finished("after the fault")
