"""Recovering a shard from its status events: each new fact is handed to the owner once, and waiting costs no CPU."""

from __future__ import annotations

from typing import Any

import pytest

from streamtask.codec import encode_status
from streamtask.config import TopicNames
from streamtask.domain.model import StatusEvent, TaskStatus
from streamtask.domain.ports import RecallStatus
from streamtask.kafka.tail import TailRecord
from streamtask.observability import event_log
from streamtask.worker import recovery

NAMES = TopicNames()
SHARD, EPOCH = 3, 7
ID = "0192f0c1-2b3c-7d4e-8f50-112233445566"


class Side:
    """A SideReader whose records and marks come when the test says so."""

    def __init__(self) -> None:
        self.records: list[TailRecord] = []
        self.at_end = False

    def take(self, _topic: str) -> list[TailRecord]:
        records, self.records = self.records, []
        return records

    def reached(self, _mark: object) -> bool:
        return self.at_end

    def read(self, _place: object) -> None: ...
    def resume(self, _place: object) -> None: ...
    def drop(self, _place: object) -> None: ...


def record(offset: int, value: bytes | None) -> TailRecord:
    return TailRecord(NAMES.status, SHARD, offset, 0, ID.encode(), value, ())


def test_a_recovery_that_waits_for_a_broker_does_not_keep_its_owner_busy() -> None:
    """Bug: each turn had a slice of nothing, so the owner never rested: a processor was taken for the whole wait. Beside
    brokers on the same two processors that ended the group's sessions, and the recovery began anew, for ever."""
    side = Side()
    recall = recovery.StatusRecall(side, NAMES)  # type: ignore[arg-type]
    recall.begin(RecallStatus(SHARD, EPOCH))
    assert recall.poll() == []
    side.records = [record(0, None)]  # the mark of a deleted key says nothing
    assert recall.poll() == []
    event = StatusEvent(ID, SHARD, TaskStatus.RUNNING, 1, 1, f"high-{SHARD}@17", attempt=1)
    side.records = [record(1, encode_status(event, locale="en", worker="w"))]
    ((shard, epoch, facts, done),) = recall.poll()
    assert (shard, epoch, len(facts), done) == (SHARD, EPOCH, 1, False)
    assert recall.poll() == []
    side.at_end = True
    assert recall.poll() == [(SHARD, EPOCH, [], True)]
    assert not recall
    assert recall.poll() == []


def test_a_recovery_that_gets_nothing_to_read_says_so_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in chaos: a broker left a transaction open for ever, and the shard stood still for 20 minutes without a word."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(event_log, "emit", lambda name, fields: said.append({"event": name, **fields}))
    now_s = 0.0
    recall = recovery.StatusRecall(Side(), NAMES, clock=lambda: now_s)  # type: ignore[arg-type]
    recall.begin(RecallStatus(SHARD, EPOCH))
    while now_s < 250:
        now_s += 1
        recall.poll()
    assert [one["seconds"] for one in said] == [30, 60, 120, 240]
    assert said[0] == {"event": "recovery_waits", "shard": SHARD, "topic": NAMES.status, "seconds": 30}
