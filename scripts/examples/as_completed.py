"""Pattern (b): take each result as it comes, with a progress bar.

python scripts/examples/as_completed.py INPUT_FOLDER OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from disarm import disarm_file
from tqdm import tqdm

from gwsandbox import GlasswallProcessManager, Task


def main(input_folder: Path, output_folder: Path) -> None:
    """Disarm a folder; print every result when it is there."""
    start_time = time.time()
    input_files = sorted(path for path in input_folder.rglob("*") if path.is_file())
    with GlasswallProcessManager(max_workers=None, worker_timeout_seconds=5, memory_limit_in_gib=4) as process_manager:
        for input_file in tqdm(input_files, desc="Queueing files"):
            output_file = output_folder / input_file.relative_to(input_folder)
            process_manager.queue_task(Task(func=disarm_file, args=(input_file, output_file)))

        for task_result in tqdm(process_manager.as_completed(), total=len(input_files), desc="Processing tasks"):
            print(task_result)
    print(f"Elapsed: {time.time() - start_time} seconds")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
