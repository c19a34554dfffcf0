"""What the engine does with requests, handlers and time, as long as the broker says yes."""

from __future__ import annotations

from typing import Any

import pytest

from streamtask.core import ownership, settlement
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord, Retry, TaskPolicy
from streamtask.domain.ports import Expected, Pause, ReadControl, Resume, StopReason
from streamtask.execution import outcomes
from tests.core.desk import RETURNED, STOPPED, Desk, raised


def desk(policies: dict[str, TaskPolicy] | None = None, **config: Any) -> Desk:
    made = Desk(policies, **config)
    made.ready()
    return made


def test_a_request_goes_through_created_running_completed() -> None:
    d = desk()
    record = d.submit()
    d.turn()
    assert d.history(record) == ["created", "running 1"]
    d.end(record)
    d.settle()
    assert d.history(record) == ["created", "running 1", "completed"]
    assert d.last(record).progress == 1.0
    assert d.last(record).result == b"1"
    assert d.offsets[1, 0].offset == 1


def test_every_event_of_an_attempt_names_the_same_start() -> None:
    d = desk()
    record = d.submit()
    batch = d.engine.build(d.now)
    assert batch is not None
    d.events += batch.plan.events
    d.later(148)  # the broker takes its time
    settlement.settle(d.engine, batch, d.now)
    d.take()
    d.end(record)
    d.settle()
    assert len({e.started_ms for e in d.events if e.status != "created"}) == 1


def test_nothing_starts_before_its_running_is_committed() -> None:
    d = desk()
    d.submit()
    batch = d.engine.build(d.now)
    assert batch is not None
    assert not [e for e in d.engine.take_effects() if type(e).__name__ == "Start"]
    settlement.settle(d.engine, batch, d.now)
    assert [type(e).__name__ for e in d.engine.take_effects()] == ["Start"]


def test_nothing_starts_before_tasks_control_was_read() -> None:
    d = Desk()
    assert any(isinstance(e, ReadControl) for e in d.other_effects)
    record = d.submit()
    d.turn()
    assert d.history(record) == []
    d.ready()
    d.turn()
    assert d.history(record) == ["created", "running 1"]


def test_a_cancel_read_before_the_start_never_runs() -> None:
    d = Desk()
    record = d.submit()
    d.engine.cancel_read([record.task_id], d.now)
    d.ready()
    d.settle()
    assert d.history(record) == ["created", "cancelled"]
    assert not d.running


def test_a_cancel_of_a_queued_task_frees_its_offset() -> None:
    d = desk(slots={HandlerKind.ASYNC: 1, HandlerKind.THREAD: 1, HandlerKind.PROCESS: 0})
    first, second = d.submit(), d.submit()
    d.settle()
    d.engine.cancel_read([second.task_id], d.now)
    d.settle()
    assert d.history(second) == ["created", "cancelled"]
    d.end(first)
    d.settle()
    assert d.offsets[1, 0].offset == 2


def test_a_cancel_of_a_running_task_stops_it_and_waits_for_its_end() -> None:
    d = desk()
    record = d.submit()
    d.turn()
    d.engine.cancel_read([record.task_id], d.now)
    d.turn()
    assert [s.reason for s in d.stops] == [StopReason.CANCEL]
    assert d.history(record) == ["created", "running 1"]
    d.end(record, STOPPED)
    d.settle()
    assert d.history(record) == ["created", "running 1", "cancelled"]
    assert not d.dead


def test_a_failure_without_retries_is_failed_and_a_dead_letter() -> None:
    d = desk()
    record = d.submit()
    d.turn()
    d.end(record, raised("broken"))
    d.settle()
    assert d.history(record) == ["created", "running 1", "failed"]
    assert (d.last(record).error_code, d.last(record).error) == ("handler_error", "broken")
    assert [(letter.reason, letter.attempt) for letter in d.dead] == [("handler_error", 1)]


def test_a_retry_waits_without_a_slot_and_runs_as_the_next_attempt() -> None:
    d = desk({"noop": TaskPolicy(retry=Retry(attempts=2, backoff_ms=1_000))})
    record = d.submit()
    d.turn()
    d.end(record, raised())
    d.settle()
    assert d.history(record) == ["created", "running 1", "running 1"]
    assert "attempt 1 failed: no" in (d.last(record).message or "")
    assert d.engine.schedule.free(HandlerKind.ASYNC) == 8
    d.later(1_001)
    d.settle()
    assert d.history(record)[-1] == "running 2"
    d.end(record, raised())
    d.settle()
    assert d.history(record)[-1] == "failed"


