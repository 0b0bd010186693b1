"""Serves the metrics page on a port of the loopback interface, in the service's own loop.

The server of prometheus-client is a thread, and the service cannot fork safely beside a thread. This server
answers any GET with the page, and never blocks.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable

from gwsandbox.model.errors import SandboxError

_MOST_CLIENTS = 16
_LONGEST_REQUEST = 8192
_CLIENT_SECONDS = 5.0
_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
_REFUSAL = b"HTTP/1.0 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\n\r\n"


class MetricsServer:
    """Listens on a port, and answers with the text of ``page()``.

    Raises:
        SandboxError: The port cannot be bound.
    """

    def __init__(self, port: int, page: Callable[[], bytes], selector: selectors.BaseSelector) -> None:
        self._page = page
        self._selector = selector
        self._clients: dict[socket.socket, float] = {}
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            remedy = "choose another metrics.port"
            raise SandboxError("listen", path=f"127.0.0.1:{port}", errno=error.errno or 0, remedy=remedy) from error
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def port(self) -> int:
        """The port's number."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            self._drop_slow_clients()
            self._clients[client] = time.monotonic()
            request = bytearray()
            self._selector.register(client, selectors.EVENT_READ, lambda: self._read(client, request))

    def _drop_slow_clients(self) -> None:
        """Drop clients that take too long, and where there are too many the oldest one."""
        now = time.monotonic()
        for client, since in list(self._clients.items()):
            if now - since > _CLIENT_SECONDS or len(self._clients) >= _MOST_CLIENTS:
                self._drop(client)

    def _read(self, client: socket.socket, request: bytearray) -> None:
        try:
            data = client.recv(_LONGEST_REQUEST)
        except OSError:
            data = b""
        request += data
        if not data or len(request) > _LONGEST_REQUEST:
            self._drop(client)
        elif b"\r\n\r\n" in request:
            self._answer(client, bytes(request))

    def _answer(self, client: socket.socket, request: bytes) -> None:
        answer = _REFUSAL
        if request.startswith(b"GET "):
            page = self._page()
            answer = _HEAD % len(page) + page
        rest = bytearray(answer)
        self._selector.modify(client, selectors.EVENT_WRITE, lambda: self._write(client, rest))

    def _write(self, client: socket.socket, rest: bytearray) -> None:
        try:
            del rest[: client.send(rest)]
        except OSError:
            rest.clear()
        if not rest:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        if self._clients.pop(client, None) is None:
            return  # dropped while its event was pending
        self._selector.unregister(client)
        client.close()
