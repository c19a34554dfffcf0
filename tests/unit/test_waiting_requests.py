"""A request that waits is its bytes: its parameters are dropped after they were checked, and read again when it starts."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtask.codec import RequestDecoder, encode_dead, reopened
from streamtask.codec.formats import avro_encoder
from streamtask.codec.request import WHOLE_BYTES_MAX
from streamtask.config import TopicNames
from streamtask.core.memory import record_weight
from streamtask.domain.model import DeadLetter, Ending, HandlerKind, Outcome, RequestRecord, TaskRequest
from streamtask.domain.ports import Start
from streamtask.execution.executor import Executor
from streamtask.execution.process_pool import pipe
from streamtask.handlers.options import Retry
from streamtask.handlers.registry import Context, Registry, make_handler
from streamtask.schema_registry.subjects import documents

NAMES = TopicNames()
WHOLE = RequestDecoder(NAMES, "cluster")
COMPACT = RequestDecoder(NAMES, "cluster", compact=True)
TASK_ID = "018f0000-0000-7000-8000-000000000001"
ROWS = [{"id": n, "name": f"n{n}", "v": n / 2} for n in range(300)]
WAIT_S = 60.0
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner, max_size=9),
    max_leaves=40,
)


def value_of(**fields: Any) -> bytes:
    return json.dumps({"task_type": "census", "task_id": TASK_ID, **fields}).encode("utf-8", "surrogatepass")


def read(decoder: RequestDecoder, value: bytes) -> RequestRecord:
    return decoder.decode(1, 3, 7, 1_795_505_160_123, None, value, None)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=9), JSON, max_size=9), st.text(max_size=2_000), st.booleans())
def test_what_is_read_again_is_what_was_read_at_first(parameters: dict[str, Any], text: str, labelled: bool) -> None:
    more = {"labels": {"a": "b"}, "ordering_key": "k", "timeout_seconds": 3.5} if labelled else {}
    value = value_of(parameters=parameters, description=text, **more)
    whole, compact = read(WHOLE, value), read(COMPACT, value)
    if whole.request is None or compact.request is None:
        assert (whole.request, whole.problem, whole.task_id) == (compact.request, compact.problem, compact.task_id)
        return
    if compact.text is not None:
        assert compact.request.parameters is None
        assert reopened(compact.text) == whole.request
        kept = compact.request.model_copy(
            update={"parameters": whole.request.parameters, "description": whole.request.description}
        )
    else:
        kept = compact.request
    assert kept == whole.request
    compact.request, compact.text = whole.request, None
    assert compact == whole


def test_the_bytes_of_a_waiting_request_are_held_once_and_nothing_is_held_beside_them() -> None:
    value = value_of(parameters={"rows": ROWS})
    record = read(COMPACT, value)
    assert record.text is record.value
    assert record.request is not None
    assert record.request.parameters is None
    held = sum(
        sys.getsizeof(one) for one in (record.request, record.request.__dict__, *record.request.__dict__.values())
    )
    assert held < 1_000
    assert len(value) < record_weight(record) < len(value) + 4_000


def test_a_tiny_request_stays_decoded() -> None:
    record = read(COMPACT, value_of(parameters={"n": 1}))
    assert record.text is None
    assert record.request is not None
    assert record.request.parameters == {"n": 1}


def test_few_bytes_that_decode_to_many_objects_are_no_tiny_request() -> None:
    value = value_of(parameters={"a": [[] for _ in range(200)]})
    assert len(value) < WHOLE_BYTES_MAX
    assert read(COMPACT, value).text is not None


@pytest.mark.parametrize(
    "value",
    [
        value_of(parameters={"rows": ROWS}, priority=11),
        value_of(parameters=ROWS),
        value_of(parameters={"rows": ROWS})[:-1],
        value_of(parameters={"rows": ROWS}, expires_at="tomorrow"),
        value_of(parameters={"rows": ROWS}).replace(b"0.5", b"NaN"),
    ],
    ids=["priority", "no object", "no JSON", "no time", "NaN"],
)
def test_what_is_wrong_with_a_request_is_told_when_it_is_read_and_in_the_same_words(value: bytes) -> None:
    whole, compact = read(WHOLE, value), read(COMPACT, value)
    assert compact.problem is not None
    assert compact == whole


def test_a_request_in_avro_keeps_its_bytes_for_its_dead_letter_and_needs_no_schema_when_it_starts() -> None:
    request = TaskRequest(task_type="census", task_id=TASK_ID, parameters={"rows": ROWS})
    value = avro_encoder(documents(NAMES)).request(NAMES.requests[1], request)
    record = read(COMPACT, value)
    assert record.text is not None
    assert record.text[:1] == b"{"
    assert reopened(record.text).parameters == {"rows": ROWS}
    letter = DeadLetter(record, "handler_error", "no", "normal-3@7", TASK_ID)
    _key, dead, _headers = encode_dead(letter, NAMES, worker="w", failed_at_ms=0, value_bytes_max=1_000_000)
    assert dead == value
    assert record_weight(record) > len(value) + len(record.text), "both are held"


# --- Where it runs ----------------------------------------------------------------------------------------------------

SEEN: list[Any] = []


async def census(ctx: Context, rows: list[dict[str, Any]]) -> int:
    SEEN.append((ctx.request.description, ctx.request.parameters))
    rows[0]["id"] = "changed by the handler"
    return len(rows)


def count(ctx: Context, rows: list[dict[str, Any]]) -> int:
    SEEN.append((threading.current_thread().name[:10], ctx.request.parameters))
    return len(rows)


def _run(handler: Any, record: RequestRecord, kind: HandlerKind, attempts: int = 1) -> list[Outcome]:
    registry = Registry()
    registry.add(make_handler(handler, retry=Retry(attempts=3)))
    executor, found = Executor(registry), []
    executor.start()
    try:
        for attempt in range(1, attempts + 1):
            executor.submit([Start(attempt, record, attempt, kind, None)])
            while not (done := executor.drain()[0]):
                assert executor.wait(WAIT_S), "no outcome"
            found += [outcome for _, outcome in done]
    finally:
        executor.stop(1.0)
    return found


def test_a_coroutine_gets_the_whole_request_and_each_attempt_its_own() -> None:
    SEEN.clear()
    record = read(COMPACT, value_of(parameters={"rows": ROWS}, description="d" * 50))
    outcomes = _run(census, record, HandlerKind.ASYNC, attempts=2)
    assert [(one.ending, one.result) for one in outcomes] == [(Ending.RETURNED, b"300")] * 2
    assert SEEN[0][0] == SEEN[1][0] == "d" * 50
    assert SEEN[1][1]["rows"][1:] == ROWS[1:]
    assert SEEN[0][1] is not SEEN[1][1]
    assert record.request is not None
    assert record.request.parameters is None, "what waits for its next attempt is its bytes again"


def test_a_thread_gets_the_whole_request() -> None:
    SEEN.clear()
    record = read(COMPACT, value_of(task_type="count", parameters={"rows": ROWS}))
    assert [one.result for one in _run(count, record, HandlerKind.THREAD)] == [b"300"]
    assert SEEN == [("streamtask", {"rows": ROWS})]


def test_a_child_gets_the_bytes_and_reads_the_whole_request_from_them() -> None:
    value = value_of(parameters={"rows": ROWS}, labels={"a": "b"})
    start = Start(5, read(COMPACT, value), 1, HandlerKind.PROCESS, None)
    payload = pipe.job_of(start, None)
    assert value in payload
    assert len(payload) < len(value) + 1_000
    there = pipe.read_job(payload)[0].record
    assert there.request == read(WHOLE, value).request


def test_a_lack_of_memory_when_it_is_read_again_is_a_failure_of_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_text: bytes) -> TaskRequest:
        raise MemoryError

    monkeypatch.setattr("streamtask.execution.live_context.reopened", full)
    for handler, kind in ((census, HandlerKind.ASYNC), (count, HandlerKind.THREAD)):
        record = read(COMPACT, value_of(task_type=handler.__name__, parameters={"rows": ROWS}))
        outcome = _run(handler, record, kind)[0]
        assert (outcome.ending, outcome.code, outcome.retryable) == (Ending.RAISED, "handler_error", True)
        assert outcome.exception == "MemoryError"
