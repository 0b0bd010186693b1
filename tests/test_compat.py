"""Existing scripts: the three programs of the article, with only their import lines changed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from string import Template
from typing import Any

import pytest
from support import BackendName, Program

pytest.importorskip("tqdm")

# The session that the programs were written for, as far as they use it.
STAND_IN = """
import os, types

class Editor:
    def __init__(self, library_directory):
        assert os.path.isdir(library_directory)

    def export_file(self, input_file, output_file=None, content_management_policy=None):
        assert content_management_policy == "policy: sanitise"
        with open(input_file, "rb") as file:
            data = file.read()
        if data.startswith(b"bad"):
            raise RuntimeError("cannot be exported")
        exported = b"PK" + data
        if output_file is None:
            return exported
        os.makedirs(os.path.dirname(output_file), exist_ok=True)
        with open(output_file, "wb") as file:
            file.write(exported)
        return exported

class _Policies:
    @staticmethod
    def Editor(default):
        return f"policy: {default}"

def list_file_paths(folder):
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in sorted(names)]

content_management = types.SimpleNamespace(policies=_Policies)
utils = types.SimpleNamespace(list_file_paths=list_file_paths)
config = types.SimpleNamespace(logging=types.SimpleNamespace(console=types.SimpleNamespace(setLevel=lambda level: None)))
"""

PROGRAM = Template(
    """
import os
import time
$IMPORT_TQDM
import glasswall
from glasswall.multiprocessing import GlasswallProcessManager, Task
$IMPORT_MEMORY_USAGE
INPUT_DIRECTORY = r"C:\\gwpw\\input"
OUTPUT_DIRECTORY = r"C:\\gwpw\\output\\editor\\multiprocessing"
LIBRARY_DIRECTORY = r"C:\\gwpw\\libraries\\10.0"

glasswall.config.logging.console.setLevel("CRITICAL")
EDITOR = glasswall.Editor(LIBRARY_DIRECTORY)
gw_policy = glasswall.content_management.policies.Editor(default="sanitise")


def worker_function(*args, **kwargs):
    ${RETURN}EDITOR.export_file(*args, **kwargs)


def main():
    start_time = time.time()
$CHOOSE_WORKERS
    input_files = glasswall.utils.list_file_paths(INPUT_DIRECTORY)
    with GlasswallProcessManager(max_workers=$WORKERS, worker_timeout_seconds=5, memory_limit_in_gib=4) as process_manager:
        for input_file in $EACH_INPUT:
$CHOOSE_OUTPUT
            task = Task(
                func=worker_function,
                args=tuple(),
                kwargs=dict(
                    input_file=input_file,
                    $OUTPUT
                    content_management_policy=gw_policy,
                ),
            )
            process_manager.queue_task(task)

$READ_RESULTS

    print(f"Elapsed: {time.time() - start_time} seconds")


if __name__ == "__main__":
    main()
"""
)
TO_FILES = {
    "IMPORT_MEMORY_USAGE": "",
    "RETURN": "",
    "CHOOSE_WORKERS": "",
    "WORKERS": "None",
    "CHOOSE_OUTPUT": """
            relative_path = os.path.relpath(input_file, INPUT_DIRECTORY)
            output_file = os.path.join(OUTPUT_DIRECTORY, relative_path) + ".zip"