def test_a_retry_that_is_due_before_its_wait_is_committed_still_counts_its_failure() -> None:
    d = desk({"noop": TaskPolicy(retry=Retry(attempts=5, backoff_ms=1))})
    record = d.submit()
    d.turn()
    d.end(record, raised())
    d.later(5)
    d.settle()
    assert d.history(record) == ["created", "running 1", "running 1", "running 2"]
    entry = d.engine.shards[0].ledgers[1].entries[0]
    assert (entry.attempt, entry.failed) == (2, 1)


def test_give_up_and_a_handlers_own_delay_win_over_the_backoff() -> None:
    d = desk({"noop": TaskPolicy(retry=Retry(attempts=9, backoff_ms=1))})
    stubborn, patient = d.submit(), d.submit()
    d.turn()
    d.end(stubborn, raised(retryable=False))
    d.end(patient, raised(after_ms=60_000))
    d.settle()
    assert d.history(stubborn)[-1] == "failed"
    d.later(59_000)
    d.settle()
    assert d.history(patient)[-1] == "running 1"
    d.later(2_000)
    d.settle()
    assert d.history(patient)[-1] == "running 2"


@pytest.mark.parametrize(
    ("asked", "default", "most", "limit"),
    [(None, None, None, None), (None, 50, None, 50), (0.02, 50, None, 20), (9.0, 50, 70, 70), (None, None, 70, 70)],
)
def test_the_requests_timeout_wins_within_the_types_bound(
    asked: float | None, default: int | None, most: int | None, limit: int | None
) -> None:
    d = desk({"noop": TaskPolicy(timeout_ms=default, timeout_max_ms=most)})
    d.submit(timeout_seconds=asked)
    d.turn()
    (start,) = d.running.values()
    assert start.timeout_ms == limit


def stopped_at(d: Desk, ms: int) -> StopReason:
    """Why the one that runs is told to stop when so much time has gone; not earlier."""
    d.later(ms - 1)
    d.turn()
    assert not d.stops
    d.later(1)
    d.turn()
    (stop,) = d.stops
    return stop.reason


def child_to_start(timeout_ms: int) -> Desk:
    """Its children have not begun before the test says so."""
    d = desk({"noop": TaskPolicy(kind=HandlerKind.PROCESS, timeout_ms=timeout_ms)}, slots={HandlerKind.PROCESS: 1})
    d.children_begin = False
    return d


def test_the_time_of_an_execution_in_a_child_counts_from_when_the_child_has_begun() -> None:
    d = child_to_start(100)
    record = d.submit()
    d.turn()
    (token,) = d.running
    d.later(30_000)
    d.turn()
    assert not d.stops, "the child is still being started"
    d.engine.begun(token, d.now)
    assert stopped_at(d, 100) is StopReason.TIMEOUT
    d.end(record, STOPPED)
    d.settle()
    assert d.last(record).error_code == "timeout"


def test_a_child_that_does_not_begin_within_a_minute_is_given_up_and_its_task_runs_again() -> None:
    d = child_to_start(100)
    record = d.submit()
    d.turn()
    assert stopped_at(d, 60_000) is StopReason.NOT_BEGUN
    d.engine.begun(d.stops[0].token, d.now)  # too late: it was told to stop
    d.end(record, Outcome(Ending.STOPPED, code="cancelled", begun=False))
    d.settle()
    d.later(0)
    d.settle()
    assert d.history(record) == ["created", "running 1", "running 1", "running 2"]
    assert "no child process started it" in (d.events[-2].message or "")


def test_a_beginning_told_for_what_has_ended_is_nothing() -> None:
    d = child_to_start(100)
    record = d.submit()
    d.turn()
    (token,) = d.running
    d.end(record, RETURNED)
    d.engine.begun(token, d.now)
    d.settle()
    d.later(1_000_000)
    d.settle()
    assert d.history(record)[-1] == "completed"
    assert not d.stops


@pytest.mark.parametrize("kind", list(HandlerKind))
def test_short_executions_share_slots_once_their_type_is_known(kind: HandlerKind) -> None:
    d = desk({"noop": TaskPolicy(kind=kind)}, slots={kind: 1})
    first = d.submit()
    others = [d.submit() for _ in range(20)]
    d.settle()
    assert len(d.running) == 1
    d.end(first, Outcome(Ending.RETURNED, ran_ms=0.1))
    d.settle()
    assert len(d.running) == len(others)


