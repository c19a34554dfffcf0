"""A log that is cut, or whose topic is made anew, while its owner works: the shard is claimed again."""

from __future__ import annotations

from collections.abc import Iterable

from streamtask.core import ownership
from streamtask.core.offset_map import head_of
from streamtask.domain.model import HandlerKind
from streamtask.domain.ports import Recalled, RecallStatus, Resume, Seat, StopReason
from tests.core.desk import STOPPED, Desk


def names(asks: Iterable[object]) -> list[str]:
    return [type(ask).__name__ for ask in asks]


def ready(**more: object) -> Desk:
    d = Desk(**more)  # type: ignore[arg-type]
    d.ready()
    d.asked.clear()
    d.other_effects.clear()
    return d


def torn_desk() -> Desk:
    """Three of normal-0 and one of high-0 run; then normal-0 ends at offset 1."""
    d = ready()
    beside = d.submit(band=0)
    for _ in range(3):
        d.submit()
    d.settle()
    assert len(d.running) == 4
    assert d.history(beside) == ["created", "running 1"]
    d.log_ends[1, 0] = d._next[1, 0] = 1
    d.engine.position_lost((1, 0), 1)
    d.asked.clear()
    return d


def test_an_owner_whose_log_was_cut_ends_what_runs_and_claims_its_shard_again() -> None:
    d = torn_desk()
    waited: list[int] = []
    d.when_awaiting = waited.extend
    before = dict(d.offsets)
    d.turn()
    assert names(d.asked)[:4] == ["AwaitEnded", "ListOffsets", "ReadSettled", "CommitPlain"], (
        "nothing else is committed"
    )
    assert len(waited) == 4
    assert {stop.reason for stop in d.stops} == {StopReason.REVOKE}
    (note,) = [n for n in d.notes if n.name == "records_lost"]
    assert (note.fields["from"], note.fields["to"]) == (1, 3)
    (seat,) = [a for a in d.asked if isinstance(a, Seat)]
    assert seat.positions[1, 0] == 0, "tasks.status tells what of that is done"
    head = head_of(d.offsets[0, 0].text)
    assert head is not None
    assert (head.state, head.sequence) == ("recovering", head_of(before[0, 0].text).sequence + 1)  # type: ignore[union-attr]
    assert d.engine.deaths == 0


def test_what_stands_at_the_old_offsets_of_a_cut_log_runs_and_nobody_is_charged() -> None:
    d = torn_desk()
    beside, first, gone, _ = [start.record for start in d.running.values()]
    running = list(d.running)
    d.turn()
    for token in running:
        del d.running[token]
        d.engine.ended(token, STOPPED, d.now)
    ownership.control_read(d.engine, (0,))
    (recall,) = [e for e in d.other_effects if isinstance(e, RecallStatus)]
    facts = [Recalled(e.origin, e.task_id, False, e.attempt or 0, e.updated_ms) for e in d.events]
    ownership.recalled(d.engine, 0, recall.epoch, facts, done=True)
    new = [d.record(task_id=f"0190a0a0-ffff-7000-8000-00000000000{n}") for n in range(3)]
    assert [record.offset for record in new] == [1, 2, 3]
    d.feed(beside, first, *new)
    d.settle()
    assert {s.record.task_id: s.attempt for s in d.running.values()} == {
        beside.task_id: 2,
        first.task_id: 2,
        **{record.task_id: 1 for record in new},
    }
    assert [claim.lost for claim in d.engine.shards[0].claims.values()] == [0] * 5
    assert d.engine.deaths == 0
    assert [e.status.value for e in d.events if e.task_id == gone.task_id] == ["created", "running"], "the log lost it"
    head = head_of(d.offsets[0, 0].text)
    assert head is not None
    assert head.state == "open"


def test_records_of_a_cut_log_that_still_wait_in_the_backlog_go_with_it() -> None:
    d = ready(slots={HandlerKind.ASYNC: 1, HandlerKind.THREAD: 1, HandlerKind.PROCESS: 0}, backlog_max=2)
    for _ in range(3):
        d.submit()
    assert d.engine.shards[0].backlogs[1].paused
    d.log_ends[1, 0] = 0
    d.engine.position_lost((1, 0), 0)
    d.turn()
    resumed = [e for e in d.other_effects if isinstance(e, Resume)]
    assert resumed
    assert (1, 0) in resumed[-1].cells
    assert not d.engine.shards[0].backlogs[1].records
    assert not d.events


def test_retention_under_an_owner_is_no_cut() -> None:
    d = ready()
    d.submit()
    d.settle()
    d.asked.clear()
    d.engine.position_lost((1, 0), 7)
    d.turn()
    assert "ListOffsets" not in names(d.asked)
    assert [n.fields["why"] for n in d.notes if n.name == "records_lost"] == ["retention"]
