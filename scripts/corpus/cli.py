"""The command line of `scripts/make-corpus`."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from corpus.build import RECIPES, make_all, prepare
from corpus.origins import origins
from corpus.workshop import OUT, CorpusError

CORPUS = Path(__file__).resolve().parents[2] / "tests" / "corpus"
DESCRIPTION = "Make the documents of tests/corpus again, and ORIGINS.md; as root on a Debian machine."


def main() -> int:
    """Make all documents and put them into the folder; the process's exit code."""
    parser = argparse.ArgumentParser(prog="scripts/make-corpus", description=DESCRIPTION)
    parser.add_argument("folder", nargs="?", type=Path, default=CORPUS, help="default: tests/corpus")
    target: Path = parser.parse_args().folder.resolve()
    if os.geteuid() != 0:
        print("make-corpus installs programs: run it as root", file=sys.stderr)
        return 1
    try:
        prepare()
        make_all()
    except CorpusError as error:
        print(error, file=sys.stderr)
        return 1
    target.mkdir(parents=True, exist_ok=True)
    for folder in {Path(recipe.name).parts[0] for recipe in RECIPES}:
        shutil.rmtree(target / folder, ignore_errors=True)
        shutil.copytree(OUT / folder, target / folder)
    (target / "ORIGINS.md").write_text(origins(RECIPES), encoding="utf-8")
    print(f"{len(RECIPES)} documents in {target}")
    return 0
