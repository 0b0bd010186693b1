"""LibreOffice as a program that runs without a screen and takes orders over a pipe.

Debian's Python has its bridge, the module `uno`, once the programs are installed. The bridge makes its objects and its
other modules at run time, so neither has types.
"""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpus.workshop import BUILD, ENVIRONMENT

Uno = Any
"""An object of LibreOffice's."""

_PATIENCE = 120  # seconds until a started LibreOffice answers
_PIPE = "pipe,name=gwsandbox-corpus;urp"


class Office:
    """One LibreOffice. Its methods work inside `with office.running()`."""

    def __init__(self) -> None:
        self._context: Uno = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start it, and end it with the block."""
        command = ["nice", "soffice", "--headless", "--norestore", "--nologo", f"--accept={_PIPE};"]
        process = subprocess.Popen([*command, f"-env:UserInstallation=file://{BUILD}/profile"], env=ENVIRONMENT)
        self._context = _connect(f"uno:{_PIPE};StarOffice.ComponentContext")
        desktop = self._service("com.sun.star.frame.Desktop")
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # the program may end before it sends the answer
                desktop.terminate()
            process.wait()

    def _service(self, name: str) -> Uno:
        return self._context.ServiceManager.createInstanceWithContext(name, self._context)

    @contextlib.contextmanager
    def opened(self, address: str) -> Iterator[Uno]:
        """The document at an address, which closes with the block; `private:factory/…` is a new one."""
        desktop = self._service("com.sun.star.frame.Desktop")
        document = desktop.loadComponentFromURL(address, "_blank", 0, properties(Hidden=True))
        try:
            yield document
        finally:
            document.close(True)

    def graphic(self, path: Path) -> Uno:
        """A picture, to be put into a document."""
        provider = self._service("com.sun.star.graphic.GraphicProvider")
        return provider.queryGraphic(properties(URL=f"file://{path}"))


def _connect(address: str) -> Uno:
    import uno

    local = uno.getComponentContext()
    resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return resolver.resolve(address)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def properties(**values: object) -> tuple[Uno, ...]:
    """Named values as LibreOffice takes them."""
    from com.sun.star.beans import PropertyValue  # `import uno` makes it importable

    made = []
    for name, value in values.items():
        item = PropertyValue()
        item.Name, item.Value = name, value
        made.append(item)
    return tuple(made)


def property_array(**values: object) -> Uno:
    """The same as one value, for where the type of the sequence counts."""
    import uno

    return uno.Any("[]com.sun.star.beans.PropertyValue", properties(**values))


def struct(name: str, *values: int) -> Uno:
    """A structure of LibreOffice's, by its name below `com.sun.star`."""
    import uno

    return uno.createUnoStruct(f"com.sun.star.{name}", *values)


def replace_event(document: Uno, event: str, bound: Uno) -> None:
    """Bind an event of a document; only a call through the bridge passes on the type of the sequence."""
    import uno

    uno.invoke(document.Events, "replaceByName", (event, bound))


def store(document: Uno, target: Path, filter_name: str, **options: object) -> None:
    """Write a document in the format of one of LibreOffice's filters."""
    data = property_array(**options)
    document.storeToURL(f"file://{target}", properties(FilterName=filter_name, FilterData=data))
