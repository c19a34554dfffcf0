"""One trace from whoever asks over every attempt to the status events, through a kill and through HTTP."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streamtask.codec import decode_status
from streamtask.kafka.tail import Tail
from tests.acceptance.harness import PATIENT, Bench, until
from tests.acceptance.tracing_setup import line_of

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

APP = "tests.acceptance.tracing_app:app"
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
KINDS = ("on_the_loop", "in_a_thread", "in_a_child", "on_the_loop_of_a_child")
Line = dict[str, Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of this process, which is the client."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def written(bench: Bench) -> Path:
    """The spans of workers, their children and the query service."""
    path = bench.directory / "spans"
    path.touch()
    return path


def lines(path: Path, **wanted: str) -> list[Line]:
    found = [json.loads(text) for text in path.read_text().splitlines()]
    return [line for line in found if all(line[name] == held for name, held in wanted.items())]


def told(bench: Bench) -> dict[str, list[tuple[str, set[tuple[str, bytes]]]]]:
    """{task_id: [(status, headers), ...]} of every status event."""
    found: dict[str, list[tuple[str, set[tuple[str, bytes]]]]] = {}
    with Tail(bench.kafka, [bench.names.status], with_headers=True) as tail:
        ends = tail.ends()

        def read() -> bool:
            for record in tail.poll(1_000, 0.2):
                event = decode_status(record.value)
                found.setdefault(event.task_id, []).append((event.status.value, set(record.headers)))
            return tail.caught_up(ends)

        until(read, "everything is read")
    return found


def header_of(line: Line) -> set[tuple[str, bytes]]:
    """The traceparent of a span, sampled; what else its flags say is its maker's."""
    return {("traceparent", f"00-{line['trace']}-{line['id']}".encode())}


