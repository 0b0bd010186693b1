"""joblib, which has executors and resource trackers of its own."""

from __future__ import annotations

import subprocess
from typing import Literal

import pytest
from support import BackendName, Program

StartMethod = Literal["fork", "forkserver"]


JOBLIB = """
import glob, warnings
warnings.simplefilter("ignore")
from joblib import Parallel, delayed
from gwsandbox import Limits, run
def maps_memory():
    import numpy
    return float(sum(Parallel(n_jobs=2, max_nbytes=1000)(delayed(numpy.sum)(numpy.ones(100_000)) for _ in range(3))))
def keeps_it_open():
    global PARALLEL
    PARALLEL = Parallel(n_jobs=2, max_nbytes=1000)
    PARALLEL.__enter__()
    import numpy
    return float(sum(PARALLEL(delayed(numpy.sum)(numpy.ones(100_000)) for _ in range(3))))
def folders():
    return set(glob.glob("/dev/shm/joblib*") + glob.glob("/tmp/joblib*"))
"""


@pytest.mark.joblib
@pytest.mark.parametrize("func", ["maps_memory", "keeps_it_open"])
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_folders_of_mapped_memory_are_removed(backend: BackendName, start_method: StartMethod, func: str) -> None:
    source = f"""
{JOBLIB}
before = folders()
result = run({func}, backend={backend!r}, start_method={start_method!r}, limits=Limits(wall_seconds=60))
print(result.result, result.detail, folders() - before)
"""
    with Program(source, stderr=subprocess.DEVNULL) as program:
        assert program.line() == "300000.0  set()"


@pytest.mark.joblib
def test_a_caller_that_has_used_it_lets_its_tasks_use_it(backend: BackendName) -> None:
    """loky uses its executor again, and a fork has not the thread that serves it."""
    source = f"""
{JOBLIB}
print(maps_memory(), flush=True)
print(run(maps_memory, backend={backend!r}, limits=Limits(wall_seconds=60)).result, flush=True)
print(maps_memory(), flush=True)
import multiprocessing.resource_tracker as its
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import resource_tracker as own
get_reusable_executor().shutdown(wait=True)
for module in (own, its):
    module._resource_tracker._stop()
import os
os._exit(0)  # else it starts one more tracker, which ends some time after it
"""
    with Program(source, stderr=subprocess.DEVNULL) as program:
        assert [program.line() for _ in range(3)] == ["300000.0"] * 3
        assert program.wait() == 0