def sharing(kind: HandlerKind, timeout_ms: int) -> tuple[Desk, RequestRecord]:
    """One execution of a type that shares slots, which waits for others until the test says that it begins."""
    d = desk({"noop": TaskPolicy(kind=kind, timeout_ms=timeout_ms)}, slots={kind: 1})
    first = d.submit()
    d.settle()
    d.end(first, Outcome(Ending.RETURNED, ran_ms=0.1))
    d.settle()
    d.children_begin = False
    record = d.submit()
    d.settle()
    return d, record


@pytest.mark.parametrize("kind", [HandlerKind.ASYNC, HandlerKind.THREAD])
def test_the_time_of_an_execution_that_waits_for_others_counts_from_when_it_begins(kind: HandlerKind) -> None:
    d, record = sharing(kind, 100)
    (token,) = d.running
    d.later(30_000)
    d.turn()
    assert not d.stops, "it waits for others"
    d.engine.begun(token, d.now)
    assert stopped_at(d, 100) is StopReason.TIMEOUT
    d.end(record, STOPPED)
    d.settle()
    assert d.last(record).error_code == "timeout"


@pytest.mark.parametrize("kind", [HandlerKind.ASYNC, HandlerKind.THREAD])
def test_one_that_others_kept_from_beginning_for_a_minute_runs_again_and_has_not_failed(kind: HandlerKind) -> None:
    d, record = sharing(kind, 100)
    assert stopped_at(d, 60_000) is StopReason.NOT_BEGUN
    d.end(record, Outcome(Ending.STOPPED, begun=False))
    d.settle()
    d.later(0)
    d.settle()
    assert d.history(record) == ["created", "running 1", "running 1", "running 2"]
    assert "others ran longer than expected" in (d.events[-2].message or "")
    d.end(record, RETURNED)
    d.settle()
    assert d.history(record)[-1] == "completed"


def test_a_timeout_stops_the_handler_and_is_a_failure() -> None:
    d = desk({"noop": TaskPolicy(timeout_ms=100)})
    record = d.submit()
    d.turn()
    assert stopped_at(d, 100) is StopReason.TIMEOUT
    d.end(record, STOPPED)
    d.settle()
    assert d.last(record).error_code == "timeout"


def test_a_cancel_that_comes_while_its_attempt_is_stopped_for_its_time_is_not_lost() -> None:
    """Bug: it was taken for stopped already, and its retry ran."""
    d = desk({"noop": TaskPolicy(timeout_ms=100, retry=Retry(attempts=3))})
    record = d.submit()
    d.turn()
    d.later(100)
    d.turn()
    d.engine.cancel_read([record.task_id], d.now)
    d.turn()
    assert [s.reason for s in d.stops] == [StopReason.TIMEOUT], "it is told once"
    d.end(record, STOPPED)
    d.settle()
    assert d.history(record) == ["created", "running 1", "cancelled"]


def test_a_coroutine_that_was_abandoned_at_its_timeout_is_not_tried_again_beside_itself() -> None:
    d = desk({"noop": TaskPolicy(timeout_ms=100, retry=Retry(attempts=3))})
    record = d.submit()
    d.turn()
    d.later(100)
    d.turn()
    d.end(record, outcomes.abandoned(StopReason.TIMEOUT, 5.0))
    d.settle()
    assert d.history(record) == ["created", "running 1", "failed"]
    assert d.last(record).error_code == "timeout"
    assert (d.last(record).error or "").endswith("; it went on for 5 s after it was cancelled, and was abandoned")


def test_progress_is_published_at_most_once_in_its_time_and_the_latest_wins() -> None:
    d = desk(progress_ms=100)
    record = d.submit()
    d.turn()
    (token,) = d.running
    for step in range(10):
        d.engine.progressed(token, step / 10, f"step {step}", d.now)
        d.turn()
        d.later(10)
    d.later(100)
    d.turn()
    told = [(e.progress, e.message) for e in d.events if e.status == "running" and e.progress is not None]
    assert told == [(0.0, "step 0"), (0.9, "step 9")]
    d.end(record, raised())
    d.settle()
    assert d.last(record).progress == 0.9


def test_progress_after_the_end_says_nothing() -> None:
    d = desk()
    record = d.submit()
    d.turn()
    (token,) = d.running
    d.end(record)
    d.engine.progressed(token, 0.5, None, d.now)
    d.settle()
    assert d.history(record) == ["created", "running 1", "completed"]


