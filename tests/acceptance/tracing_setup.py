"""Spans of any process, into one file, a line each: what `opentelemetry-instrument` does for real backends.

python -m tests.acceptance.tracing_setup serve --port 0     the command line, with a provider
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult


class FileExporter(SpanExporter):
    """Appends to ACCEPTANCE_SPANS at once: what was ended stands there, however the process dies."""

    def __init__(self) -> None:
        self._file = os.open(os.environ["ACCEPTANCE_SPANS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            os.write(self._file, json.dumps(line_of(span)).encode() + b"\n")
        return SpanExportResult.SUCCESS


def line_of(span: ReadableSpan) -> dict[str, object]:
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "trace": f"{context.trace_id:032x}",
        "id": f"{context.span_id:016x}",
        "parent": None if span.parent is None else f"{span.parent.span_id:016x}",
        "kind": span.kind.name,
        "attributes": dict(span.attributes or {}),
        "status": span.status.status_code.name,
        "pid": os.getpid(),
    }


def install() -> None:
    provider = TracerProvider()
    if "ACCEPTANCE_SPANS_LATE" in os.environ:  # nothing goes out by itself
        provider.add_span_processor(BatchSpanProcessor(FileExporter(), schedule_delay_millis=600_000))
    else:
        provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
    trace.set_tracer_provider(provider)


if __name__ == "__main__":
    install()
    from streamtask.cli import main

    main()
