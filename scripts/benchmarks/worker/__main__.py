"""A side: reads orders from stdin and answers on stdout.

Messages are marshalled dictionaries, because that module is there without an import: what a side has loaded is part
of what its forks cost. The first message says what the side is; each further one is a round's arguments.
"""

import gc
import importlib
import marshal
import os
import sys

TYPE_CHECKING = False  # the module typing would be forked along
if TYPE_CHECKING:
    from benchmarks.messages import Wish

# Which module each kind of work is in; only that one is loaded.
WORKS = {
    "forks": "floors",
    "fork_execs": "floors",
    "fork_deadlines": "floors",
    "piped_values": "floors",
    "calls": "works",
    "long_run": "works",
    "big_values": "works",
    "growth": "works",
    "commands": "works",
}


def main() -> None:
    # Tasks and tools may write to descriptor 1; only answers go to this copy.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(content: dict[str, object]) -> None:
        marshal.dump(content, answers)
        answers.flush()

    wish: Wish = marshal.load(sys.stdin.buffer)
    heap = make_heap(*wish["heap"]) if wish["heap"] else None  # noqa: F841 - lives as long as the side
    gc.collect()
    answer({"pid": os.getpid()})
    while True:
        try:
            order = marshal.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # freeing a heap of gigabytes takes seconds
        answer(take(wish, order))


def make_heap(kind: str, size: int) -> object:
    """About ``size`` bytes of live heap: "bytes", one touched block; "objects", small lists of one number."""
    if kind == "bytes":
        return bytearray(b"x" * (1 << 20)) * (size >> 20)
    gc.disable()
    try:
        # A list with the collector's head, its items, the number, our pointer.
        each = 56 + 16 + 8 + 32 + 8
        return [[number] for number in range(1000, 1000 + size // each)]
    finally:
        gc.enable()


def take(wish: "Wish", order: dict[str, object]) -> dict[str, object]:
    """Do one round. A tool that is absent or fails is an answer too, and no reason to stop."""
    work = wish["work"]
    module = importlib.import_module(f"benchmarks.worker.{WORKS[work]}")
    try:
        answer: dict[str, object] = getattr(module, work)(wish["tool"], wish["terms"], **order)
    except (ModuleNotFoundError, FileNotFoundError) as missing:
        return {"absent": f"not installed ({missing})"}
    except Exception as error:  # noqa: BLE001 - a peer's failure is a finding
        why = str(error) if type(error).__name__ == "CannotRun" else f"{type(error).__name__}: {error}"
        return {"absent": f"does not work here: {why}"}
    return answer


if __name__ == "__main__":
    main()
