"""The view without HTTP: what it makes of records in any order, and how its thread lives."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Sequence

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtask.domain.identity import Origin, derived, new_task_id
from streamtask.errors import Unreachable
from streamtask.projection import view as view_service
from streamtask.projection.feed import Heard
from streamtask.projection.materialize import Materializer, _ms
from streamtask.projection.sqlite import SQLiteStore
from streamtask.projection.store import Filter, Known, MemoryStore, Row
from streamtask.projection.view import Retention, ViewService
from tests.unit.view_bench import CLUSTER, NAMES, T0, Log, LogRecord, bench, until

TASK = new_task_id()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def all_records(log: Log) -> list[LogRecord]:
    return list(itertools.chain.from_iterable(log._records.values()))


def folded(records: Sequence[LogRecord], cuts: Sequence[int] = (), *, restoring: bool = False) -> Row | None:
    """The row of TASK after these records, applied in batches that end at `cuts`."""
    store = MemoryStore()
    view = Materializer(store, NAMES, CLUSTER)
    view.restoring(into_empty=restoring)
    edges = [0, *sorted(set(cuts)), len(records)]
    for start, end in itertools.pairwise(edges):
        view.apply(records[start:end], {})
    return store.get(TASK)


def a_history(tenant: str | None = "acme") -> list[LogRecord]:
    """Two requests with one id, and the events of both. A request without a tenant is read when its row is wanted."""
    log = Log()
    origin = log.request(1, 0, {"task_type": "x", "task_id": TASK, "tenant": tenant})
    log.status(TASK, "created", origin)
    log.status(TASK, "running", origin, attempt=1)
    log.status(TASK, "running", origin, attempt=1, progress=0.5)
    log.status(TASK, "completed", origin, attempt=1)
    again = log.request(2, 0, {"task_type": "x", "task_id": TASK, "tenant": tenant and "other"})
    log.status(TASK, "created", again)
    log.status(TASK, "failed", again)
    return all_records(log)


@settings(deadline=None, max_examples=200)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 8), max_size=4), st.sampled_from(["acme", None]))
def test_any_order_in_any_batches_folds_to_the_same_row(
    order: random.Random, cuts: list[int], tenant: str | None
) -> None:
    records = a_history(tenant)
    expected = folded(records)
    assert expected is not None
    assert (expected.status, expected.version, expected.origin, expected.band) == ("completed", 4, "normal-0@0", 1)
    order.shuffle(records)
    for restoring in (False, True):
        found = folded(records, [cut for cut in cuts if cut <= len(records)], restoring=restoring)
        assert found is not None
        assert found._replace(tenant=None) == expected._replace(tenant=None)


EVENTS = st.tuples(
    st.sampled_from(["created", "running", "completed", "failed"]),
    st.sampled_from(["normal-0@0", "normal-1@7", "high-0@3", ""]),
    st.sampled_from(["ours", "other order", "torn"]),
)


def spelled(status: str, origin: str, spelling: str) -> bytes:
    """An event as our writers spell it, as others may, or with its middle gone."""
    document = {"task_id": TASK, "status": status, "result": {"origin": "low-9@9"}, "origin": origin}
    if spelling == "ours":
        return orjson.dumps(document)
    if spelling == "torn":
        return orjson.dumps(document).replace(b'"result":', b"")
    return orjson.dumps(dict(reversed(document.items())))


@settings(deadline=None, max_examples=300)
@given(st.lists(EVENTS, max_size=7), st.lists(st.integers(0, 7), max_size=3))
def test_what_is_passed_over_within_a_batch_would_not_have_stood(
    events: list[tuple[str, str, str]], cuts: list[int]
) -> None:
    events.sort(
        key=lambda event: event[1] == "high-0@3"
    )  # two histories in one partition do not overlap (core/fold.py, 3)
    records = [LogRecord("t.status", 0, at, T0, TASK.encode(), spelled(*event)) for at, event in enumerate(events)]
    one_by_one = folded(records, range(len(records)))
    assert folded(records) == one_by_one
    assert folded(records, [cut for cut in cuts if cut <= len(records)]) == one_by_one


def test_of_a_history_in_one_batch_the_last_event_alone_is_read_and_all_are_counted() -> None:
    log = Log()
    for status in ("created", "running", "completed"):
        log.status(TASK, status, Origin("normal", 0, 0), attempt=1)
    store = MemoryStore()
    view = Materializer(store, NAMES, CLUSTER)
    assert len(view.read(all_records(log))) == 1
    assert len(view.read(all_records(log), every=True)) == 3
    assert view.tally.events == 6


class Asked(MemoryStore):
    """Remembers about which tasks it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[set[str]] = []

    def known(self, task_ids: Collection[str]) -> dict[str, Known]:
        self.asked.append(set(task_ids))
        return super().known(task_ids)


