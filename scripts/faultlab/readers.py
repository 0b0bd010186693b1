"""What reads what others wrote, each with inputs of its kind and the errors that it documents."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import fractions
import functools
import math
import os
import pathlib
import pickle
import random
import shutil
import socket
import struct
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from faultlab.mutate import mutated
from gwsandbox.backends.cgroup import files
from gwsandbox.cli.app import make_app
from gwsandbox.cli.map.inputs import Input
from gwsandbox.cli.map.report_rows import ReportRows
from gwsandbox.cli.messages import Failure
from gwsandbox.ipc import channel, record
from gwsandbox.ipc.birth import pack_held, unpack_held
from gwsandbox.ipc.channel import Order, Report
from gwsandbox.ipc.channel_end import Channel
from gwsandbox.ipc.plain import decode
from gwsandbox.ipc.plain_encoder import encode
from gwsandbox.model.errors import TransferError
from gwsandbox.model.limits import Limits, parse_duration, parse_size
from gwsandbox.model.result import Outcome
from gwsandbox.model.verdict import Delivery
from gwsandbox.service.config import reader as config

_CHEAP, _MIDDLE, _DEAR = 50_000, 4_000, 1_000


@dataclass(frozen=True, slots=True)
class Reader:
    """Something that reads.

    Args:
        name: Of it.
        make: An input.
        read: Reads it; gets a folder for files too. Raises ``AssertionError`` where what it gives cannot be.
        errors: Those that it documents.
        batch: How many inputs take about a second.
    """

    name: str
    make: Callable[[random.Random], Any]
    read: Callable[[Any, str], None]
    errors: tuple[type[BaseException], ...]
    batch: int


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """A folder for a reader's files."""
    path = tempfile.mkdtemp(prefix="faultlab-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _one_of(samples: Sequence[bytes]) -> Callable[[random.Random], bytes]:
    return lambda rng: mutated(rng, rng.choice(samples))


def _text_of(samples: Sequence[bytes]) -> Callable[[random.Random], str]:
    return lambda rng: mutated(rng, rng.choice(samples)).decode(errors=rng.choice(("replace", "surrogateescape")))


# --- sizes, durations, limits ----------------------------------------------------------------------------

_SIZES = (b"512MiB", b"2G", b"1048576", b"1.5 GiB", b"0", b"8k", b"1e3", b"\xd9\xa1\xd9\xa2M", b"1_000")
_DURATIONS = (b"5s", b"500ms", b"2m", b"1h", b"1.5", b"1h30m", b"0", b".5s", b"1e9s")
_FIELDS = ("memory", "swap", "wall_seconds", "cpu_seconds", "cpus", "pids", "open_files", "file_size", "output")
_VALUES: tuple[object, ...] = (
    0,
    1,
    -1,
    2**40,
    2**63,
    2**70,
    10**400,
    0.5,
    1e308,
    math.inf,
    math.nan,
    True,
    None,
    "",
    b"",
    [],
    (),
    {},
    1j,
)


def _read_size(text: str, _: str) -> None:
    assert parse_size(text) >= 0


def _read_duration(text: str, _: str) -> None:
    assert parse_duration(text) >= 0


def _make_limits(rng: random.Random) -> dict[str, object]:
    text = _text_of(_SIZES + _DURATIONS)
    return {name: rng.choice((rng.choice(_VALUES), text(rng))) for name in rng.sample(_FIELDS, rng.randint(1, 4))}


def _read_limits(values: dict[str, Any], _: str) -> None:
    limits = Limits(**values)
    assert all(value > 0 for name, value in limits.requested().items() if name != "swap")


# --- cgroup files ----------------------------------------------------------------------------------------

_FLAT = (b"low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n", b"usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n", b"")
_NUMBERS = (b"max\n", b"1048576\n", b"0\n", b"")
_IO = (b"8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=0 dios=0\n", b"8:16 \n", b"")
_PRESSURE = (b"some avg10=0.00 avg60=0.00 avg300=0.00 total=123\nfull avg10=0.00 total=5\n", b"")


def _file_reader(name: str, samples: Sequence[bytes], parse: Callable[[str], object]) -> Reader:
    return Reader(name, _text_of(samples), lambda text, _: _ignore(parse(text)), (ValueError,), _CHEAP)


def _ignore(value: object) -> None:
    """What a reader gives is not looked at."""


# --- protocol and record ---------------------------------------------------------------------------------


def _packets() -> list[bytes]:
    """Some of each kind that travels between the caller and its supervisor."""
    works = [pickle.dumps((len, (b"x" * size,), {})) for size in (1, 10, 100)]
    orders = [Order(number, Limits(memory="1GiB"), work) for number, work in enumerate(works, start=1)]
    value = Report(1, Outcome.SUCCEEDED, "", Delivery.VALUE, 0, payload=b"x" * 100)
    messages: list[channel.Message] = [orders, value, Report(2, Outcome.FAILED, "why")]
    return [channel.pack(message, deque()).data for message in messages]


_PACKETS = _packets()


def _read_packet(data: bytes, _: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, contextlib.closing(Channel(theirs)) as receiver:
        ours.send(data)
        receiver.receive()


def _written(write: Callable[[int], object]) -> bytes:
    fd = record.create()
    try:
        write(fd)
        return os.pread(fd, 1 << 16, 0)
    finally:
        os.close(fd)


def _records() -> list[bytes]:
    values = (None, b"bytes" * 20, {"key": [1, 2.5, "text", b"bytes"]}, bytearray(b"y" * 100))
    found = [_written(functools.partial(record.write_value, value=value)) for value in values]
    return [*found, _written(lambda fd: record.write_exception(fd, ValueError("why"), Delivery.RAISED))]


_RECORDS = _records()


def _make_record(rng: random.Random) -> bytes:
    """A record of which often only the head is changed: the length that it claims, its kind."""
    data = rng.choice(_RECORDS)
    if rng.random() < 0.5:
        return mutated(rng, data)
    place = 8 * rng.randrange(1, 4)
    number = rng.choice((0, 1, 31, 32, 33, len(data), 1 << 16, (1 << 16) + 1, 1 << 40, 1 << 63, (1 << 64) - 1))
    return data[:place] + struct.pack("=Q", number) + data[place + 8 :]


def _read_record(data: bytes, _: str) -> None:
    fd = record.create()
    try:
        os.pwrite(fd, data, 0)
        record.read_unfinished(fd)
        delivery, small, is_whole = record.inspect(fd)
        if delivery is not Delivery.NOTHING and is_whole:
            record.read_inline(small)
        elif delivery is not Delivery.NOTHING:
            record.read_descriptor(fd)
    finally:
        os.close(fd)


def _read_held(data: bytes, _: str) -> None:
    unpack_held(data)


_PLAIN = tuple(
    b"".join(encode(value))
    for value in (
        [None, True, 1, -(10**30), 2.5, 1j, "text", b"bytes", bytearray(b"x"), (1, 2)],
        {"key": {1, 2}, "when": dt.datetime(2020, 2, 3, tzinfo=dt.UTC), "much": [list(range(50))] * 3},
        [decimal.Decimal("1.50"), fractions.Fraction(1, 3), uuid.UUID(int=7), pathlib.PurePosixPath("/a")],
        ValueError("why"),
    )
)


# --- files and arguments that users write ----------------------------------------------------------------

_CONFIG = (
    b'spool = "FOLDER"\nworkers = 2\nretry_delay_seconds = 0\nbackend = "rlimit"\n\n[worker]\ncommand = ["/bin/cp"]\n',
    b'spool = "FOLDER"\n[worker]\ncommand = ["cp", "{input}", "{output}"]\n[limits]\nmemory = "512MiB"\n',
    b'spool = "FOLDER"\n[worker]\nfunction = "module:function"\npath = ["FOLDER"]\n[metrics]\nport = 9000\n',
    b"x = " + b"[" * 5000 + b"]" * 5000,
)


def _read_config(text: bytes, place: str) -> None:
    path = f"{place}/config.toml"
    with open(path, "wb") as file:
        file.write(text.replace(b"FOLDER", place.encode()))
    config.read_config(path)


_ROWS = (
    b'{"input": "/a", "output": null, "input_size": 0, "input_mtime_ns": 1, "outcome": "SUCCEEDED"}\n',
    b'{"input": "/b", "output": "/c", "input_size": 3, "input_mtime_ns": 2, "outcome": "FAILED", "detail": "x"}\n',
    b'{"input": ["/d"], "output": 1, "input_size": "3", "input_mtime_ns": null, "outcome": []}\n',
    b"[" * 60_000 + b"\n",
)


def _read_report(data: bytes, place: str) -> None:
    path = f"{place}/report"
    with open(path, "wb") as file:
        file.write(data)
    with ReportRows(path, fresh=False) as found:
        for row in found.rows.values():
            row.is_of(Input("/a", "a", 0, 1), None)
        found.begin()


_WORDS = (
    *(
        "run",
        "map",
        "serve",
        "doctor",
        "clean",
        "report",
        "spool",
        "--",
        "-",
        "--memory",
        "--timeout",
        "--cpus",
        "--pids",
    ),
    *(
        "--report",
        "--workers",
        "--backend",
        "--command",
        "--output-dir",
        "--file-size",
        "--output-limit",
        "--help",
        "-h",
    ),
    *(
        "rlimit",
        "auto",
        "512MiB",
        "5s",
        "0.5",
        "-1",
        "",
        "a:b",
        "{input}",
        "/nowhere",
        "\udcff",
        "--memory=1",
        "--nope",
    ),
)
_APP = make_app()
_USAGE_ERROR = typer.BadParameter.__mro__[2]  # of Typer's own copy of Click, or of Click


def _make_arguments(rng: random.Random) -> list[str]:
    words = [rng.choice(_WORDS[:7]), *rng.choices(_WORDS, k=rng.randint(0, 6))]
    return [
        mutated(rng, word.encode(errors="replace")).decode(errors="replace") if rng.random() < 0.1 else word
        for word in words
    ]


def _read_arguments(words: list[str], _: str) -> None:
    group: Any = typer.main.get_command(_APP)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        context = group.make_context("gwsandbox", list(words))
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, rest, parent=context)


READERS: Sequence[Reader] = (
    Reader("sizes", _text_of(_SIZES), _read_size, (ValueError,), _CHEAP),
    Reader("durations", _text_of(_DURATIONS), _read_duration, (ValueError,), _CHEAP),
    Reader("limits", _make_limits, _read_limits, (TypeError, ValueError), _CHEAP // 2),
    _file_reader("flat cgroup files", _FLAT, files.parse_flat),
    _file_reader("cgroup numbers", _NUMBERS, files.parse_number),
    _file_reader("io.stat", _IO, files.parse_io),
    _file_reader("pressure", _PRESSURE, files.parse_pressure),
    Reader("packets", _one_of(_PACKETS), _read_packet, (EOFError, MemoryError), _MIDDLE),
    Reader("records", _make_record, _read_record, (TransferError,), _MIDDLE),
    Reader("plain values", _one_of(_PLAIN), lambda data, _: _ignore(decode(data)), (TransferError,), _MIDDLE),
    Reader(
        "held mechanisms", _one_of((pack_held({"files": "enforced", "user": "not: why"}),)), _read_held, (), _MIDDLE
    ),
    Reader("configuration", _one_of(_CONFIG), _read_config, (config.ConfigError,), _DEAR),
    Reader("report", _one_of(_ROWS), _read_report, (Failure,), _MIDDLE),
    Reader("arguments", _make_arguments, _read_arguments, (_USAGE_ERROR, typer.Exit, typer.Abort), _DEAR),
)
