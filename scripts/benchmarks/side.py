"""A side as the bench holds it: starts its process, sends orders, takes answers."""

import contextlib
import marshal
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.messages import Answer, Terms, Wish, terms

_SCRIPTS = Path(__file__).resolve().parents[1]
_PATIENCE = 1800.0  # seconds; under emulation some peers take half a second per task


class Absent(Exception):
    """A side cannot be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class SideSpec:
    """What a side is: its kind of work and its tool (see ``worker``), its terms, and what its caller holds.

    ``heap`` is "bytes" or "objects", and a size in bytes. ``package`` is the folder of the gwsandbox that is measured:
    this checkout where it is ``None``.
    """

    work: str
    tool: str
    terms: Terms = field(default_factory=terms)
    heap: tuple[str, int] | None = None
    package: Path | None = None


class Side:
    """A side's process, which lives as long as the ``with`` block."""

    def __init__(self, spec: SideSpec) -> None:
        self.spec = spec
        self.pid = 0

    def __enter__(self) -> Self:
        package = self.spec.package or _SCRIPTS.parent
        path = os.pathsep.join([str(package), str(_SCRIPTS), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        # With it, Python would compile our modules, and no peer's, at each start.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*self._own_scope(), sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        try:
            spec = self.spec
            self._write(Wish(work=spec.work, tool=spec.tool, terms=spec.terms, heap=spec.heap))
            self.pid = self.answer()["pid"]
        except BaseException:
            self._end()
            raise
        return self

    def _own_scope(self) -> list[str]:
        """BenchExec uses the cgroup that it is in, and wants it for itself."""
        if self.spec.tool != "BenchExec" or not os.path.isdir("/run/systemd/system") or os.geteuid():
            return []
        return ["systemd-run", "--scope", "--quiet", "--property=Delegate=yes", "--"]

    def _write(self, content: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        marshal.dump(dict(content), self._process.stdin)
        self._process.stdin.flush()

    def begin(self, **order: object) -> int:
        """Order a round; the descriptor that becomes readable when it is done."""
        self._write(order)
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def answer(self) -> Answer:
        """What came of the round.

        Raises:
            Absent: The tool is not there, does not work, or hangs.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            raise Absent(f"hangs (nothing came in {_PATIENCE:g} s)")
        try:
            answer: Answer = marshal.load(self._process.stdout)
        except EOFError:
            raise Absent(f"its process ended: {self._last_words()}") from None
        if "absent" in answer:
            raise Absent(answer["absent"])
        return answer

    def round(self, **order: object) -> Answer:
        """One round, from its order to its answer; raises what ``answer`` raises."""
        self.begin(**order)
        return self.answer()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its workers too: the session is its own
            self._process.wait()
        self._log.close()
