"""A span of OpenTelemetry for each task, in the trace of the caller."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gwsandbox import Command, Limits, run

_exporter = InMemorySpanExporter()
_provider = TracerProvider()
_provider.add_span_processor(SimpleSpanProcessor(_exporter))


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    monkeypatch.setattr(trace, "get_tracer", _provider.get_tracer)
    _exporter.clear()
    yield _exporter
    _exporter.clear()


def refuse() -> None:
    raise LookupError("no such document")


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_task_is_a_span_in_the_callers_trace(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("test").start_as_current_span("outer"):
        result = run(Command(["sh", "-c", "exit 3"]), backend="rlimit")
    found = by_name(spans)
    inner, outer = found["sh"], found["outer"]
    assert inner.parent is not None
    assert outer.context is not None
    assert (inner.parent.span_id, inner.status.status_code) == (outer.context.span_id, StatusCode.ERROR)
    assert inner.start_time == int((result.start_time or 0) * 1e9)
    assert inner.end_time == int((result.end_time or 0) * 1e9)
    attributes = dict(inner.attributes or {})
    assert attributes["process.exit.code"] == 3
    assert attributes["error.type"] == "gwsandbox.model.errors.GuestFailed"
    assert (attributes["gwsandbox.outcome"], attributes["gwsandbox.backend"]) == ("FAILED", "rlimit")


def test_what_a_function_raised_is_the_type_of_the_error(spans: InMemorySpanExporter) -> None:
    run(refuse, backend="rlimit", limits=Limits(wall_seconds=60))
    span = by_name(spans)["refuse"]
    assert (span.attributes or {})["error.type"] == "LookupError"
    assert span.status.description == "the function raised: LookupError: no such document"


def test_success_has_no_error(spans: InMemorySpanExporter) -> None:
    run(sorted, ([2, 1],), backend="rlimit")
    span = by_name(spans)["sorted"]
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in (span.attributes or {})


def test_nothing_is_imported_for_it() -> None:
    program = (
        "import sys, gwsandbox; gwsandbox.run(sorted, ([1],), backend='rlimit'); print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