def test_expired_before_its_start_is_cancelled_and_started_in_time_is_not() -> None:
    d = desk(slots={HandlerKind.ASYNC: 1, HandlerKind.THREAD: 1, HandlerKind.PROCESS: 0})
    first = d.submit(expires_ms=d.now.wall_ms + 50)
    waits = d.submit(expires_ms=d.now.wall_ms + 50)
    late = d.submit(expires_ms=d.now.wall_ms - 1)
    d.settle()
    d.later(100)
    d.settle()
    assert d.history(first) == ["created", "running 1"]
    assert d.history(waits) == ["created", "cancelled"]
    assert d.history(late) == ["created", "cancelled"]
    assert d.last(waits).error_code == "expired"


def test_not_before_waits_on_the_wall_clock_and_too_far_ahead_is_refused() -> None:
    d = desk()
    soon = d.submit(not_before_ms=d.now.wall_ms + 5_000)
    far = d.submit(not_before_ms=d.now.wall_ms + 3_600_001)
    d.settle()
    assert d.history(soon) == ["created"]
    assert d.history(far) == ["created", "running 1", "failed"]
    assert d.last(far).error_code == "invalid_parameters"
    d.later(5_000)
    d.settle()
    assert d.history(soon) == ["created", "running 1"]


def test_an_unknown_type_fails_after_its_grace_and_walks_the_machine() -> None:
    d = desk(unknown_type_grace_ms=1_000)
    record = d.submit("nobody")
    d.settle()
    assert d.history(record) == ["created"]
    d.later(1_000)
    d.settle()
    assert d.history(record) == ["created", "running 1", "failed"]
    assert d.last(record).error_code == "unknown_task_type"
    assert [letter.reason for letter in d.dead] == ["unknown_task_type"]


@pytest.mark.parametrize(("asked", "said"), [("greeet", "'greeet'; did you mean 'greet'?"), ("x", "'x'")])
def test_an_unknown_type_names_the_nearest_that_is_known(asked: str, said: str) -> None:
    d = desk(policies={"greet": TaskPolicy(), "count": TaskPolicy()}, unknown_type_grace_ms=1_000)
    record = d.submit(asked)
    d.settle()
    d.later(1_000)
    d.settle()
    assert d.last(record).error == f"no worker of this prefix knows task_type {said}"


