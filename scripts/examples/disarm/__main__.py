"""``python -m disarm INPUT OUTPUT`` in scripts/examples: the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from disarm import DisarmError, disarm_file


def main() -> int:
    """Disarm one document; the programs beside this package call its functions instead."""
    parser = argparse.ArgumentParser(prog="python -m disarm", description="Write a document without its active parts.")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    try:
        print(disarm_file(arguments.input, arguments.output))
    except (DisarmError, OSError) as error:
        print(f"{arguments.input}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
