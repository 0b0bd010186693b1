"""The supervisor's one epoll loop: descriptors to wait for, each with what to do then."""

from __future__ import annotations

import select
from collections.abc import Callable


class EventLoop:
    """Waits for descriptors, and calls the handler of each that is ready."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def fileno(self) -> int:
        """The descriptor of the epoll instance."""
        return self._epoll.fileno()

    def watch(self, fd: int, mask: int, handler: Callable[[], None]) -> None:
        """Call ``handler`` whenever an event of ``mask`` is there. A call may come too early.

        Raises:
            OSError: The kernel refused; then nothing is watched.
        """
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Watch ``fd`` no more; to be called before it is closed, and safe where it was not watched.

        Not left to close(): another process may hold a duplicate, and would keep it registered.
        """
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, timeout: float | None) -> None:
        """Wait, at most ``timeout`` seconds, and handle what has come."""
        for fd, _ in self._epoll.poll(timeout):
            # An earlier handler may have closed a descriptor whose event is further down the list.
            if handler := self._handlers.get(fd):
                handler()
