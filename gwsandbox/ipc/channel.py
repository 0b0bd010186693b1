"""What the caller and its supervisor say to each other: packets over a Unix socket of type SOCK_SEQPACKET.

A packet is a head and a pickle; both ends are processes of ours. What a guest wrote travels inside as opaque bytes, or
as a descriptor, and the supervisor does not look into it. A packet arrives whole or not at all, with its descriptors,
so a sender that is interrupted can send the same packet again: the receiver knows it by the numbers
of its orders. A pickle that is larger than a packet travels in a memfd.
"""

from __future__ import annotations

import _socket
import array
import enum
import errno
import functools
import os
import pickle
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gwsandbox.ipc.call import read_stored, store
from gwsandbox.linux.errnos import GONE, NOT_NOW, Patience, errno_of
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import NOT_STARTED, Enforcement, Outcome, Usage
from gwsandbox.model.task import Command
from gwsandbox.model.verdict import Delivery

HEAD = struct.Struct("=BQQ")  # which descriptors come along; the numbers of the first and the last order, or report
_STORED, _ATTACHED = 1, 2  # the pickle is in the first descriptor; a descriptor comes with the message
STDIN, STDOUT, STDERR = 1, 2, 4  # which streams of a program come with its order
STORED = b"stored"  # instead of what a clean interpreter is to know: it is in the first descriptor
PACKET = 1 << 16  # bytes, head included; malloc maps and unmaps a larger buffer each time that one is received
ANCILLARY = socket.CMSG_SPACE(5 * array.array("i").itemsize)
RECEIVE_FLAGS = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_TRUNCATED = int(socket.MSG_CTRUNC)  # as a plain number: Python computes with an enum's members in Python
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
LOST = -errno.EMFILE  # in the place of a descriptor that could not be received: minus an errno
READ_SECONDS = 5.0  # that a packet may wait for the memory to be read with
_LATER_SECONDS = 0.02


class Order(NamedTuple):
    """Caller to supervisor: run this.

    Args:
        number: Of the order; each is larger than the one before.
        limits: Of this task.
        work: A packed ``Task``, or a ``Command``; ``None`` for a task that the fork brought along, or for a packed
            task that comes as the packet's descriptor, which is passed on unread.
        inherited: The key of a task that the fork brought along; 0 otherwise.
        descriptor: That of a large packed task, once it is received; minus an errno where the order could not be.
        streams: Which streams of a program the caller has the other ends of; such an order travels alone.
        ends: Descriptors of these, in the order of their numbers, once it is received.
    """

    number: int
    limits: Limits
    work: bytes | Command | None = None
    inherited: int = 0
    descriptor: int | None = None
    streams: int = 0
    ends: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_order, (self.number, _pack_limits(self.limits), self.work, self.inherited, self.streams)

    def descriptors(self) -> list[int]:
        """What came with it."""
        own = () if self.descriptor is None or self.descriptor < 0 else (self.descriptor,)
        return [*own, *self.ends]

    def end(self, stream: int) -> int | None:
        """The descriptor of one of its streams, or ``None``."""
        present = [number for number in (STDIN, STDOUT, STDERR) if self.streams & number]
        return dict(zip(present, self.ends, strict=False)).get(stream)

    def without_descriptors(self) -> Order:
        """The same, where what came with it is somebody else's."""
        return self._replace(descriptor=None, ends=())

    def close(self) -> None:
        """Release what came with it: it is done with, or comes to nothing."""
        for fd in self.descriptors():
            os.close(fd)


class Signal(NamedTuple):
    """Caller to supervisor: send a signal to the guests that run.

    SIGSTOP pauses every process of every guest, and SIGCONT lets them go on; the time between them counts against no
    limit. Any other signal goes to the process group of each guest's first process, as from a terminal.
    """

    signal: int


class Cancel(NamedTuple):
    """Caller to supervisor: end some orders, each of which still gets its report.

    Args:
        numbers: Of the orders. Those that have a report by now are left out.
        begun: Whether those are meant too whose time has begun.
    """

    numbers: tuple[int, ...]
    begun: bool = True


