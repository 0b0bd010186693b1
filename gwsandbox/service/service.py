"""The spool service: one thread and one loop, which waits for files, ends of attempts, signals and deadlines.

Each turn of the loop reads the descriptors that are ready, gives files to free slots unless memory is short, and
then does what the ended attempts ask for (``dispatcher.py``). The guests run meanwhile, under a supervisor in a
process of its own (``worker_pool.py``). So no step here has to be fast, and none may block: only the loop pings
systemd's watchdog (``notify.py``), and systemd ends a service that stays silent.

SIGHUP
    The service reads its configuration again. Limits and the like hold for files that it takes later. Another
    worker, backend or number of workers holds as soon as the running attempts have ended. The service refuses a
    configuration with mistakes as a whole, reports them, and keeps the old one.
SIGTERM, SIGINT
    The service takes no more files. Running attempts get ``drain_seconds`` to end. Then the service cancels them,
    and gives their files back to ``incoming/``, together with those that wait for another attempt: at the end
    ``work/`` is empty. The second signal cancels the running attempts at once.
SIGKILL
    The next service goes on from here: see ``spool.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from dataclasses import asdict
from typing import Self

from gwsandbox.linux.sd_notify import Manager
from gwsandbox.memory_usage import get_available_memory_bytes
from gwsandbox.model.text import shown
from gwsandbox.service.config.config import ServiceConfig
from gwsandbox.service.config.reader import ConfigError, read_config
from gwsandbox.service.dispatcher import Dispatcher
from gwsandbox.service.monitoring.journal import ERROR, NOTICE, WARNING, Journal
from gwsandbox.service.monitoring.metrics import Metrics, PrometheusMetrics
from gwsandbox.service.monitoring.metrics_server import MetricsServer
from gwsandbox.service.monitoring.notify import Notifier
from gwsandbox.service.signals import Signals
from gwsandbox.service.spool import folders
from gwsandbox.service.spool.incoming import IncomingWatcher
from gwsandbox.service.spool.job_database import JobDatabase
from gwsandbox.service.spool.spool import Spool
from gwsandbox.service.storage_guard import RETRY_SECONDS, Step
from gwsandbox.service.worker_pool import Finished, WorkerPool

_MEMORY_SECONDS = 1.0  # between two checks of memory that is short: the kernel announces nothing
_TRASH_SECONDS = _COPY_SECONDS = 0.05  # of each turn
_MOST_NAMES = 10  # in one journal entry
_STOP_MARGIN = 30.0  # seconds for the steps after the drain


class Service:
    """The spool service, from its start to its end.

    Args:
        path: Path of the configuration file.
        config: Its content.

    Raises:
        SandboxError: The service cannot start; the text says why, and the remedy.
    """

    def __init__(self, path: str, config: ServiceConfig) -> None:
        self._path = path
        self._config = config
        self._finished: list[Finished] = []
        self._drain_ends_at: float | None = None  # the end of draining
        self._check_memory_at: float | None = None  # while memory is short
        self._watched: int | None = None
        self._notifier = Notifier(Manager.from_environment())
        with contextlib.ExitStack() as opened:
            self._open(config, opened)
            self._opened = opened.pop_all()

    def _open(self, config: ServiceConfig, opened: contextlib.ExitStack) -> None:
        self._signals = opened.enter_context(Signals(signal.SIGHUP, signal.SIGTERM, signal.SIGINT))
        self._journal = Journal()
        opened.callback(self._journal.close)
        has_leases = folders.prepare(
            {name: getattr(config.folders, name) for name in ("work", "incoming", "done", "quarantine")}
        )
        lock = folders.lock(config.folders.work)
        opened.callback(os.close, lock)
        folders.write_holder(lock, json.dumps({"pid": os.getpid(), **asdict(config.fixed)}))
        database = JobDatabase(config.database)
        opened.callback(database.close)
        self._spool = Spool(config.folders, database, output_suffix=config.worker.output_suffix)
        opened.callback(self._spool.trash.close)
        self._watcher = IncomingWatcher(config.folders.incoming, config.settle_seconds, has_leases=has_leases)
        opened.callback(self._watcher.close)
        self._selector = opened.enter_context(selectors.DefaultSelector())
        self._selector.register(self._signals, selectors.EVENT_READ, self._handle_signals)
        self._selector.register(self._watcher, selectors.EVENT_READ, self._read_events)
        self._pool = WorkerPool(config)
        opened.callback(self._pool.close)
        self._metrics = self._open_metrics(config, opened)
        self._dispatcher = Dispatcher(
            config,
            spool=self._spool,
            database=database,
            watcher=self._watcher,
            pool=self._pool,
            journal=self._journal,
            metrics=self._metrics,
        )

    def _open_metrics(self, config: ServiceConfig, opened: contextlib.ExitStack) -> Metrics:
        if config.metrics.port is None and config.metrics.textfile is None:
            return Metrics()
        metrics = PrometheusMetrics(
            config.metrics,
            {
                "running": ("Files in work", lambda: len(self._dispatcher)),
                "ready": ("Files in incoming that can be taken", lambda: len(self._watcher)),
                "waiting": ("Files that wait for another attempt", lambda: self._dispatcher.waiting),
                "folders": ("Folders in incoming, which are not taken", lambda: len(self._watcher.folders)),
                "storage_failing": ("1 while a disk fails and no file is taken", self._storage_fails),
                "memory_short": ("1 while memory is short and no file is taken", self._memory_is_short),
                "available_memory_bytes": ("Available memory", get_available_memory_bytes),
            },
        )
        if config.metrics.port is not None:
            opened.callback(MetricsServer(config.metrics.port, metrics.page, self._selector).close)
        return metrics

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Release everything. Unfinished jobs stay as after a kill, and the next service goes on with them."""
        self._opened.close()

    # --- the loop -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until a signal says to stop.

        Raises:
            SandboxError: The sandbox fails again and again, or the folder ``incoming`` is gone.
        """
        self._start_supervisor()
        self._dispatcher.recover()
        self._scan()
        self._notifier.ready()
        self._journal.write(f"takes files from {self._config.folders.incoming}", NOTICE)
        while not self._is_over():
            self._turn()
        self._dispatcher.give_back_waiting()
        self._metrics.write_textfile(is_last=True)
        self._journal.write("stopped; nothing is in work", NOTICE)

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._seconds_to_wait()):
            key.data()
        self._look()
        self._replace_supervisor()
        self._fill_slots()
        self._dispatcher.copy_inputs(_COPY_SECONDS)
        self._collect()  # an attempt that could not be sent has ended too
        finished, self._finished = self._finished, []
        self._dispatcher.finish(finished)
        self._dispatcher.storage.check()
        self._check_deadlines()

    def _seconds_to_wait(self) -> float | None:
        if not self._spool.trash.is_empty or self._finished or self._dispatcher.is_copying:
            return 0
        moments = [
            self._watcher.seconds_to_wait(),
            self._dispatcher.storage.seconds_to_wait(),
            self._pool.seconds_to_wait(),
            self._notifier.seconds_to_wait(),
            self._metrics.seconds_to_wait(),
            self._until(self._drain_ends_at),
        ]
        if self._check_memory_at is not None:
            moments.append(self._until(self._check_memory_at))
        elif self._has_room() and not self._dispatcher.is_held:
            moments.append(self._dispatcher.seconds_to_wait())
        return min((moment for moment in moments if moment is not None), default=None)

    @staticmethod
    def _until(moment: float | None) -> float | None:
        return None if moment is None else max(moment - time.monotonic(), 0)

    def _check_deadlines(self) -> None:
        if self._drain_ends_at is not None and time.monotonic() >= self._drain_ends_at:
            self._drain_ends_at = None
            self._pool.cancel()
        if not self._spool.trash.is_empty:
            try:
                self._spool.trash.empty(_TRASH_SECONDS)
            except OSError as error:
                self._journal.write(f"leftovers of a guest cannot be removed: {error}", WARNING)
        self._pool.check()
        self._metrics.write_textfile()
        self._notifier.turn(self._status())

    def _status(self) -> str:
        parts = [
            f"{len(self._dispatcher)} in work",
            f"{len(self._watcher)} to take",
            f"{self._dispatcher.waiting} to try again",
        ]
        if self._dispatcher.is_stopping:
            parts.append("stopping")
        elif self._storage_fails():
            parts.append(f"no file is taken: {self._dispatcher.storage.failure}")
        elif self._check_memory_at is not None:
            parts.append("memory is short: no file is taken")
        if self._watcher.folders:
            parts.append(f"folders in incoming, which are not taken: {len(self._watcher.folders)}")
        return ", ".join(parts)

    # --- incoming -----------------------------------------------------------------------------------

    def _read_events(self) -> None:
        self._watch(self._watcher.read_events)

    def _look(self) -> None:
        self._watch(self._watcher.look)
        if found := self._watcher.new_folders():
            names = ", ".join(map(shown, found[:_MOST_NAMES])) + (" and more" if len(found) > _MOST_NAMES else "")
            text = f"folders in incoming are not taken, only the files that are put there themselves: {names}"
            self._journal.write(text, WARNING, FILE=found[0].encode(errors="surrogateescape"))

    def _scan(self) -> None:
        self._watch(self._watcher.scan)

    def _watch(self, step: Step) -> None:
        """Do a step of the watcher; where the file system fails, scan the folder later."""
        try:
            step()
        except OSError as error:
            self._dispatcher.storage.fail(error)
            self._watcher.rescan(RETRY_SECONDS)

    # --- taking files -------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        is_open = not (self._dispatcher.is_stopping or self._pool.needs_another)
        return is_open and len(self._dispatcher) < self._pool.slots

    def _storage_fails(self) -> bool:
        return bool(self._dispatcher.storage.failure)

    def _fill_slots(self) -> None:
        while self._has_room() and self._dispatcher.has_work():
            if self._memory_is_short():
                self._check_memory_at = time.monotonic() + _MEMORY_SECONDS
                return
            self._dispatcher.begin_one()
        self._check_memory_at = None

    def _memory_is_short(self) -> bool:
        reserve = self._config.memory_reserve
        return reserve > 0 and get_available_memory_bytes() < reserve

    # --- the supervisor -----------------------------------------------------------------------------

    def _start_supervisor(self) -> None:
        for warning in self._pool.start():
            self._journal.write(warning, WARNING)
        self._watched = self._pool.fileno()
        self._selector.register(self._watched, selectors.EVENT_READ, self._collect)

    def _collect(self) -> None:
        self._finished += self._pool.finished()

    def _replace_supervisor(self) -> None:
        """Replace a lost or outdated supervisor, as soon as it runs no attempt."""
        if not self._pool.needs_another or len(self._pool) or self._dispatcher.is_stopping:
            return
        if self._watched is not None:
            self._selector.unregister(self._watched)
            self._watched = None
        self._pool.close()
        self._start_supervisor()

    # --- signals ------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        for number in self._signals.take():
            if number == signal.SIGHUP:
                self._reload()
            elif self._dispatcher.is_stopping:
                self._pool.cancel()
            else:
                self._stop()

    def _stop(self) -> None:
        seconds = self._config.drain_seconds
        self._dispatcher.stop()
        self._drain_ends_at = time.monotonic() + seconds
        self._notifier.stopping(seconds + _STOP_MARGIN)
        self._journal.write(f"stops; {len(self._pool)} in work may take {seconds:g} s to end", NOTICE)

    def _is_over(self) -> bool:
        """Whether a stopping service has nothing left to do, or nothing that a failing disk lets it do."""
        if not self._dispatcher.is_stopping or len(self._pool) or self._finished:
            return False
        return not len(self._dispatcher.storage) or self._drain_ends_at is None

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            config = read_config(self._path, running=self._config.fixed)
        except ConfigError as error:
            self._metrics.reload(is_good=False)
            for mistake in error.mistakes:
                self._journal.write(mistake, ERROR)
            self._journal.write("the configuration stays as it was, as the new one has mistakes", ERROR)
        else:
            self._metrics.reload(is_good=True)
            self._config = self._dispatcher.config = config
            self._pool.reconfigure(config)
            self._spool.output_suffix = config.worker.output_suffix
            self._watcher.settle_seconds = config.settle_seconds
            self._scan()
            self._journal.write(f"the configuration was read again from {self._path}", NOTICE)
        self._notifier.ready()
