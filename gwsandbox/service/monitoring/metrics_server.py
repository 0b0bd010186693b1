"""A page on a port of the loopback interface, served by the service's own loop.

prometheus-client's own server is a thread, beside which the service could not fork safely. This one answers
any GET with the page, and never waits for anybody.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable

from gwsandbox.model.errors import SandboxError

_MOST_VISITORS = 16
_LONGEST_REQUEST = 8192
_PATIENCE_SECONDS = 5.0
_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
_REFUSAL = b"HTTP/1.0 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\n\r\n"


class Port:
    """Listens, and answers with what ``page`` gives.

    Raises:
        SandboxError: The port cannot be had.
    """

    def __init__(self, port: int, page: Callable[[], bytes], selector: selectors.BaseSelector) -> None:
        self._page = page
        self._selector = selector
        self._visitors: dict[socket.socket, float] = {}
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            remedy = "choose another metrics.port"
            raise SandboxError("listen", path=f"127.0.0.1:{port}", errno=error.errno or 0, remedy=remedy) from error
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._welcome)

    @property
    def number(self) -> int:
        """Of the port."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        for visitor in list(self._visitors):
            self._part(visitor)
        self._selector.unregister(self._listener)
        self._listener.close()

    def _welcome(self) -> None:
        with contextlib.suppress(OSError):
            visitor, _ = self._listener.accept()
            visitor.setblocking(False)
            self._send_the_slow_away()
            self._visitors[visitor] = time.monotonic()
            heard = bytearray()
            self._selector.register(visitor, selectors.EVENT_READ, lambda: self._hear(visitor, heard))

    def _send_the_slow_away(self) -> None:
        """Who takes too long, and where there are too many the one who is here longest."""
        now = time.monotonic()
        for visitor, since in list(self._visitors.items()):
            if now - since > _PATIENCE_SECONDS or len(self._visitors) >= _MOST_VISITORS:
                self._part(visitor)

    def _hear(self, visitor: socket.socket, heard: bytearray) -> None:
        try:
            data = visitor.recv(_LONGEST_REQUEST)
        except OSError:
            data = b""
        heard += data
        if not data or len(heard) > _LONGEST_REQUEST:
            self._part(visitor)
        elif b"\r\n\r\n" in heard:
            self._answer(visitor, bytes(heard))

    def _answer(self, visitor: socket.socket, request: bytes) -> None:
        text = _REFUSAL
        if request.startswith(b"GET "):
            page = self._page()
            text = _HEAD % len(page) + page
        left = bytearray(text)
        self._selector.modify(visitor, selectors.EVENT_WRITE, lambda: self._say(visitor, left))

    def _say(self, visitor: socket.socket, left: bytearray) -> None:
        try:
            del left[: visitor.send(left)]
        except OSError:
            left.clear()
        if not left:
            self._part(visitor)

    def _part(self, visitor: socket.socket) -> None:
        if self._visitors.pop(visitor, None) is None:
            return  # sent away while its news was on the way
        self._selector.unregister(visitor)
        visitor.close()