def test_while_an_empty_store_is_filled_it_is_asked_only_about_tasks_that_it_may_know() -> None:
    log, other = Log(), new_task_id()
    for task_id in (TASK, other):
        log.status(task_id, "created", Origin("normal", 0, 0))
        log.status(task_id, "completed", Origin("normal", 0, 0))
    records, store = all_records(log), Asked()
    view = Materializer(store, NAMES, CLUSTER)
    view.restoring(into_empty=True)
    view.apply(records[:1], {})
    view.apply(records[1:], {})
    view.restoring(into_empty=False)
    view.apply(records[3:], {})
    assert store.asked == [set(), {TASK}, {other}]
    assert [row.status for row in store.list(Filter(), None, 10).rows] == ["completed", "completed"]


def test_who_begins_to_listen_while_a_batch_is_applied_is_given_the_same_events_as_who_listened_before() -> None:
    log = Log()
    for status in ("created", "running", "completed"):
        log.status(TASK, status, Origin("normal", 0, 0), attempt=1)
    records = all_records(log)
    before = Materializer(MemoryStore(), NAMES, CLUSTER)
    meanwhile = Materializer(MemoryStore(), NAMES, CLUSTER)
    before.apply(records[:1], {})
    meanwhile.apply(records[:1], {})
    feed: list[Heard] = []
    before.apply(records, {}, feed)
    meanwhile.apply(records, {})
    assert [event.status for event in feed] == ["running", "completed"]
    assert meanwhile.heard_again(records) == feed
    assert meanwhile.tally == before.tally


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_tenant_of_the_request_is_kept_whichever_comes_first(order: tuple[int, ...]) -> None:
    history = [record for record in a_history() if record.topic != "t.requests.low"]
    records = [history[number] for number in order]
    for cuts in ([], [1], [2], [1, 2]):
        row = folded(records, cuts)
        assert row is not None
        assert row.tenant == "acme", (order, cuts)


def test_the_tenant_of_another_request_with_the_same_id_is_never_taken() -> None:
    for order in itertools.permutations(a_history()[:3]):  # two requests, and an event of the first
        for cuts in ([], [1], [2], [1, 2]):
            row = folded(order, cuts)
            assert row is not None
            assert (row.origin, row.tenant) in {("normal-0@0", "acme"), ("normal-0@0", None)}


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_of_two_requests_with_one_id_the_same_one_is_shown_whether_they_have_a_tenant_or_not(
    order: tuple[int, ...],
) -> None:
    for tenant in ("acme", None):
        requests = [record for record in a_history(tenant) if record.topic != "t.status"]
        row = folded([requests[number] for number in order])
        assert row is not None
        assert (row.origin, row.tenant, row.status) == ("low-0@0", tenant and "other", "created")


def test_a_request_without_an_id_has_the_derived_one_and_one_that_is_wrong_is_shown_if_it_names_one() -> None:
    log = Log()
    log.request(0, 1, {"task_type": "x"})
    log.request(0, 1, {"task_type": "", "task_id": TASK})
    log.request(0, 1, {"task_type": "x", "task_id": "no uuid"})
    log.append("t.requests.low", 0, None, None)
    store = MemoryStore()
    view = Materializer(store, NAMES, CLUSTER)
    assert set(view.apply(all_records(log), {})) == {derived(CLUSTER, "t.requests.high", 1, 0, T0), TASK}
    assert (view.tally.requests, view.tally.unreadable) == (2, 2)


@pytest.mark.parametrize(
    "value",
    [
        *(None, b"", b"x", b"[]", b'{"task_id":"x","status":"running"}', b'{"task_id":"%s"}' % TASK.encode()),
        b'{"task_id":"%s","status":[]}' % TASK.encode(),  # bug: it ended the view with a TypeError
    ],
    ids=["null", "empty", "text", "array", "no uuid", "no status", "a list"],  # TASK differs in every process
)
def test_a_status_record_that_cannot_be_read_stops_nothing(value: bytes | None) -> None:
    view = Materializer(MemoryStore(), NAMES, CLUSTER)
    assert view.apply([LogRecord("t.status", 0, 0, T0, None, value)], {}) == []
    assert view.tally.unreadable == 1


def test_columns_take_only_what_has_the_right_type() -> None:
    body = orjson.dumps({"task_id": TASK, "status": "running", "priority": "5", "task_type": 7, "created_at": "x"})
    row = folded([LogRecord("t.status", 0, 9, T0, None, body)])
    assert row == Row(TASK, body, "running", None, None, None, T0, T0, 10, "", 0, -1)


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_of_ours_is_read_the_same_the_first_and_the_second_time(ms: int) -> None:
    from streamtask.codec.wire import time_text

    assert (_ms(time_text(ms), -1), _ms(time_text(ms), -1)) == (ms, ms)


@pytest.mark.parametrize("text", ["", "x" * 24, "2026-11-24T07:26:00", "2026-11-24T07:26:00.1²3Z", None, 5])
def test_what_is_no_time_is_the_records_own(text: object) -> None:
    assert _ms("2026-11-24T07:26:00.123Z", -1) > 0
    assert _ms(text, T0) == T0