def without_flags(headers: set[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
    return {(name, held.rpartition(b"-")[0]) for name, held in headers}


@pytest.mark.slow
def test_one_trace_from_the_client_over_a_killed_worker_to_the_status_events(
    bench: Bench, asked: InMemorySpanExporter, written: Path
) -> None:
    go = bench.directory / "go"
    environment = {"ACCEPTANCE_SPANS": str(written), "STREAMTASK_CHILDREN": "3"}  # one is kept for the high band
    worker = bench.worker(environment, app=APP)
    with trace.get_tracer("shop").start_as_current_span("checkout"):
        receipts = {kind: bench.client.submit(kind, {"path": str(go)}) for kind in KINDS}
        flaky = bench.client.submit("flaky", {"failures": 2})
    bench.end(flaky.task_id)
    for receipt in receipts.values():
        bench.until_status(receipt.task_id, "running")
    until(lambda: len(bench.running()) == len(KINDS), lambda: f"all have begun: {bench.running()}")
    worker.kill()
    bench.worker({**environment, **PATIENT}, app=APP)
    for receipt in receipts.values():
        bench.until_status(receipt.task_id, "running", 2)
    go.touch()
    ends = bench.ends([receipt.task_id for receipt in receipts.values()], 60)
    assert {(end.status, end.event.attempt) for end in ends.values()} == {("completed", 2)}
    bench.finish()

    client: dict[str, Line] = {str(line["name"]): line for line in map(line_of, asked.get_finished_spans())}
    root = client["checkout"]
    events = told(bench)
    for kind, receipt in {**receipts, "flaky": flaky}.items():
        sent = client[f"send {kind}"]
        assert (sent["parent"], sent["trace"], sent["kind"]) == (root["id"], root["trace"], "PRODUCER")
        assert sent["attributes"]["messaging.kafka.offset"] == receipt.offset
        attempts = lines(written, name=f"process {kind}")
        assert {(one["trace"], one["parent"], one["kind"]) for one in attempts} == {
            (root["trace"], sent["id"], "CONSUMER")
        }
        assert {one["attributes"]["messaging.message.id"] for one in attempts} == {receipt.task_id}
        assert {frozenset(without_flags(headers)) for _, headers in events[receipt.task_id]} == {
            frozenset(header_of(sent))
        }, "every event carries the context of its request"
    numbers = [(one["attributes"]["streamtask.attempt"], one["status"]) for one in lines(written, name="process flaky")]
    assert sorted(numbers) == [(1, "ERROR"), (2, "ERROR"), (3, "UNSET")]
    for kind in KINDS:
        (attempt,) = lines(written, name=f"process {kind}")  # that of the killed worker was never ended
        assert attempt["attributes"]["streamtask.attempt"] == 2
        inside = [one for one in lines(written, name=f"inside {kind}") if one["parent"] == attempt["id"]]
        assert [one["trace"] for one in inside] == [root["trace"]]
        assert (inside[0]["pid"] != attempt["pid"]) == ("child" in kind)


def test_a_trace_that_comes_over_http_goes_on(bench: Bench, written: Path) -> None:
    bench.worker(app=APP, ACCEPTANCE_SPANS=str(written))
    argv = [sys.executable, "-m", "tests.acceptance.tracing_setup", "serve", "--port", "0"]
    service = bench._start(argv, {"ACCEPTANCE_SPANS": str(written)})
    url = until(lambda: re.search(r"^ready: (\S+)", service.text(), re.M), service.text)[1]
    request = {"task_type": "flaky", "parameters": {"failures": 0}}
    answer = httpx.post(f"{url}/tasks", json=request, headers={"traceparent": CALLER, "tracestate": "a=b"}, timeout=60)
    task_id = answer.json()["task_id"]
    assert bench.end(task_id).status == "completed"
    _, trace_id, caller, _ = CALLER.split("-")
    bench.finish()

    (sent,) = lines(written, name="send flaky")
    (attempt,) = lines(written, name="process flaky")
    assert {sent["trace"], attempt["trace"]} == {trace_id}
    assert attempt["parent"] == sent["id"]
    parents = {one["id"]: one["parent"] for one in lines(written)}
    above = sent["parent"]
    while above in parents:  # FastAPI may make spans of its own in between
        above = parents[above]
    assert above == caller
    for _, headers in told(bench)[task_id]:
        assert ("tracestate", b"a=b") in headers
        assert header_of(sent) <= without_flags(headers)


def test_worker_and_children_tell_at_their_end_what_a_batch_still_holds(bench: Bench, written: Path) -> None:
    """Also a child that was told to stop, and ends without exit handlers."""
    bench.worker(app=APP, ACCEPTANCE_SPANS=str(written), ACCEPTANCE_SPANS_LATE="1")
    receipt = bench.client.submit("in_a_child", {"path": "/never"})
    until(bench.running, "it has begun")
    bench.client.cancel(receipt.task_id)
    assert bench.end(receipt.task_id).status == "cancelled"
    bench.finish()
    (attempt,) = lines(written, name="process in_a_child")
    assert attempt["attributes"]["streamtask.stopped"] == "cancel"
    assert [one["parent"] for one in lines(written, name="inside in_a_child")] == [attempt["id"]]
    assert attempt["pid"] != lines(written, name="inside in_a_child")[0]["pid"]


def test_the_example_prints_one_trace_for_each_task(bench: Bench) -> None:
    bench.tolerated = ("exception.stacktrace",)  # of the bank: that is what is shown
    worker = bench.supervised(app="examples.tracing.app:app")
    receipts = [bench.client.submit("charge", {"amount": 5}), bench.client.submit("invoice", {"pages": 3})]
    assert [receipt.result(60) for receipt in receipts] == ["5 charged", 3]
    bench.finish()
    printed = list(spans_in(worker.text()))
    charged = [span for span in printed if span["name"] == "process charge"]
    assert [span["status"]["status_code"] for span in charged] == ["ERROR", "UNSET"]
    asked = [span["parent_id"] for span in printed if span["name"] == "ask the bank"]
    assert asked == [span["context"]["span_id"] for span in charged]
    (made,) = [span for span in printed if span["name"] == "process invoice"]
    (inside,) = [span for span in printed if span["name"] == "print"]
    assert inside["parent_id"] == made["context"]["span_id"]
    assert made["resource"]["attributes"]["service.name"] == "shop"


def spans_in(text: str) -> Iterator[Line]:
    """What ConsoleSpanExporter printed between other lines."""
    decoder = json.JSONDecoder()
    at = 0
    while (at := text.find('{\n    "name"', at)) >= 0:
        span, at = decoder.raw_decode(text, at)
        yield span
