"""Spans of requests and attempts, with the SDK's in-memory exporter in place of a backend; and nothing without one."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from streamtask.client.build import Prepared, prepare, spans_end_on_error, traced
from streamtask.codec import status_headers
from streamtask.config import TopicNames
from streamtask.core.shard import trace_headers
from streamtask.domain.model import HandlerKind, RequestRecord, StatusEvent, TaskRequest, TaskStatus
from streamtask.domain.ports import Start, Stop, StopReason
from streamtask.execution import outcomes
from streamtask.handlers.options import Retry
from streamtask.handlers.registry import Context
from streamtask.observability import tracing
from streamtask.observability.tracing import Attempts
from tests.unit.executor_bench import Make
from tests.unit.executor_bench import bench as bench  # the fixture

NAMES = TopicNames()
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TASK_ID = "018f0000-0000-7000-8000-000000000001"


class Spans:
    """What was recorded."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


def install(monkeypatch: pytest.MonkeyPatch, sampler: Sampler | None = None) -> Spans:
    """A provider for this test alone; the API lets nobody take one back."""
    spans = Spans()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(spans.exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return spans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return install(monkeypatch)


def send(headers: dict[str, str | bytes] | None = None, *, from_http: bool = False) -> Prepared:
    request = TaskRequest(task_type="census", task_id=TASK_ID, priority=8)
    (one,) = traced([prepare(request, NAMES, headers)], NAMES, from_http=from_http)
    return one


def place(headers: Any) -> tuple[int, int]:
    """(trace id, span id) that a record's headers name."""
    version, trace_id, span_id, _ = dict(headers)["traceparent"].decode().split("-")
    assert version == "00"
    return int(trace_id, 16), int(span_id, 16)


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


# --- Nobody listens ---------------------------------------------------------------------------------------------------


def test_without_a_provider_nothing_is_made(bench: Make) -> None:
    assert not tracing.active()
    assert send().headers is None
    assert send({"traceparent": CALLER, "own": "1"}).headers == [("traceparent", CALLER.encode()), ("own", b"1")]
    assert send({"traceparent": CALLER}, from_http=True).headers == [("traceparent", CALLER.encode())]

    async def looks() -> str:
        return str(trace.get_current_span().get_span_context().is_valid)

    b = bench(looks, attempts=Attempts(NAMES))
    token = b.start("looks")
    assert b.outcome(token).result == b'"False"'
    assert Attempts(NAMES).beginner() is None


def test_client_and_worker_import_nothing_of_opentelemetry() -> None:
    code = (
        "import sys, streamtask.client.asynchronous, streamtask.worker.loop, streamtask.execution.process_pool.child\n"
        "from streamtask.observability import tracing\n"
        "assert not tracing.active() and tracing.current_trace_id() is None\n"
        "assert tracing.attach([('traceparent', b'x')]) is None\n"
        "tracing.flush(0.1)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_provider_that_the_environment_names_counts() -> None:
    code = (
        "import sys\n"
        "from streamtask.observability import tracing\n"
        "print('opentelemetry.trace' in sys.modules, tracing.active())"
    )
    environment = {"PATH": "", "OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "True True", done.stderr


# --- A request that is sent -------------------------------------------------------------------------------------------


def test_a_request_is_sent_under_a_span_of_its_own_whose_context_it_carries(spans: Spans) -> None:
    with trace.get_tracer("shop").start_as_current_span("checkout"):
        sent = send({"own": "1"})
    assert sent.span is not None
    sent.span.end(3, 17)
    span = spans.one("send census")
    assert parent(span) == ids(spans.one("checkout"))
    assert span.kind is SpanKind.PRODUCER
    assert sent.headers is not None
    assert place(sent.headers) == ids(span)
    assert dict(sent.headers)["own"] == b"1"
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "tasks.requests.high",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 17,
        "messaging.message.id": TASK_ID,
        "streamtask.task_type": "census",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_a_trace_context_that_the_caller_gives_stays_as_it_is(spans: Spans) -> None:
    sent = send({"traceparent": CALLER, "tracestate": "a=b"})
    assert sent.span is None
    assert sent.headers == [("traceparent", CALLER.encode()), ("tracestate", b"a=b")]
    assert spans.all() == []


def test_the_state_of_a_trace_goes_on_with_it(spans: Spans) -> None:
    sent = send({"traceparent": CALLER, "tracestate": "a=b"}, from_http=True)
    assert dict(sent.headers or ())["tracestate"] == b"a=b"


def test_what_was_not_acknowledged_is_an_error(spans: Spans) -> None:
    first, second = send(), send()
    assert first.span is not None
    first.span.end(-1, -1, "_MSG_TIMED_OUT")
    with pytest.raises(KeyError), spans_end_on_error([second]):
        raise KeyError("x")
    for span, text in zip(spans.all(), ("_MSG_TIMED_OUT", "'x'"), strict=True):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, text)
        assert (span.attributes or {})["error.type"] == "not_acknowledged"


def test_post_tasks_continues_the_callers_trace(spans: Spans) -> None:
    sent = send({"traceparent": CALLER}, from_http=True)
    assert sent.span is not None
    sent.span.end()
    span = spans.one("send census")
    assert parent(span) == (TRACE_ID, SPAN_ID)
    assert place(sent.headers) == ids(span)


def test_post_tasks_goes_on_from_the_span_of_an_instrumented_server(spans: Spans) -> None:
    with trace.get_tracer("http").start_as_current_span("POST /tasks"):
        sent = send({"traceparent": CALLER}, from_http=True)
    assert sent.span is not None
    sent.span.end()
    assert parent(spans.one("send census")) == ids(spans.one("POST /tasks"))


def test_a_traceparent_that_is_none_begins_a_trace(spans: Spans) -> None:
    sent = send({"traceparent": "00-ab-cd-01"}, from_http=True)
    assert sent.span is not None
    sent.span.end()
    assert parent(spans.one("send census")) is None
    assert place(sent.headers) == ids(spans.one("send census"))


def test_what_is_not_sampled_says_so_to_whoever_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = install(monkeypatch, ALWAYS_OFF)
    sent = send()
    flags = dict(sent.headers or ())["traceparent"].rsplit(b"-", 1)[1]
    assert int(flags, 16) & 1 == 0
    attempt = Attempts(NAMES).begin(a_start(tuple(sent.headers or ())))
    assert attempt is not None
    assert spans.all() == []


# --- An attempt -------------------------------------------------------------------------------------------------------


def a_start(headers: tuple[tuple[str, bytes], ...] = (("traceparent", CALLER.encode()),)) -> Start:
    request = TaskRequest(task_type="census")
    record = RequestRecord(1, 3, 7, 0, TASK_ID, request, 5, 0, b"", headers=headers)
    return Start(1, record, 1, HandlerKind.ASYNC, None)


class Traced:
    """A bench whose executor makes spans, for handlers that look at the current one."""

    def __init__(self, bench: Make, spans: Spans, *handlers: Any, **settings: Any) -> None:
        self.bench = bench(*handlers, attempts=Attempts(NAMES), **settings)
        self.spans = spans

    def start(self, task_type: str, attempt: int = 1, **parameters: Any) -> int:
        made = self.bench.make(task_type, parameters, attempt=attempt)
        made.record.headers = (("traceparent", CALLER.encode()), ("tracestate", b"a=b"))
        self.bench.executor.submit([made])
        return made.token


def test_an_attempt_is_a_child_of_its_request_and_says_which_it_is(bench: Make, spans: Spans) -> None:
    async def census(ctx: Context) -> None: ...

    traced = Traced(bench, spans, census)
    for attempt in (1, 2):
        traced.bench.outcome(traced.start("census", attempt))
    first, second = spans.named("process census")
    assert parent(first) == parent(second) == (TRACE_ID, SPAN_ID)
    assert ids(first) != ids(second)
    assert first.kind is SpanKind.CONSUMER
    assert first.status.status_code is StatusCode.UNSET
    assert dict(first.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "tasks.requests.normal",
        "messaging.destination.partition.id": "3",
        "messaging.consumer.group.name": "tasks.workers",
        "messaging.kafka.offset": 7,
        "messaging.message.id": TASK_ID,
        "streamtask.task_type": "census",
        "streamtask.attempt": 1,
        "streamtask.shard": 3,
    }
    assert (second.attributes or {})["streamtask.attempt"] == 2


def test_an_attempt_of_a_request_without_a_trace_begins_one(spans: Spans) -> None:
    attempt = Attempts(NAMES).begin(a_start(()))
    assert attempt is not None
    assert place(attempt.carried)[0] != TRACE_ID
    attempt.end(outcomes.returned(None), None)
    assert parent(spans.one("process census")) is None


def test_the_span_is_current_in_coroutines_and_threads_and_each_has_its_own(bench: Make, spans: Spans) -> None:
    tracer = trace.get_tracer("handler")

    async def slow(ctx: Context, n: int) -> str | None:
        with tracer.start_as_current_span(f"in slow {n}"):
            await asyncio.sleep(0)
            return str(ctx.log._context["trace_id"])

    def plain(ctx: Context, n: int) -> str | None:
        with tracer.start_as_current_span(f"in plain {n}"):
            return str(ctx.log._context["trace_id"])

    traced = Traced(bench, spans, slow, plain, threads=2)
    for name in ("slow", "plain"):
        tokens = [traced.start(name, n=n) for n in range(5)]
        results = [traced.bench.outcome(token).result for token in tokens]
        assert results == [f'"{TRACE_ID:032x}"'.encode()] * 5
        owners = {parent(spans.one(f"in {name} {n}")) for n in range(5)}
        assert owners == {ids(span) for span in spans.named(f"process {name}")}
        assert len(owners) == 5


def test_the_log_of_a_task_without_a_trace_names_that_of_its_attempt(bench: Make, spans: Spans) -> None:
    async def census(ctx: Context) -> str:
        return str(ctx.log._context["trace_id"])

    b = bench(census, attempts=Attempts(NAMES))
    found = b.run("census").result
    assert found == f'"{ids(spans.one("process census"))[0]:032x}"'.encode()


def test_a_failure_is_an_error_with_its_code_and_what_was_raised(bench: Make, spans: Spans) -> None:
    async def fails(ctx: Context) -> None:
        raise ValueError("no such prompt")

    def odd(ctx: Context) -> object:
        return object()

    async def wants(ctx: Context, n: int) -> None: ...

    traced = Traced(bench, spans, fails, odd, wants, retry=Retry(attempts=1))
    for name in ("fails", "odd", "wants"):
        traced.bench.outcome(traced.start(name))
    told = {name: spans.one(f"process {name}") for name in ("fails", "odd", "wants")}
    codes = {name: (span.attributes or {})["error.type"] for name, span in told.items()}
    assert codes == {"fails": "handler_error", "odd": "not_serializable", "wants": "invalid_parameters"}
    assert {span.status.status_code for span in told.values()} == {StatusCode.ERROR}
    assert told["fails"].status.description == "no such prompt"
    (event,) = told["fails"].events
    given = dict(event.attributes or {})
    assert (event.name, given["exception.type"], given["exception.message"]) == (
        "exception",
        "ValueError",
        "no such prompt",
    )
    assert "ValueError: no such prompt" in str(given["exception.stacktrace"])


@pytest.mark.parametrize("reason", list(StopReason))
def test_an_attempt_that_was_told_to_stop_says_why_and_only_a_timeout_is_an_error(
    bench: Make, spans: Spans, reason: StopReason
) -> None:
    async def waits(ctx: Context) -> None:
        await asyncio.sleep(3_600)

    traced = Traced(bench, spans, waits)
    token = traced.start("waits")
    traced.bench.executor.stop_executions([Stop(token, reason)])
    traced.bench.outcome(token)
    span = spans.one("process waits")
    if reason is StopReason.TIMEOUT:
        assert (span.attributes or {})["error.type"] == "timeout"
        assert span.status.status_code is StatusCode.ERROR
    else:
        assert (span.attributes or {})["streamtask.stopped"] == reason.value
        assert span.status.status_code is StatusCode.UNSET


def test_in_a_child_the_attempt_of_the_worker_is_the_current_span_until_the_next_one(spans: Spans) -> None:
    attempt = Attempts(NAMES).begin(a_start())
    assert attempt is not None
    token = tracing.attach(attempt.carried)
    trace.get_tracer("handler").start_span("inside").end()
    tracing.detach(token)
    assert parent(spans.one("inside")) == place(attempt.carried)
    assert not trace.get_current_span().get_span_context().is_valid


def test_status_events_carry_the_context_of_the_request(spans: Spans) -> None:
    """Not that of the attempt: see docs/decisions/0011."""
    start = a_start((("traceparent", CALLER.encode()), ("tracestate", b"a=b"), ("own", b"1")))
    attempt = Attempts(NAMES).begin(start)
    assert attempt is not None
    event = StatusEvent(TASK_ID, 3, TaskStatus.RUNNING, 0, 0, "o", headers=trace_headers(start.record.headers))
    assert status_headers(event) == [("traceparent", CALLER.encode()), ("tracestate", b"a=b")]


# --- A provider that breaks -------------------------------------------------------------------------------------------


class Broken(Sampler):
    """Raises when it is asked."""

    def should_sample(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("the sampler is out of its mind")

    def get_description(self) -> str:
        return "broken"


def test_a_provider_that_raises_costs_spans_and_no_task(
    bench: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracing._complain.cache_clear()
    install(monkeypatch, Broken())
    assert send().headers is None
    assert send({"traceparent": CALLER}, from_http=True).headers == [("traceparent", CALLER.encode())]

    async def census(ctx: Context) -> int:
        return 1

    b = bench(census, attempts=Attempts(NAMES))
    for _ in range(3):
        assert b.run("census").result == b"1"
    told = [record.getMessage() for record in caplog.records if "out of its mind" in record.getMessage()]
    assert len(told) == 2, "once for requests, once for attempts"


def test_the_page_shows_the_example() -> None:
    root = Path(__file__).parents[2]
    (shown,) = re.findall(r"^```python\n(.*?)^```", (root / "docs" / "tracing.md").read_text(), re.M | re.S)
    example = (root / "examples" / "tracing" / "app.py").read_text()
    imports, setting = shown.split("\n\n")
    assert imports in example
    assert setting in example
