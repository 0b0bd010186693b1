"""Programs that people run on documents, under limits that fit them and with standard hardening: nothing is in their way.

What is not installed is skipped by name. Nothing but the programs themselves decides the outcome: each is right only
if its own work is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support import BackendName

from gwsandbox import Command, Limits, Outcome, run

CORPUS = Path(__file__).parent / "corpus"
ODT = min((CORPUS / "odf").glob("*.odt"))
PDF = min((CORPUS / "pdf").glob("*.pdf"))
PNG = min((CORPUS / "images").glob("*.png"))

JAVA = "class Work { public static void main(String[] a) { System.out.println(new byte[40][1 << 20].length); } }"
GO = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println(len(make([]byte, 32<<20))) }\n'
NODE = "const rows = []; for (let i = 0; i < 1e6; i++) rows.push({i}); console.log(rows.length)"


class Program(NamedTuple):
    """A program at its work.

    Args:
        name: What has to be installed.
        argv: Its command line, for a folder to work in.
        memory: A limit that fits it.
        made: What it leaves in the folder, or writes to stdout.
    """

    name: str
    argv: Callable[[Path], list[str]]
    memory: str
    made: str


def _java(folder: Path) -> list[str]:
    (folder / "Work.java").write_text(JAVA)
    return ["java", str(folder / "Work.java")]


def _go(folder: Path) -> list[str]:
    (folder / "work.go").write_text(GO)
    cache = f"GOCACHE={folder}/cache"
    return ["env", cache, "GO111MODULE=off", f"HOME={folder}", "go", "run", str(folder / "work.go")]


def _soffice(folder: Path) -> list[str]:
    profile = f"-env:UserInstallation=file://{folder}/profile"
    return ["soffice", "--headless", profile, "--convert-to", "pdf", "--outdir", str(folder), str(ODT)]


def _chromium(folder: Path) -> list[str]:
    # Its own sandbox wants namespaces, which standard hardening and a root of a container refuse.
    plain = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    return ["chromium", *plain, "--dump-dom", "data:text/html,<p>made by it"]


def _ffmpeg(folder: Path) -> list[str]:
    source = ["-f", "lavfi", "-i", "testsrc=duration=1:size=160x120:rate=5"]
    return ["ffmpeg", "-loglevel", "error", *source, str(folder / "made.mp4")]


def _gs(folder: Path) -> list[str]:
    quiet = ["-q", "-dSAFER", "-dBATCH", "-dNOPAUSE", "-sDEVICE=png16m", "-r30"]
    return ["gs", *quiet, f"-sOutputFile={folder}/made.png", str(PDF)]


def _mogrify(folder: Path) -> list[str]:
    return ["mogrify", "-resize", "50%", "-format", "jpg", "-path", str(folder), str(PNG)]


PROGRAMS = [
    Program("node", lambda _: ["node", "-e", NODE], "512MiB", "1000000"),
    Program("java", _java, "768MiB", "40"),
    Program("go", _go, "1GiB", str(32 << 20)),
    Program("soffice", _soffice, "1GiB", f"{ODT.stem}.pdf"),
    Program("chromium", _chromium, "2GiB", "made by it"),
    Program("ffmpeg", _ffmpeg, "512MiB", "made.mp4"),
    Program("gs", _gs, "256MiB", "made.png"),
    Program("mogrify", _mogrify, "256MiB", f"{PNG.stem}.jpg"),
    Program("tesseract", lambda _: ["tesseract", str(PNG), "-"], "512MiB", ""),
]


@pytest.mark.thorough
@pytest.mark.parametrize("program", PROGRAMS, ids=[program.name for program in PROGRAMS])
def test_its_work_is_done(program: Program, backend: BackendName, tmp_path: Path) -> None:
    if shutil.which(program.name) is None:
        pytest.skip(f"{program.name} is not installed")
    limits = Limits(memory=program.memory, wall_seconds=300, pids=500, cpu_seconds=250, output="16MiB")
    result = run(Command(program.argv(tmp_path)), limits=limits, backend=backend)
    assert result.outcome is Outcome.SUCCEEDED, (result.detail, result.result)
    assert (tmp_path / program.made).exists() or program.made in result.result.stdout.decode()
    assert result.usage.memory_peak_bytes or result.usage.sources["memory_peak_bytes"].startswith("not measured: ")