@pytest.mark.anyio
async def test_batches_of_heavy_events_are_bounded_by_their_bytes_while_restoring_and_serving() -> None:
    """Bug: 50,000 events were one batch, whatever they weighed."""
    log = Log()
    result = b'"' + b"x" * 900_000 + b'"'
    for number in range(60):
        log.status(new_task_id(), "completed", Origin("low", 0, number), result=result)
    async with bench(log) as view:
        await view.until_ready()
        assert max(log.batches) == 28
        log.batches.clear()
        log.hold()
        for number in range(12):
            log.status(new_task_id(), "completed", Origin("low", 0, 100 + number), result=result)
        log.release()
        await view.until_read()
        assert max(log.batches) <= 5


def test_the_result_of_an_event_is_not_kept_decoded_while_its_batch_is_folded() -> None:
    """Bug: 900 KB of nested lists took 25 MB, for every event of a batch."""
    value = orjson.dumps({"task_id": TASK, "status": "completed", "result": [[]] * 1_000, "origin": "low-0@0"})
    (fact,) = Materializer(MemoryStore(), NAMES, CLUSTER).read(
        [LogRecord("t.status", 0, 0, T0, TASK.encode(), value)], every=True
    )
    assert "result" not in fact.document  # type: ignore[union-attr]
    assert fact.body == value  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_batches_are_long_while_restoring_and_short_while_serving() -> None:
    log = Log()
    for _ in range(1_000):
        log.request(1, 0, {"task_type": "x"})
    async with bench(log) as view:
        await view.until_ready()
        assert max(log.batches) == 1_000
        log.batches.clear()
        log.hold()
        for _ in range(1_000):
            log.request(1, 0, {"task_type": "x"})
        log.release()
        await view.until_read()
        assert max(log.batches) <= view_service.SERVING_RECORDS


@pytest.mark.anyio
async def test_topics_that_are_not_the_same_any_more_are_opened_anew_and_nothing_is_ready_until_then() -> None:
    async with bench() as view:
        await view.until_ready()
        view.log.hold()
        view.log.request(1, 0, {"task_type": "x"})
        view.log.go_stale()
        await until(lambda: view.log.opened == 2)
        assert not view.service.ready
        view.log.release()
        await until(lambda: view.service.ready)


@pytest.mark.anyio
async def test_a_cluster_that_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_service, "REOPEN_S", 0.01)
    async with bench() as view:
        await view.until_ready()
        view.log.broken = Unreachable("no broker")
        await until(lambda: view.log.opened > 3)
        view.log.broken = None
        await until(lambda: view.service.ready)
        assert any("no broker" in note for note in view.service.health()["notes"])
        assert view.service.failure is None


@pytest.mark.anyio
async def test_an_open_transaction_shows_in_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_service, "LOOK_S", 0.001)
    log = Log()
    origin = log.request(1, 0, {"task_type": "x", "task_id": TASK})
    log.status(TASK, "created", origin)
    log.open_transaction["t.status", 0] = 1
    async with bench(log) as view:
        await view.until_ready()
        await until(lambda: view.service.health()["read_committed_age_s"] > 0)
        log.open_transaction.clear()
        await until(lambda: view.service.health()["read_committed_age_s"] == 0)


@pytest.mark.anyio
async def test_the_view_forgets_what_the_topics_forget() -> None:
    log = Log()
    old, unstarted, fresh = new_task_id(), new_task_id(), new_task_id()
    origin = log.request(1, 0, {"task_type": "x", "task_id": old}, timestamp_ms=1_000)
    log.status(old, "completed", origin, updated_ms=2_000)
    log.request(1, 0, {"task_type": "x", "task_id": unstarted}, timestamp_ms=view_service.now_ms() - 60_000)
    log.request(1, 0, {"task_type": "x", "task_id": fresh}, timestamp_ms=view_service.now_ms())
    store = SQLiteStore(None)
    # The event's created_at is T0, in the future of a clock that is behind: only its own times count.
    retention = Retention(status_ms=view_service.now_ms() - T0 - 5_000, requests_ms=30_000)
    service = ViewService(store, log.open, NAMES, CLUSTER, retention=retention)
    async with service.running():
        await until(lambda: service.ready and service.get(unstarted) is None and service.get(old) is None)
        assert service.get(fresh) is not None
    store.close()


@pytest.mark.anyio
async def test_a_store_that_fails_ends_the_view_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemoryStore):
        def apply(self, *_: object) -> None:
            raise OSError("disk full")

    log = Log()
    log.request(1, 0, {"task_type": "x"})
    async with bench(log, Full()) as view:
        await until(view.service.ended.is_set)
        assert view.service.failure == "OSError: disk full"
    assert "disk full" in caplog.text
