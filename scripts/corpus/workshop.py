"""The folder in which the documents are made, and how programs run there."""

import subprocess
from pathlib import Path

# A fixed place: LibreOffice writes the path of an external link into the document.
BUILD = Path("/tmp/gwsandbox-corpus")  # noqa: S108 - the reason is above
OUT = BUILD / "out"
"""The documents, by their names in the corpus."""

SOURCES = BUILD / "sources"
"""What was in the packages that are unpacked and not installed."""

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(BUILD / "home"), "LC_ALL": "C.UTF-8"}
ENVIRONMENT |= {"DEBIAN_FRONTEND": "noninteractive", "QT_QPA_PLATFORM": "offscreen", "MPLBACKEND": "agg"}


class CorpusError(Exception):
    """A document cannot be made; the text says which program failed, and its last words."""


def run(*command: str | Path, cwd: Path = BUILD, stdin: str | None = None) -> str:
    """Run a program; what it wrote to stdout.

    Raises:
        CorpusError: Its exit code is not 0.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        ["nice", *words], cwd=cwd, env=ENVIRONMENT, input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CorpusError(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def written(name: str, text: str) -> Path:
    """A file with this text in the build folder."""
    path = BUILD / name
    path.write_text(text, encoding="utf-8")
    return path