def test_waiting_claims_take_at_most_half_of_a_cell() -> None:
    d = desk()
    cap = d.engine.shards[0].ledgers[1].claims_max
    records = [d.submit("nobody") for _ in range(cap // 2 + 1)]
    d.settle()
    assert d.history(records[0]) == ["created"]
    assert d.history(records[-1]) == ["created", "running 1", "failed"]


def test_an_invalid_envelope_with_an_id_is_failed_and_one_without_is_only_a_dead_letter() -> None:
    d = desk()
    known = d.submit(problem=("invalid_request", "priority 11"))
    nameless = d.submit(problem=("invalid_request", "not JSON"), task_id="")
    d.settle()
    assert d.history(known) == ["created", "running 1", "failed"]
    assert d.history(nameless) == []
    assert [letter.text for letter in d.dead] == ["not JSON", "priority 11"]
    assert d.offsets[1, 0].offset == 2


def test_a_second_record_of_an_open_task_id_is_a_duplicate_and_one_after_the_end_a_history_of_its_own() -> None:
    d = desk()
    first = d.submit(task_id="0190a0a0-0000-7000-8000-00000000000a")
    again = d.submit(task_id=first.task_id)
    d.settle()
    assert d.history(again) == []
    assert [letter.reason for letter in d.dead] == ["duplicate"]
    d.end(first)
    d.settle()
    later = d.submit(task_id=first.task_id)
    d.settle()
    assert d.history(later) == ["created", "running 1"]


def test_more_undecodable_records_than_a_batch_holds_do_not_upset_the_order_of_created() -> None:
    d = desk(events_max=3)
    for _ in range(8):
        d.submit(problem=("invalid_request", "not JSON"), task_id="")
        d.submit()
    d.settle(turns=40)
    assert len(d.dead) == 8


def test_a_cell_is_paused_when_its_backlog_is_full_and_resumed_with_hysteresis() -> None:
    d = desk(backlog_max=400, backlog_low=50, slots={HandlerKind.ASYNC: 400})
    records = [d.submit() for _ in range(800)]
    d.turn()
    assert [type(e) for e in d.other_effects if isinstance(e, Pause | Resume)] == [Pause]
    while d.running:
        for start in list(d.running.values()):
            d.end(start.record)
        d.turn()
    assert [type(e) for e in d.other_effects if isinstance(e, Pause | Resume)] == [Pause, Resume]
    assert all(d.history(record)[-1] == "completed" for record in records)


def test_an_urgent_start_does_not_wait_behind_the_created_of_a_backlog() -> None:
    d = desk(events_max=30, slots={HandlerKind.ASYNC: 2, HandlerKind.THREAD: 1, HandlerKind.PROCESS: 0})
    for _ in range(200):
        d.submit(band=2)
    d.turn()
    high = d.submit(band=0)
    for _ in range(2):
        d.turn()
    assert d.history(high) == ["created", "running 1"]


def test_updated_at_never_falls_though_the_wall_clock_does() -> None:
    d = desk()
    record = d.submit()
    d.turn()
    d.now = d.now._replace(wall_ms=d.now.wall_ms - 3_600_000)
    d.end(record)
    d.settle()
    times = [e.updated_ms for e in d.events]
    assert times == sorted(times)


def test_a_producers_clock_that_is_ahead_moves_only_its_own_task() -> None:
    d = desk()
    ahead = d.record()
    ahead.created_ms += 80_000_000
    d.feed(ahead)
    d.settle()
    other = d.submit()
    d.settle()
    assert d.last(ahead).updated_ms == ahead.created_ms
    assert d.last(other).updated_ms == d.now.wall_ms


def test_a_result_of_an_execution_that_nobody_knows_is_dropped_and_counted() -> None:
    d = desk()
    d.engine.ended(99, RETURNED, d.now)
    assert d.engine.late_results == 1
    assert not d.turn()


def test_a_drain_starts_nothing_and_lets_what_runs_end() -> None:
    d = desk()
    record = d.submit()
    d.turn()
    d.engine.drain()
    waits = d.submit()
    d.settle()
    assert d.history(waits) == []
    d.end(record)
    d.settle()
    assert d.history(record)[-1] == "completed"


def test_a_task_that_runs_for_a_quarter_of_the_retention_is_published_again() -> None:
    d = desk(refresh_ms=80_000)
    record = d.submit()
    d.turn()
    for _ in range(30):
        d.later(10_000)
        d.settle()
    assert 3 <= len(d.history(record)) <= 6
    assert set(d.history(record)[1:]) == {"running 1"}


def test_an_ordering_key_runs_one_at_a_time_in_order_and_a_retry_holds_it() -> None:
    d = desk({"noop": TaskPolicy(retry=Retry(attempts=2, backoff_ms=1_000))})
    first, second = d.submit(ordering_key="k"), d.submit(ordering_key="k")
    other = d.submit(ordering_key="other")
    d.settle()
    assert [len(d.history(r)) for r in (first, second, other)] == [2, 1, 2]
    d.end(first, raised())
    d.settle()
    assert d.history(second) == ["created"]
    d.later(1_001)
    d.settle()
    d.end(first)
    d.settle()
    assert d.history(second) == ["created", "running 1"]


def test_a_refused_record_is_found_by_halving_and_said_shorter() -> None:
    d = desk(slots={HandlerKind.ASYNC: 16})
    records = [d.submit() for _ in range(8)]
    d.settle()
    for record in records:
        d.end(record, Outcome(Ending.RETURNED, result=b"x" * (100 if record is records[5] else 1)))
    d.refuses = lambda plan: any(e.result == b"x" * 100 for e in plan.events)
    for _ in range(40):
        d.turn()
    ends = [d.history(record)[-1] for record in records]
    assert ends == ["completed"] * 5 + ["failed"] + ["completed"] * 2
    assert d.last(records[5]).error_code == "result_too_large"


def test_a_refused_dead_letter_among_many_is_found_too_and_goes_as_a_reference() -> None:
    d = desk()
    records = [d.submit(problem=("invalid_request", "not JSON"), task_id="") for _ in range(9)]
    d.refuses = lambda plan: any(letter.record is records[4] and not letter.reference for letter in plan.dead)
    for _ in range(40):
        d.turn()
    assert [letter.reference for letter in sorted(d.dead, key=lambda letter: letter.record.offset)] == [
        offset == 4 for offset in range(9)
    ]


def test_what_is_expected_of_a_cell_counts_its_backlog_and_says_that_it_is_paused() -> None:
    d = desk(slots={HandlerKind.ASYNC: 1}, backlog_max=2)
    first = [d.submit() for _ in range(2)]
    assert ownership.expected(d.engine)[1, 0] == Expected(2, 2, "paused")
    for _ in range(3):
        d.turn()
    later = d.submit()
    assert ownership.expected(d.engine)[1, 0] == Expected(later.offset + 1, 1, "")
    assert len(first) == later.offset
    assert ownership.expected(d.engine)[0, 0] == Expected(0)
    ownership.close(d.engine, [0])
    assert ownership.expected(d.engine) == {}, "nothing is to come of a shard that goes"
