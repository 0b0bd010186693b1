"""A side: a fresh process with one tool. Reads orders from stdin and answers on stdout, a line of JSON each.

The first line says what to be; every further one is a round's arguments.
"""

import gc
import json
import os
import sys
from typing import Any

from benchlib import proc, works
from benchlib.tools import CannotRun, Terms


def main() -> None:
    # Tasks and tools may write to descriptor 1; the answers go where only they go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    wish = json.loads(sys.stdin.readline())
    terms = Terms(**wish["terms"])
    heap = works.make_heap(*wish["heap"]) if wish["heap"] else None
    gc.collect()
    answer({"pid": os.getpid(), "heap": proc.resident(os.getpid()) if heap is not None else 0})
    for line in iter(sys.stdin.readline, ""):
        answer(_round(wish["work"], wish["tool"], terms, json.loads(line)))
    os._exit(0)  # freeing a heap of gigabytes takes seconds


def _round(work: str, tool: str, terms: Terms, order: dict[str, Any]) -> dict[str, Any]:
    try:
        return works.WORKS[work](tool, terms, **order)
    except (ModuleNotFoundError, FileNotFoundError) as missing:
        return {"absent": f"not installed ({missing})"}
    except CannotRun as why:
        return {"absent": f"does not work here: {why}"}
    except Exception as error:  # noqa: BLE001 - a peer's failure is a finding, and no reason to stop
        return {"absent": f"failed: {type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
