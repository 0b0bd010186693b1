"""A side: a fresh process with one tool. Reads orders from stdin and answers on stdout.

They are marshalled dictionaries, as the module for that is there without an import: what a side has loaded is
part of what its forks cost. The first says what to be, and every further one is a round's arguments.
"""

import gc
import marshal
import os
import sys

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
Message = dict[str, object]
_kept: list[object] = []


def main() -> None:
    # Tasks and tools may write to descriptor 1; the answers go where only they go.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(content: Message) -> None:
        marshal.dump(content, answers)
        answers.flush()

    wish = marshal.load(sys.stdin.buffer)
    if wish["heap"]:
        _kept.append(make_heap(*wish["heap"]))
    gc.collect()
    answer({"pid": os.getpid()})
    while True:
        try:
            order = marshal.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # freeing a heap of gigabytes takes seconds
        answer(take(wish["work"], wish["tool"], wish["terms"], order))


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


def take(work: str, tool: str, terms: Message, order: Message) -> Message:
    """Do one round. A tool that is not there or fails is an answer too, and no reason to stop."""
    module = __import__(f"benchlib.{WORKS[work]}", fromlist=[work])
    try:
        answer: Message = getattr(module, work)(tool, terms, **order)
    except (ModuleNotFoundError, FileNotFoundError) as missing:
        return {"absent": f"not installed ({missing})"}
    except Exception as error:  # noqa: BLE001 - a peer's failure is a finding
        why = str(error) if type(error).__name__ == "CannotRun" else f"{type(error).__name__}: {error}"
        return {"absent": f"does not work here: {why}"}
    return answer


if __name__ == "__main__":
    main()
