"""``python -m gwsandbox``: the command line."""

from gwsandbox.cli import main

main()
