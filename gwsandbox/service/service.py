"""The service: one thread and one loop, which waits for files, ends of attempts, signals and moments at once.

Each turn of the loop: what the descriptors tell is taken in; free slots are given files, unless memory is
short; then what has ended is settled (``clerk.py``). The guests work meanwhile, under a supervisor in a
process of its own (``crew.py``), so nothing here has to be fast, and nothing may block: systemd is told that
the loop turns from the loop alone (``notify.py``), and ends a service that says nothing.

SIGHUP
    The configuration is read anew. Limits and the like hold for files that are taken from then on; another
    worker, backend or number of workers for those that are taken when the present ones are done. A bad one is
    refused as a whole, its mistakes are told, and the old one stays.
SIGTERM, SIGINT
    No file is taken any more; those in work may take ``drain_seconds`` to end. What does not is cancelled and
    given back to ``incoming/``, and so is what waits for another attempt: ``work/`` is empty in the end.
    At the second one, what is in work is cancelled at once.
SIGKILL
    The next service goes on where this one was: see ``spool.py``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from typing import Self

from gwsandbox.linux.sd_notify import Manager
from gwsandbox.memory_usage import get_available_memory_bytes
from gwsandbox.service.config import config as configuration
from gwsandbox.service.config.config import Config, ConfigError
from gwsandbox.service.dispatcher import Clerk
from gwsandbox.service.monitoring.journal import ERROR, NOTICE, WARNING, Journal
from gwsandbox.service.monitoring.metrics import Figures, PrometheusFigures
from gwsandbox.service.monitoring.metrics_server import Port
from gwsandbox.service.monitoring.notify import Notifier
from gwsandbox.service.signals import Signals
from gwsandbox.service.spool import files
from gwsandbox.service.spool.incoming import Intake
from gwsandbox.service.spool.job_database import Ledger
from gwsandbox.service.spool.spool import Spool
from gwsandbox.service.worker_pool import Crew, Finished

_MEMORY_SECONDS = 1.0  # between two looks at memory that is short, which has no event
_TRASH_SECONDS = 0.05  # of each turn
_STOP_MARGIN = 30.0  # seconds for what comes after the drain


class Service:
    """The spool service, from its start to its end.

    Args:
        path: Of the configuration file.
        config: What was read from it.

    Raises:
        SandboxError: It cannot be started; says why and what mends it.
    """

    def __init__(self, path: str, config: Config) -> None:
        self._path = path
        self._config = config
        self._finished: list[Finished] = []
        self._give_up_at: float | None = None  # when draining ends
        self._look_at_memory_at: float | None = None  # while it is short
        self._watched: int | None = None
        self._notifier = Notifier(Manager.from_environment())
        with contextlib.ExitStack() as opened:
            self._open(config, opened)
            self._opened = opened.pop_all()

    def _open(self, config: Config, opened: contextlib.ExitStack) -> None:
        self._signals = opened.enter_context(Signals(signal.SIGHUP, signal.SIGTERM, signal.SIGINT))
        self._journal = Journal()
        opened.callback(self._journal.close)
        folders = {name: getattr(config.folders, name) for name in ("work", "incoming", "done", "quarantine")}
        files.prepare(folders)
        opened.callback(os.close, files.lock(config.folders.work))
        ledger = Ledger(config.ledger)
        opened.callback(ledger.close)
        self._spool = Spool(config.folders, ledger, output_suffix=config.worker.output_suffix)
        self._intake = Intake(config.folders.incoming, config.settle_seconds)
        opened.callback(self._intake.close)
        self._selector = opened.enter_context(selectors.DefaultSelector())
        self._selector.register(self._signals, selectors.EVENT_READ, self._obey_signals)
        self._selector.register(self._intake, selectors.EVENT_READ, self._intake.read_events)
        self._crew = Crew(config)
        opened.callback(self._crew.close)
        self._figures = self._open_figures(config, opened)
        self._clerk = Clerk(config, self._spool, ledger, self._intake, self._crew, self._journal, self._figures)

    def _open_figures(self, config: Config, opened: contextlib.ExitStack) -> Figures:
        if config.metrics.port is None and config.metrics.textfile is None:
            return Figures()
        figures = PrometheusFigures(
            config.metrics,
            {
                "running": ("Files in work", lambda: len(self._crew)),
                "ready": ("Files in incoming that could be taken", lambda: len(self._intake)),
                "waiting": ("Files that wait for another attempt", lambda: self._clerk.waiting),
                "memory_short": ("1 while no file is taken for want of memory", self._memory_is_short),
                "available_memory_bytes": ("Memory that is available here", get_available_memory_bytes),
            },
        )
        if config.metrics.port is not None:
            opened.callback(Port(config.metrics.port, figures.page, self._selector).close)
        return figures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing of it is left. What was not done is as after a kill, for the next service to go on with."""
        self._opened.close()

    # --- the loop -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until a signal says to stop.

        Raises:
            SandboxError: The sandbox fails again and again, or the folder is gone.
        """
        self._start_crew()
        self._clerk.recover()
        self._intake.scan()
        self._notifier.ready()
        self._journal.write(f"takes files from {self._config.folders.incoming}", NOTICE)
        while not self._is_over():
            self._turn()
        self._clerk.give_back_waiting()
        self._figures.write_textfile(is_last=True)
        self._journal.write("stopped; nothing is in work", NOTICE)

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._seconds_to_wait()):
            key.data()
        self._intake.look()
        self._renew_crew()
        self._fill_slots()
        finished, self._finished = self._finished, []
        self._clerk.await_births(finished)
        self._mind_the_clock()

    def _seconds_to_wait(self) -> float | None:
        if not self._spool.trash.is_empty or self._finished:
            return 0
        moments = [
            self._intake.seconds_to_wait(),
            self._notifier.seconds_to_wait(),
            self._figures.seconds_to_wait(),
            self._until(self._give_up_at),
        ]
        if self._look_at_memory_at is not None:
            moments.append(self._until(self._look_at_memory_at))
        elif self._has_room():
            moments.append(self._clerk.seconds_to_wait())
        return min((moment for moment in moments if moment is not None), default=None)

    @staticmethod
    def _until(moment: float | None) -> float | None:
        return None if moment is None else max(moment - time.monotonic(), 0)

    def _mind_the_clock(self) -> None:
        if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
            self._give_up_at = None
            self._crew.cancel()
        if not self._spool.trash.is_empty:
            try:
                self._spool.trash.empty(_TRASH_SECONDS)
            except OSError as error:
                self._journal.write(f"what a guest left cannot be removed: {error}", WARNING)
        self._figures.write_textfile()
        self._notifier.turn(self._status())

    def _status(self) -> str:
        parts = [
            f"{len(self._crew)} in work",
            f"{len(self._intake)} to take",
            f"{self._clerk.waiting} to try again",
        ]
        if self._clerk.is_stopping:
            parts.append("stopping")
        elif self._look_at_memory_at is not None:
            parts.append("memory is short: no file is taken")
        return ", ".join(parts)

    # --- taking files -------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        is_open = not (self._clerk.is_stopping or self._crew.needs_another)
        return is_open and len(self._crew) < self._crew.slots

    def _fill_slots(self) -> None:
        while self._has_room() and self._clerk.has_work():
            if self._memory_is_short():
                self._look_at_memory_at = time.monotonic() + _MEMORY_SECONDS
                return
            self._clerk.begin_one()
        self._look_at_memory_at = None

    def _memory_is_short(self) -> bool:
        reserve = self._config.memory_reserve
        return reserve > 0 and get_available_memory_bytes() < reserve

    # --- the crew -----------------------------------------------------------------------------------

    def _start_crew(self) -> None:
        for warning in self._crew.start():
            self._journal.write(warning, WARNING)
        self._watched = self._crew.fileno()
        self._selector.register(self._watched, selectors.EVENT_READ, self._collect)

    def _collect(self) -> None:
        self._finished += self._crew.finished()

    def _renew_crew(self) -> None:
        """Replace a supervisor that is lost or out of date, as soon as nothing is in work under it."""
        if not self._crew.needs_another or len(self._crew) or self._clerk.is_stopping:
            return
        if self._watched is not None:
            self._selector.unregister(self._watched)
            self._watched = None
        self._crew.close()
        self._start_crew()

    # --- signals ------------------------------------------------------------------------------------

    def _obey_signals(self) -> None:
        for number in self._signals.take():
            if number == signal.SIGHUP:
                self._reload()
            elif self._clerk.is_stopping:
                self._crew.cancel()
            else:
                self._stop()

    def _stop(self) -> None:
        seconds = self._config.drain_seconds
        self._clerk.is_stopping = True
        self._give_up_at = time.monotonic() + seconds
        self._notifier.stopping(seconds + _STOP_MARGIN)
        self._journal.write(f"stops; {len(self._crew)} in work may take {seconds:g} s to end", NOTICE)

    def _is_over(self) -> bool:
        return self._clerk.is_stopping and not len(self._crew) and not self._finished

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            config = configuration.read(self._path, running=self._config)
        except ConfigError as error:
            self._figures.reload(is_good=False)
            for mistake in error.mistakes:
                self._journal.write(mistake, ERROR)
            self._journal.write("the configuration stays as it was, for the new one has mistakes", ERROR)
        else:
            self._figures.reload(is_good=True)
            self._config = self._clerk.config = config
            self._crew.reconfigure(config)
            self._spool.output_suffix = config.worker.output_suffix
            self._intake.settle_seconds = config.settle_seconds
            self._intake.scan()
            self._journal.write(f"the configuration was read anew from {self._path}", NOTICE)
        self._notifier.ready()
