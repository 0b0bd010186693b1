"""Records of the logger ``gwsandbox``: how each task ended. Nothing is logged where the caller does not use logging.

The module ``logging`` is not imported here: it imports ``threading``, for which every later fork pays.
"""

from __future__ import annotations

import shlex
import sys

from gwsandbox.model.limits import OPTIONS, Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, words_of
from gwsandbox.model.text import shorten_detail, shown

_NAME = "gwsandbox"


def log_result(result: TaskResult, limits: Limits) -> None:
    """Log how a task ended: DEBUG where it succeeded, ERROR where gwsandbox failed, else INFO.

    Args:
        result: Of the task.
        limits: Of the task, with those of the run.
    """
    logging = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger(_NAME)
    level = logging.INFO
    if result.success:
        level = logging.DEBUG
    elif result.outcome is Outcome.SANDBOX_ERROR:
        level = logging.ERROR
    if not logger.isEnabledFor(level):
        return
    text = f"{result.outcome.name} {shorten_detail(shlex.join(words_of(result.task)))}"
    if result.detail:
        text += f": {shorten_detail(result.detail)}"
    if not result.success and isinstance(result.task, Command):
        text += f"; to repeat it: {repeating(result.task, limits)}"
    logger.log(level, "%s", text)


def repeating(command: Command, limits: Limits) -> str:
    """The command line that runs ``command`` under the same limits, in a shell."""
    words = ["gwsandbox", "run"]
    for name, value in limits.requested().items():
        words += OPTIONS[name], f"{value:.9g}" if isinstance(value, float) else str(value)
    line = shown(shlex.join([*words, "--", *command.argv]))
    return line if command.cwd is None else f"cd {shown(shlex.quote(command.cwd))} && {line}"
