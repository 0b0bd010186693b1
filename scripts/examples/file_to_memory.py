"""Pattern (c): results come back as bytes, and memory decides how many run at a time.

python scripts/examples/file_to_memory.py INPUT_FOLDER
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from disarm import disarm_bytes
from tqdm import tqdm

from gwsandbox import GlasswallProcessManager, Task
from gwsandbox.memory_usage import get_available_memory_gib


def main(input_folder: Path) -> None:
    """Disarm a folder into memory, 4 GiB for each process; print the size of each result."""
    start_time = time.time()
    cpu_count = os.cpu_count() or 1
    # At least one: what is short of 4 GiB is still held by each task's own limit.
    max_workers = max(1, int(min(cpu_count, get_available_memory_gib() // 4)))
    print(f"Max workers: {max_workers}")

    input_files = sorted(path for path in input_folder.rglob("*") if path.is_file())
    with GlasswallProcessManager(
        max_workers=max_workers, worker_timeout_seconds=5, memory_limit_in_gib=4
    ) as process_manager:
        for input_file in input_files:
            process_manager.queue_task(Task(func=disarm_bytes, kwargs={"input_file": input_file}))

        for task_result in tqdm(process_manager.as_completed(), total=len(input_files), desc="Processing tasks"):
            if task_result.result:
                name = task_result.task.kwargs["input_file"].name
                print(f"{len(task_result.result)} bytes for {name}")
            # The result is dropped here, and its memory with it.
    print(f"Elapsed: {time.time() - start_time} seconds")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
