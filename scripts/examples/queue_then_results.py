"""Pattern (a): queue everything, leave the block, read ``task_results``.

python scripts/examples/queue_then_results.py INPUT_FOLDER OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from disarm import disarm_file

from gwsandbox import GlasswallProcessManager, Task


def main(input_folder: Path, output_folder: Path) -> None:
    """Disarm a folder; print every result when all are done."""
    start_time = time.time()
    with GlasswallProcessManager(max_workers=None, worker_timeout_seconds=5, memory_limit_in_gib=4) as process_manager:
        for input_file in sorted(path for path in input_folder.rglob("*") if path.is_file()):
            output_file = output_folder / input_file.relative_to(input_folder)
            task = Task(func=disarm_file, args=(), kwargs={"input_file": input_file, "output_file": output_file})
            process_manager.queue_task(task)

    for task_result in process_manager.task_results:
        print(task_result)
    print(f"Elapsed: {time.time() - start_time} seconds")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