class Report(NamedTuple):
    """Supervisor to caller: how one attempt ended.

    ``payload`` is the guest's record where it is small; a large one comes as the packet's descriptor. For a
    program it is what it wrote, as (stdout, stderr); the first ``stored`` bytes of each, where that is much, are
    in the packet's descriptor, an ``OutputStore``.
    """

    number: int
    outcome: Outcome
    detail: str
    delivery: Delivery = Delivery.NOTHING
    exit_code: int | None = None
    start_time: float | None = None
    end_time: float | None = None
    usage: Usage = Usage()
    enforcement: Enforcement = NOT_STARTED
    payload: bytes | tuple[bytes, bytes] = b""
    stored: tuple[int, int] = (0, 0)
    error: BaseException | None = None


class Started(NamedTuple):
    """Reaper to caller: there is a supervisor, whose pidfd comes along.

    Args:
        group: What ``Backend.adopt_group`` needs to clear up in the caller's process.
    """

    group: str


class Ended(NamedTuple):
    """Reaper or supervisor to caller: the run cannot begin, or cannot go on; what was unfinished is lost.

    Args:
        error: What failed.
        note: Of the exception, such as a traceback; it does not travel with it.
        stopped: Whether somebody has stopped the run: then nothing failed, and no other run takes its place.
    """

    error: SandboxError
    note: str = ""
    stopped: bool = False


class Confined(NamedTuple):
    """Supervisor to caller: what holds the run's ``Hardening``, before any report of a guest.

    Args:
        held: For each mechanism, whether it is enforced.
    """

    held: Mapping[str, str]


class Begun(NamedTuple):
    """Supervisor to caller, where that asks for it: the time of a guest has begun.

    Args:
        order: The number of its order.
        pid: Of its first process.
        started: Moment of the monotonic clock, in seconds.
    """

    order: int
    pid: int
    started: float


Message = Sequence[Order] | Signal | Cancel | Report | Started | Ended | Confined | Begun


# Nearly all orders of a run have the same limits: they are pickled once, travel as bytes, and are unpickled once.


@functools.lru_cache(maxsize=64)
def _pack_limits(limits: Limits) -> bytes:
    return pickle.dumps(limits, protocol=5)


@functools.lru_cache(maxsize=64)
def _unpack_limits(packed: bytes) -> Limits:
    limits: Limits = pickle.loads(packed)
    return limits


def _make_order(number: int, limits: bytes, work: bytes | Command | None, inherited: int, streams: int) -> Order:
    return Order(number, _unpack_limits(limits), work, inherited, None, streams)


class Packet(NamedTuple):
    """A message ready to be sent.

    Args:
        data: The bytes of the packet.
        descriptors: Those that travel with it.
    """

    data: bytes
    descriptors: tuple[int, ...] = ()


def pack(message: Message, memfds: deque[int], descriptor: int | None = None, streams: tuple[int, ...] = ()) -> Packet:
    """A message as a packet.

    Args:
        message: What to say.
        memfds: Gets the memfd of a large pickle, to be closed once the packet is sent.
        descriptor: What travels with the message.
        streams: Ends of the streams of the program that it orders, which travel too.

    Raises:
        OSError: It needs a memfd, and there is none to be got.
    """
    body = pickle.dumps(message, protocol=5)
    flags = 0 if descriptor is None else _ATTACHED
    attached = streams if descriptor is None else (descriptor, *streams)
    if HEAD.size + len(body) <= PACKET:
        return Packet(HEAD.pack(flags, *_numbers(message)) + body, attached)
    stored = store(body, "gwsandbox-message", memfds)
    return Packet(HEAD.pack(flags | _STORED, *_numbers(message)), (stored, *attached))


def _numbers(message: Message) -> tuple[int, int]:
    """Of the first and the last order, or of the report twice; 0 where it holds neither."""
    if isinstance(message, Report):
        return message.number, message.number
    if isinstance(message, Signal | Cancel | Started | Ended | Confined | Begun):
        return 0, 0
    return message[0].number, message[-1].number


