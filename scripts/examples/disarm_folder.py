"""The main job: disarm a folder of documents in parallel, each in a sandbox of its own.

Without arguments it takes the corpus of real documents, with hostile ones among them that it makes on the
spot; the clean documents go into a folder under the system's temporary one. At the end comes a table: outcome,
time, peak memory, file.

    python scripts/examples/disarm_folder.py [FOLDER [OUTPUT]]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from disarm import disarm_file
from hostile_documents import make_hostile_documents
from hostile_documents.samples import CORPUS
from tqdm import tqdm

from gwsandbox import Limits, Outcome, ProcessManager, Task, TaskResult

LIMITS = Limits(memory="512MiB", wall_seconds=20, pids=32, file_size="1GiB")


def documents(folder: Path) -> list[Path]:
    """All files below ``folder``, without texts about them."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")


def disarm_all(folders: list[Path], output: Path) -> list[TaskResult]:
    """Disarm every document in ``folders`` into ``output``; results in order of completion."""
    tasks = [
        Task(disarm_file, (path, output / folder.name / path.relative_to(folder)))
        for folder in folders
        for path in documents(folder)
    ]
    with ProcessManager(limits=LIMITS) as manager:
        manager.queue_tasks(tasks)
        return list(tqdm(manager.as_completed(), total=len(tasks), desc="Disarming", disable=None))


def input_of(result: TaskResult) -> Path:
    """The document that the result is about."""
    assert isinstance(result.task, Task)
    return Path(result.task.args[0])


def print_table(results: list[TaskResult]) -> None:
    """One line per document; for those that did not come out, why."""
    print(f"{'outcome':<14} {'time':>8} {'peak':>9}  file")
    for result in sorted(results, key=lambda result: (not result.success, str(input_of(result)))):
        peak = result.usage.memory_peak_bytes
        shown = "?" if peak is None else f"{peak / 2**20:.1f} MiB"
        print(f"{result.outcome.name:<14} {result.elapsed_time or 0:6.2f} s {shown:>10} {input_of(result).name}")
        if not result.success:
            print(f"{'':<14} {'':>8} {'':>10}   {result.detail[:150]}")


def main() -> int:
    """Run from the command line; 0 where every document had a verdict."""
    parser = argparse.ArgumentParser(description="Disarm a folder of documents, each in a sandbox of its own.")
    parser.add_argument("folder", nargs="?", type=Path, help="default: the corpus, and hostile documents")
    parser.add_argument("output", nargs="?", type=Path, help="default: a new temporary folder")
    arguments = parser.parse_args()
    output = arguments.output or Path(tempfile.mkdtemp(prefix="disarmed-"))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gwsandbox-example-") as scratch:
        folders = [arguments.folder or CORPUS]
        if arguments.folder is None:
            hostile = Path(scratch) / "hostile"
            hostile.mkdir()
            make_hostile_documents(hostile)
            folders.append(hostile)
        results = disarm_all(folders, output)
    print_table(results)
    counts = Counter(result.outcome for result in results)
    held = results[0].enforcement.limits.get("memory", "nothing") if results else "nothing"
    print(
        f"\n{', '.join(f'{count} {outcome.name}' for outcome, count in counts.most_common())}"
        f" in {time.monotonic() - started:.1f} s; memory held by {held}; clean documents are in {output}"
    )
    return 1 if counts[Outcome.SANDBOX_ERROR] else 0


if __name__ == "__main__":
    sys.exit(main())
