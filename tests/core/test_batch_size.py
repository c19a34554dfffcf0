"""What one transaction carries: every byte is weighed, and a batch that was not taken in time is made smaller."""

from __future__ import annotations

from typing import Any

import pytest

from streamtask.codec import encode_dead, encode_status, status_headers, status_key
from streamtask.config import TopicNames
from streamtask.core.batch_size import BYTES_MIN, FLUSH_MS, PATIENCE_MAX_MS, RISE_BYTES, SILENT_MS, BatchSize
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord
from streamtask.domain.ports import Answer, Ask, Fault, FaultKind, Flush, Produce, RenewProducer, Waiting
from tests.core.desk import Desk, raised

SLOTS = {HandlerKind.ASYNC: 100, HandlerKind.THREAD: 0, HandlerKind.PROCESS: 0}
FULL = 16_000_000


def desk() -> Desk:
    d = Desk(slots=SLOTS)
    d.ready()
    d.turn()
    return d


def sent_bytes(d: Desk) -> int:
    """Of the next batch, as the codec writes it."""
    made = d.engine.build(d.now)
    assert made is not None
    size = 0
    for event in made.plan.events:
        value = encode_status(event, locale="en", worker="w" * 60)
        size += len(value) + len(status_key(event)) + sum(len(n) + len(v) for n, v in status_headers(event) or ())
    for letter in made.plan.dead:
        limits: dict[str, Any] = {"value_bytes_max": 1_000_000, "worker": "w" * 60, "failed_at_ms": d.now.wall_ms}
        key, value, headers = encode_dead(letter, TopicNames(), traceback=False, **limits)
        size += len(key or b"") + len(value) + sum(len(n) + len(v) for n, v in headers)
    assert made.bytes >= size, f"weighed {made.bytes}, sent {size}"
    return size


class Link:
    """Acknowledges so many bytes a second of the results in a batch; `takes_ms` of one flush."""

    def __init__(self, d: Desk, rate: int) -> None:
        self.d, self.rate = d, rate
        self.sizes: list[int] = []
        self._plan: object = None
        self._began = 0
        self._real, d.perform = d.perform, self.perform  # type: ignore[method-assign]

    def perform(self, ask: Ask) -> Answer:
        if not isinstance(ask, Flush):
            return self._real(ask)
        size = sum(len(e.result or b"") for e in ask.plan.events)
        if ask.plan is not self._plan:
            self._plan, self._began = ask.plan, self.d.now.mono_ms
            self.sizes.append(size)
        left_ms = size * 1_000 // self.rate - (self.d.now.mono_ms - self._began)
        self.d.later(max(0, min(ask.wait_ms, left_ms)))
        if left_ms <= ask.wait_ms:
            return self._real(ask)
        if ask.last:
            return Fault(FaultKind.FENCED, "records not acknowledged in time")
        count = len(ask.plan.events)
        return Waiting(max(1, round(count * left_ms * self.rate / 1_000 / max(size, 1))), count)


def results(d: Desk, count: int, size: int) -> list[RequestRecord]:
    records = [d.submit() for _ in range(count)]
    d.turn()
    for record in records:
        d.end(record, Outcome(Ending.RETURNED, result=b'"' + b"x" * size + b'"'))
    return records


def test_a_batch_weighs_labels_and_trace_headers() -> None:
    """Bug: 120 events with labels of 130 KB each were one batch of 16 MB that weighed nothing."""
    d = desk()
    labels = {f"{n:03d}" + "n" * 1021: "v" * 1024 for n in range(64)}
    for _ in range(300):
        d.submit(labels=labels)
    assert sent_bytes(d) <= FULL
    assert d.engine.build(d.now).bytes > FULL * 0.9, "a batch is as full as it may be"  # type: ignore[union-attr]


