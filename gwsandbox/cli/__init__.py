"""The command line. Its packages are an extra: programs that only import gwsandbox do without them."""

import sys

_PACKAGES = frozenset({"typer", "rich"})


def main() -> None:
    """The console script."""
    try:
        from gwsandbox.cli.app import run_app
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        sys.stderr.write(f"gwsandbox: the command line needs the package {error.name}; pip install 'gwsandbox[cli]'\n")
        sys.exit(125)
    run_app()
