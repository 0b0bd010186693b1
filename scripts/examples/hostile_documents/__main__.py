"""``python -m hostile_documents FOLDER`` in scripts/examples: the command line."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hostile_documents import make_hostile_documents


def main() -> None:
    parser = argparse.ArgumentParser(description="Write hostile documents into a folder.")
    parser.add_argument("folder", type=Path)
    started = time.monotonic()
    for path in make_hostile_documents(parser.parse_args().folder):
        print(f"{path.stat().st_size:10,}  {path}")
    print(f"{time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