def test_a_batch_weighs_tracebacks_and_the_headers_of_dead_letters() -> None:
    d = desk()
    records = [d.record() for _ in range(80)]
    for record in records:
        record.headers = tuple((f"h{n}", b"v" * 1_000) for n in range(60))
    d.feed(*records)
    d.turn()
    for record in records:
        d.end(record, raised("e" * 9_000, traceback="t" * 90_000))
    assert sent_bytes(d) <= FULL


@pytest.mark.parametrize("rate", [2_000_000, 500_000, 100_000, 40_000])
def test_a_slow_link_takes_every_result(rate: int) -> None:
    """Bug: a batch that could not be flushed in 5 s was built again at the same size, for ever."""
    d = desk()
    link = Link(d, rate)
    records = results(d, 12, 900_000)
    for _ in range(60):
        d.turn()
    assert [d.history(record)[-1] for record in records] == ["completed"] * 12
    assert len(link.sizes) < 40, f"{len(link.sizes)} tries"


def test_one_record_slower_than_the_usual_transaction_gets_a_longer_one() -> None:
    d = desk()
    Link(d, 60_000)
    (record,) = results(d, 1, 900_000)
    for _ in range(10):
        d.turn()
    assert d.history(record)[-1] == "completed"
    assert any(isinstance(ask, RenewProducer) and ask.patient for ask in d.asked)


def test_a_link_that_is_fast_again_is_used_again() -> None:
    d = desk()
    link = Link(d, 100_000)
    results(d, 3, 900_000)
    for _ in range(20):
        d.turn()
    slow = d.engine.size.limit
    link.rate = 100_000_000
    for _ in range(120):
        for _ in range(20):
            d.submit()
        d.turn()
        for start in list(d.running.values()):
            d.end(start.record, Outcome(Ending.RETURNED, result=b'"' + b"x" * 900_000 + b'"'))
        d.turn()
    assert slow < 200_000
    assert d.engine.size.limit == FULL


def test_the_size_rises_by_addition_and_falls_by_division() -> None:
    size = BatchSize(FULL)
    size.taken(FULL, 100)
    assert size.limit == FULL, "never more than the configured"
    size.not_taken(FULL, 0.0, 5_000)
    assert FULL // 16 <= size.limit <= FULL // 2
    before = size.limit
    size.taken(before, 100)
    assert size.limit == before + RISE_BYTES
    size.taken(before, 4_000)
    assert size.limit == before // 4, "what passes in a second, as it has shown"
    size.taken(1_000, 100)
    assert size.limit == before // 4, "a small batch shows nothing"
    for _ in range(40):
        size.not_taken(FULL, 0.0, 5_000)
    assert size.limit == BYTES_MIN


def test_a_small_batch_that_nobody_answers_makes_no_batch_smaller() -> None:
    size = BatchSize(FULL)
    for _ in range(10):
        size.not_taken(2_000, 0.0, 5_000)
    assert size.limit == FULL
    assert not size.slow


def test_the_time_for_one_record_doubles_until_it_passes_and_has_an_end() -> None:
    size = BatchSize(FULL)
    patience = []
    for _ in range(12):
        patience.append(size.patience_ms(900_000))
        size.not_taken(900_000, 0.0, patience[-1])
    assert patience == sorted(patience)
    assert patience[0] < FLUSH_MS + 200
    assert patience[-1] == PATIENCE_MAX_MS


def test_silence_is_waited_for_longer_each_time() -> None:
    size = BatchSize(FULL)
    assert size.silent_ms(1_000) == SILENT_MS
    size.not_taken(1_000, 0.0, SILENT_MS)
    assert size.silent_ms(1_000) == FLUSH_MS


def test_a_quota_is_waited_out_before_a_transaction_begins() -> None:
    """An open transaction that waits for a broker's quota outlives its timeout."""
    d = desk()
    record = d.submit()
    d.engine.hold(4_000, d.now)
    d.asked.clear()
    assert not d.turn()
    d.later(3_999)
    assert not d.turn()
    assert not any(isinstance(ask, Produce) for ask in d.asked)
    d.later(1)
    assert d.turn()
    assert d.history(record) == ["created", "running 1"]