class NoPacketError(Exception):
    """What came is no packet; the text says why."""


class Received(NamedTuple):
    """What a packet held.

    Args:
        message: ``None`` where it was lost with the packet's descriptors, or cannot be read.
        descriptor: What came with the message; minus an errno where that, or the message, could not be received.
    """

    message: Any
    descriptor: int | None


def number_of(data: bytes) -> int:
    """The number of the first order or of the report in a packet; 0 where it holds neither."""
    number: int = HEAD.unpack_from(data)[1] if len(data) >= HEAD.size else 0
    return number


def descriptors_of(ancillary: Sequence[tuple[int, int, bytes] | None]) -> list[int]:
    """The descriptors that came with a packet, which belong to the receiver."""
    found = array.array("i")
    for entry in ancillary:
        if entry is not None:
            found.frombytes(entry[2])
    return found.tolist()


def unpack(data: bytes, ancillary: Sequence[tuple[int, int, bytes] | None], flags: int) -> Received:
    """What recvmsg(2) gave, as a message. It closes nothing, so that it can be done again."""
    descriptors = descriptors_of(ancillary)
    present = HEAD.unpack_from(data)[0]
    if flags & _TRUNCATED:
        message = None if present & _STORED else pickle.loads(memoryview(data)[HEAD.size :])
        return Received(message, LOST)
    stored = descriptors.pop(0) if present & _STORED else None
    message = pickle.loads(memoryview(data)[HEAD.size :] if stored is None else read_stored(stored))
    return Received(message, descriptors[0] if present & _ATTACHED else None)


def unpack_patiently(data: bytes, ancillary: Sequence[tuple[int, int, bytes] | None], flags: int) -> Received:
    """As ``unpack``, waiting a few seconds for the memory that it takes; a message that cannot be read is lost.

    Raises:
        NoPacketError: It is none of this version of gwsandbox.
    """
    patience = Patience(READ_SECONDS)
    while True:
        try:
            return unpack(data, ancillary, flags)
        except (OSError, MemoryError) as error:
            try:
                patience.bear(error)
            except (OSError, MemoryError):
                return Received(None, -errno_of(error))
        except Exception as error:
            if _can_be_read(data, ancillary, flags):
                raise  # it is a signal handler's, which may raise at any bytecode
            raise NoPacketError(f"{type(error).__name__}: {error}") from error
        time.sleep(_LATER_SECONDS)


def _can_be_read(data: bytes, ancillary: Sequence[tuple[int, int, bytes] | None], flags: int) -> bool:
    try:
        unpack(data, ancillary, flags)
    except Exception:  # noqa: BLE001 - what else it may be
        return False
    return True


class Sent(enum.Enum):
    """What became of the attempt to send."""

    DONE = enum.auto()
    """It is sent."""
    FULL = enum.auto()
    """The socket takes nothing now; EPOLLOUT announces when it does."""
    LATER = enum.auto()
    """The kernel has no memory or no place for descriptors in flight now; no event announces when it has."""


def send(end: _socket.socket, packet: Packet) -> Sent:
    """Send a packet without waiting.

    Raises:
        BrokenPipeError: The other end is gone.
        OSError: The kernel refuses it for another reason, which does not pass.
    """
    refused = send_or_errno(end, packet)
    if not refused:
        return Sent.DONE
    return Sent.FULL if refused == errno.EAGAIN else Sent.LATER


def send_or_errno(end: _socket.socket, packet: Packet) -> int:
    """As ``send``; 0 where it is sent, else why the kernel cannot take it now."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", packet.descriptors))]
    try:
        end.sendmsg([packet.data], rights if packet.descriptors else (), _SEND_FLAGS)
    except OSError as error:
        if error.errno in NOT_NOW:
            return error.errno or errno.EAGAIN
        if error.errno in GONE:
            raise BrokenPipeError(error.errno, os.strerror(error.errno)) from error
        raise
    return 0
