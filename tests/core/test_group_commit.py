"""When a batch is filled while a backlog waits, and when it is built at once."""

from __future__ import annotations

from typing import Any

from streamtask.core.slot_sharing import FILL_MS
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord, TaskPolicy
from tests.core.desk import Desk

SHORT = Outcome(Ending.RETURNED, b"1", ran_ms=1.0)
POLICIES = {
    "short": TaskPolicy(kind=HandlerKind.PROCESS),
    "limited": TaskPolicy(kind=HandlerKind.PROCESS, concurrency=1),
    "noop": TaskPolicy(),
}


class Busy(Desk):
    """Two children, with 64 executions of a millisecond in flight, one of which ends in each millisecond."""

    def __init__(self, backlog: int = 200, first: str = "short", **more: Any) -> None:
        slots = {HandlerKind.ASYNC: 2, HandlerKind.THREAD: 1, HandlerKind.PROCESS: 2}
        super().__init__(POLICIES, slots=slots)
        self.ready()
        for name in ("short", "limited"):
            self.engine.schedule.pace.ran(name, 1.0)
        self.one = self.submit(first, **more)
        for _ in range(backlog):
            self.submit("short")
        self.settle()
        for _ in range(4):
            self.pass_ms(20)
            self.turn()
        self.later(FILL_MS)
        self.settle()

    def pass_ms(self, ms: int) -> list[RequestRecord]:
        """So many end. Returns their records."""
        self.later(ms)
        ended = [s.record for s in self.running.values() if s.record is not self.one][:ms]
        for record in ended:
            self.end(record, SHORT)
        return ended

    def committed(self, record: RequestRecord) -> bool:
        return "completed" in self.history(record)


def test_ends_wait_for_others_while_a_backlog_waits_and_what_is_started_lasts() -> None:
    desk = Busy()
    ended = desk.pass_ms(10)
    assert not desk.turn()
    assert desk.engine.next_due_ms(desk.now) == desk.engine.fills_ms(desk.now) > 0
    ended += desk.pass_ms(10)
    assert not desk.turn()
    desk.later(FILL_MS - 20)
    assert desk.turn()
    assert all(map(desk.committed, ended))


def test_a_batch_is_built_before_what_is_started_has_ended() -> None:
    desk = Busy()
    assert len(desk.running) > FILL_MS
    desk.pass_ms(1)
    assert not desk.turn()
    for record in [start.record for start in desk.running.values() if start.record is not desk.one][2:]:
        desk.end(record, SHORT)
    assert desk.engine.schedule.waiting
    assert desk.turn()


def test_without_a_backlog_an_end_is_committed_at_once() -> None:
    desk = Busy(backlog=110)
    assert desk.running
    assert not desk.engine.schedule.waiting
    (ended,) = desk.pass_ms(1)
    assert desk.turn()
    assert desk.committed(ended)


def test_a_request_of_the_first_band_starts_while_a_batch_is_filled() -> None:
    desk = Busy()
    desk.pass_ms(1)
    assert not desk.turn()
    urgent = desk.submit("short", band=0)
    assert desk.turn()
    assert desk.history(urgent) == ["created", "running 1"]


def test_a_request_for_a_free_slot_of_another_kind_starts_while_a_batch_is_filled() -> None:
    desk = Busy()
    desk.pass_ms(1)
    assert not desk.turn()
    other = desk.submit("noop")
    assert desk.turn()
    assert desk.history(other) == ["created", "running 1"]


def test_an_end_that_others_wait_for_is_committed_at_once() -> None:
    for wanted in (Busy(ordering_key="k"), Busy(first="limited"), Busy(first="noop")):
        wanted.pass_ms(1)
        assert not wanted.turn()
        wanted.end(wanted.one, SHORT)
        assert wanted.turn()
        assert wanted.committed(wanted.one)


def test_a_running_task_is_stopped_while_a_batch_is_filled() -> None:
    desk = Busy()
    desk.pass_ms(1)
    desk.engine.cancel_read([desk.one.task_id], desk.now)
    assert not desk.turn()
    assert [stop.token for stop in desk.stops] == [
        token for token, start in desk.running.items() if start.record is desk.one
    ]


def test_a_worker_that_drains_commits_at_once() -> None:
    desk = Busy()
    (ended,) = desk.pass_ms(1)
    assert not desk.turn()
    desk.engine.drain()
    assert desk.turn()
    assert desk.committed(ended)