""",
    "OUTPUT": "output_file=output_file,",
}
WITH_BARS = {
    "IMPORT_TQDM": "\nfrom tqdm import tqdm\n",
    "EACH_INPUT": 'tqdm(input_files, desc="Queueing files", miniters=len(input_files) // 10)',
    "READ_RESULTS": """
        for task_result in tqdm(process_manager.as_completed(), total=len(input_files), desc="Processing tasks", miniters=len(input_files) // 100):
            print(task_result)
""",
}
A_LIST = PROGRAM.substitute(
    TO_FILES,
    IMPORT_TQDM="",
    EACH_INPUT="input_files",
    READ_RESULTS="""
    for task_result in process_manager.task_results:
        print(task_result)
""",
)
AS_COMPLETED = PROGRAM.substitute(TO_FILES | WITH_BARS)
TO_MEMORY = PROGRAM.substitute(
    WITH_BARS,
    IMPORT_MEMORY_USAGE="from glasswall.multiprocessing.memory_usage import get_available_memory_gib\n",
    RETURN="return ",
    CHOOSE_WORKERS="""
    available_memory_gib = get_available_memory_gib()
    print(f"Available memory: {available_memory_gib} GiB")
    # Set max_workers to lowest between cpu_count or available memory // 4 (4gib per process)
    cpu_count = os.cpu_count() or 1
    max_workers = int(min(cpu_count, available_memory_gib // 4))
    print(f"Max workers: {max_workers}")
""",
    WORKERS="max_workers",
    CHOOSE_OUTPUT="            # No output_file specified, export_file will run in file to memory mode",
    OUTPUT="",
    READ_RESULTS=WITH_BARS["READ_RESULTS"]
    + """
            # Do something with export zip file bytes in memory
            if task_result.result:
                print(f"Export zip file size is: {len(task_result.result)} bytes for input_file: '{task_result.task.kwargs['input_file']}'")
            # task_result no longer referenced and is garbage collected here, freeing up memory
""",
)

FILES = {"TestFile_11.doc": b"first", "TestFile_9.doc": b"bad", "sub/PDFWithGifAndJpeg.pdf": b"third" * 100}

RESULT = re.compile(
    r"^TaskResult\(task=Task\(func=worker_function, args=\(\), kwargs=\(input_file='.*, success=(True|False), "
    r"result=(.+), exception=(.+), exit_code=(\d), timeout_seconds=5, memory_limit_in_gib=4, "
    r"start_time=[\d.]+, end_time=[\d.]+, elapsed_time=[\d.e-]+, timed_out=False, "
    r"max_memory_used_in_gib=[\d.e-]+, out_of_memory=False"
)


def adapt(program: str, folder: Path) -> str:
    """The program with only its import lines, and for this machine its three folders, changed."""
    program = program.replace(
        "from glasswall.multiprocessing.memory_usage import", "from gwsandbox.memory_usage import"
    )
    program = program.replace("from glasswall.multiprocessing import", "from gwsandbox import")
    for name, path in (("INPUT", "input"), ("OUTPUT", "output"), ("LIBRARY", "library")):
        program = re.sub(rf'{name}_DIRECTORY = r".*"', f'{name}_DIRECTORY = r"{folder / path}"', program)
    return program


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "library").mkdir()
    (tmp_path / "glasswall.py").write_text(STAND_IN)
    for name, data in FILES.items():
        path = tmp_path / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path


def output_of(program: str, folder: Path, backend: BackendName) -> str:
    (folder / "program.py").write_text(adapt(program, folder))
    force = (
        "" if backend == "cgroup" else "import gwsandbox.backends.cgroup.delegation as r; r.MOUNT = '/nonexistent'; "
    )
    source = f"""
import runpy, sys, warnings
import gwsandbox
warnings.simplefilter("ignore", gwsandbox.DegradedWarning)
{force}
sys.path.insert(0, {str(folder)!r})
runpy.run_path({str(folder / "program.py")!r}, run_name="__main__")
"""
    with Program(source, stderr=subprocess.PIPE) as running:
        assert running.process.stderr is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("Elapsed: "):
            lines.append(running.line())
        assert running.wait() == 0
        # tqdm makes a lock of multiprocessing's, for which Python 3.14 starts a process that ends a moment after the
        # program. It holds stderr, so a read of that to its end waits for it.
        with running.process.stderr as bars:
            assert (b"Processing tasks" in bars.read()) == ("tqdm" in program)
    return "\n".join(lines)


def results_of(text: str) -> list[tuple[Any, ...]]:
    lines = [line for line in text.splitlines() if line.startswith("TaskResult(")]
    matches = [RESULT.match(line) for line in lines]
    assert len(matches) == len(FILES)
    assert all(matches), lines
    return sorted(match.groups() for match in matches if match)


FAILED = ("False", "None", "RuntimeError('cannot be exported')", "1")


def test_producing_a_list(folder: Path, backend: BackendName) -> None:
    text = output_of(A_LIST, folder, backend)
    done = ("True", "None", "None", "0")
    assert results_of(text) == [FAILED, done, done]
    assert (folder / "output/TestFile_11.doc.zip").read_bytes() == b"PKfirst"
    assert (folder / "output/sub/PDFWithGifAndJpeg.pdf.zip").read_bytes() == b"PK" + b"third" * 100
    assert not (folder / "output/TestFile_9.doc.zip").exists()


def test_yielding_as_completed(folder: Path, backend: BackendName) -> None:
    text = output_of(AS_COMPLETED, folder, backend)
    assert [success for success, *_ in results_of(text)] == ["False", "True", "True"]
    assert (folder / "output/TestFile_11.doc.zip").read_bytes() == b"PKfirst"


def test_file_to_memory(folder: Path, backend: BackendName) -> None:
    text = output_of(TO_MEMORY, folder, backend)
    long = repr(b"PK" + b"third" * 100)[:100] + "..."
    assert results_of(text) == [FAILED, ("True", repr(b"PKfirst"), "None", "0"), ("True", long, "None", "0")]
    assert "Export zip file size is: 7 bytes for input_file: '" in text
    assert "Export zip file size is: 502 bytes for input_file: '" in text
    assert re.search(r"^Max workers: \d+$", text, re.MULTILINE)
