"""The checks of a chaos run see each breach that is planted, and permit what is permitted."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from streamtask.domain.model import TaskResponse, TaskStatus
from tests.acceptance.harness import Execution, Seen
from tests.chaos.checks import Facts, Overlap, Trouble, check, overlaps, too_long
from tests.chaos.load import Expected

ORIGIN, TASK = "normal-0@5", "0190c1a2-0000-7000-8000-000000000001"
TIME = datetime(2026, 11, 24, tzinfo=UTC)
DONE = Expected(TASK, frozenset({"completed"}), "async_nap", 7)


def seen(
    status: str, attempt: int | None, ms: int, offset: int, *, code: str = "", result: Any = None, origin: str = ORIGIN
) -> Seen:
    details = {"code": code} if code else None
    event = TaskResponse.model_validate(
        {
            "task_id": TASK,
            "status": TaskStatus(status),
            "attempt": attempt,
            "result": result,
            "origin": origin,
            "created_at": TIME,
            "updated_at": TIME,
            "message": "",
            "error_details": details,
        }
    )
    return Seen(event.model_copy(update={"worker": "chaos@host:10"}), 0, offset, ms, b"")


def ran(attempt: int, start: int, end: int | None, *, pid: int = 10, origin: str = ORIGIN) -> list[Execution]:
    lines = [Execution(TASK, origin, attempt, "start", pid, "async_nap", start, 1)]
    return lines if end is None else [*lines, Execution(TASK, origin, attempt, "end", pid, "async_nap", end, 1)]


HISTORY = [seen("created", None, 100, 0), seen("running", 1, 110, 1), seen("completed", 1, 130, 2, result=7)]
GOOD = Facts(acked={ORIGIN: DONE}, histories={ORIGIN: HISTORY}, letters={}, executions=ran(1, 120, 125))


def found(**changes: Any) -> list[str]:
    return check(dataclasses.replace(GOOD, **changes))[0]


def test_a_good_run_is_good() -> None:
    violations, counts = check(GOOD)
    assert violations == []
    assert (counts.attempts, counts.without_execution, counts.ends) == (1, 0, {"completed": 1})


def test_an_acknowledged_request_without_an_end_is_lost() -> None:
    assert "lost: normal-0@5" in found(histories={ORIGIN: HISTORY[:2]})[0]
    assert "lost: normal-0@5" in found(histories={}, executions=[])[0]
    assert "dead letters ['duplicate']" in found(histories={}, executions=[], letters={ORIGIN: ["duplicate"]})[0]
    assert found(histories={}, executions=[], letters={ORIGIN: ["duplicate"]}, repeated={TASK}) == []
    assert found(histories={}, executions=[], letters={ORIGIN: ["invalid_request"]}, repeated={TASK}) != []
    assert (
        found(acked={ORIGIN: Expected(None, None)}, histories={}, executions=[], letters={ORIGIN: ["invalid_request"]})
        == []
    )


def test_what_was_deleted_on_purpose_is_not_lost() -> None:
    assert found(histories={}, executions=[], deleted={("normal", 0): 6}) == []
    assert found(histories={}, executions=[], deleted={("normal", 0): 5}) != []


def test_a_letter_that_was_in_a_topic_that_is_gone_is_not_missed_and_a_later_one_is() -> None:
    garbage: dict[str, Any] = {"acked": {ORIGIN: Expected(None, None)}, "histories": {}, "executions": []}
    assert found(**garbage, letters_gone={("normal", 0): 6}) == []
    assert "lost" in found(**garbage, letters_gone={("normal", 0): 5})[0]
    assert "lost" in found(**garbage, letters_gone={("normal", 1): 6})[0]
    assert "lost" in found(histories={}, executions=[], letters_gone={("normal", 0): 6})[0], "it must have a history"
    assert found(histories={}, executions=[], letters_gone={("normal", 0): 6}, repeated={TASK}) == []


def test_a_text_that_came_back_is_judged_by_its_length() -> None:
    text = [*HISTORY[:2], seen("completed", 1, 130, 2, result="seven c")]
    assert found(histories={ORIGIN: text}) == []
    assert "returned 7" in found(histories={ORIGIN: [*HISTORY[:2], seen("completed", 1, 130, 2, result="six ch")]})[0]


def test_an_end_that_the_request_must_not_have_is_told() -> None:
    failed = [*HISTORY[:2], seen("failed", 1, 130, 2, code="timeout")]
    assert "ended as timeout" in found(histories={ORIGIN: failed})[0]
    assert "returned 7" in found(histories={ORIGIN: [*HISTORY[:2], seen("completed", 1, 130, 2, result=8)]})[0]
    cancelled = [*HISTORY[:2], seen("cancelled", 1, 130, 2)]
    assert "ended as cancelled" in found(histories={ORIGIN: cancelled})[0]
    assert found(histories={ORIGIN: cancelled}, cancelled={TASK}) == []
    assert "is no request" in found(acked={ORIGIN: Expected(None, None)})[0]


def test_events_of_another_task_than_the_one_that_was_acknowledged_are_told() -> None:
    acked = {ORIGIN: dataclasses.replace(DONE, task_id="0190c1a2-0000-7000-8000-000000000002")}
    assert "its events are of" in found(acked=acked)[0]


def test_two_executions_of_one_attempt_are_told() -> None:
    assert "two of normal-0@5 attempt 1" in found(executions=ran(1, 120, 125) + ran(1, 121, 126, pid=11))[0]


def test_an_execution_without_its_running_or_before_it_is_told() -> None:
    assert "has no RUNNING" in found(executions=ran(1, 120, 125) + ran(2, 121, 126))[0]
    assert "before its RUNNING was written" in found(executions=ran(1, 109, 125))[0]
    never = [seen("created", None, 100, 0), seen("cancelled", None, 105, 1)]
    assert "has no RUNNING" in found(histories={ORIGIN: never}, cancelled={TASK})[0]


def test_an_old_attempt_may_begin_after_the_end_only_where_its_worker_was_disturbed() -> None:
    history = [*HISTORY[:2], seen("running", 2, 115, 2), seen("completed", 2, 130, 3, result=7)]
    much_later = Trouble("frozen", 50_000, 60_000)
    late = ran(1, 140, 150, pid=11) + ran(2, 120, 125)
    assert "after the end" in found(histories={ORIGIN: history}, executions=late)[0]
    assert found(histories={ORIGIN: history}, executions=late, troubles={11: [much_later]}) != []
    violations, counts = check(
        dataclasses.replace(
            GOOD, histories={ORIGIN: history}, executions=late, troubles={11: [Trouble("frozen", 100, 139)]}
        )
    )
    assert violations == []
    assert counts.late_starts == 1


def test_an_end_by_a_handler_that_never_ran_is_told() -> None:
    assert "a handler that never ran" in found(executions=[])[1]


def test_the_handler_that_ended_it_began_before_that() -> None:
    assert (
        "a handler that never ran" in found(executions=ran(1, 131, 135), troubles={10: [Trouble("frozen", 0, 140)]})[0]
    )


def test_an_attempt_without_an_execution_needs_a_reason_and_is_counted() -> None:
    history = [*HISTORY[:2], seen("running", 2, 115, 2), seen("completed", 2, 130, 3, result=7)]
    facts = dataclasses.replace(GOOD, histories={ORIGIN: history}, executions=ran(2, 120, 125))
    assert "attempt 1 never ran" in check(facts)[0][0]
    for why in (
        {"deaths": {10: [112]}},
        {"troubles": {10: [Trouble("frozen", 100, 200)]}},
        {"moves": {10: [113]}},
    ):
        violations, counts = check(dataclasses.replace(facts, **why))
        assert violations == []
        assert (counts.attempts, counts.without_execution) == (2, 1)
    assert "attempt 1 never ran" in check(dataclasses.replace(facts, deaths={11: [112]}))[0][0]
    reused = {10: [50, 112]}  # bug: of two processes that had this pid, only the death of the first one was known
    assert (
        check(dataclasses.replace(facts, deaths=reused))[0] == check(dataclasses.replace(facts, deaths={10: [112]}))[0]
    )
    refused = [*HISTORY[:2], seen("failed", 1, 130, 2, code="invalid_parameters")]
    bad = {ORIGIN: dataclasses.replace(DONE, ends=frozenset({"invalid_parameters"}))}
    assert found(acked=bad, histories={ORIGIN: refused}, executions=[]) == []


def test_an_attempt_without_an_execution_may_have_waited_in_a_child_that_died() -> None:
    """Of a group of suspects in one child, some have not begun when it dies; their event says so, and the child is dead."""
    told = HISTORY[1].event.model_copy(update={"message": "attempt 1 was broken off: its process died: exit code 3"})
    broken_off = dataclasses.replace(seen("running", 1, 114, 2), event=told)
    history = [*HISTORY[:2], broken_off, seen("running", 2, 115, 3), seen("completed", 2, 130, 4, result=7)]
    beside = dataclasses.replace(ran(1, 111, 112, pid=12)[0], origin="high-0@9", parent=10)
    facts = dataclasses.replace(GOOD, histories={ORIGIN: history}, executions=[beside, *ran(2, 120, 125)])
    never = "attempt 1 never ran"
    assert never in " ".join(check(facts)[0])
    assert never in " ".join(check(dataclasses.replace(facts, deaths={12: [900]}))[0])
    assert never not in " ".join(check(dataclasses.replace(facts, deaths={12: [113]}))[0])


def test_a_timeout_wants_a_handler_that_ran() -> None:
    slow = {ORIGIN: dataclasses.replace(DONE, ends=frozenset({"timeout"}))}
    history = [*HISTORY[:2], seen("failed", 1, 130, 2, code="timeout")]
    assert found(acked=slow, histories={ORIGIN: history}) == []
    assert "never ran" in found(acked=slow, histories={ORIGIN: history}, executions=[])[0]


def test_an_expiry_comes_after_its_time_unless_the_workers_clock_was_ahead() -> None:
    history = [seen("created", None, 100, 0), seen("cancelled", None, 130, 1, code="expired")]
    for expires_ms, clock_ms, fine in ((130, 0, True), (131, 0, False), (131, 2_000, True), (131, -2_000, False)):
        acked = {ORIGIN: dataclasses.replace(DONE, expires_ms=expires_ms)}
        troubles = {10: [Trouble("clock", 0, 1_000, clock_ms)]} if clock_ms else {}
        assert (found(acked=acked, histories={ORIGIN: history}, executions=[], troubles=troubles) == []) is fine
    assert found(histories={ORIGIN: history}, executions=[], cancelled={TASK}) != []


def test_nothing_begins_before_its_not_before_unless_the_workers_clock_was_ahead() -> None:
    acked = {ORIGIN: dataclasses.replace(DONE, not_before_ms=121)}
    assert "before its not_before" in found(acked=acked)[0]
    assert found(acked={ORIGIN: dataclasses.replace(DONE, not_before_ms=120)}) == []
    assert found(acked=acked, troubles={10: [Trouble("clock", 0, 119, 2_000)]}) == []
    assert "before its not_before" in found(acked=acked, troubles={10: [Trouble("clock", 0, 119, -2_000)]})[0]


def test_a_not_before_is_refused_only_by_a_worker_whose_clock_is_an_hour_behind() -> None:
    history = [*HISTORY[:2], seen("failed", 1, 130, 2, code="invalid_parameters")]
    acked = {ORIGIN: dataclasses.replace(DONE, not_before_ms=2_000)}
    for clock_ms, fine in ((-3_600_000, True), (-60_000, False), (3_600_000, False)):
        violations = found(
            acked=acked, histories={ORIGIN: history}, executions=[], troubles={10: [Trouble("clock", 0, 200, clock_ms)]}
        )
        assert (violations == []) is fine


def test_a_handler_that_ignores_its_timeout_completes_only_where_its_shard_moved() -> None:
    acked = {ORIGIN: Expected(TASK, frozenset({"timeout"}), "async_ignores")}
    history = [*HISTORY[:2], seen("completed", 1, 2_700, 4)]
    at_work = {
        "other": [seen("running", 1, 1_800, 3, origin="normal-0@6")]
    }  # written by the same worker, after the timeout

    def violations(**changes: Any) -> list[str]:
        return found(acked=acked, histories={ORIGIN: history, **at_work}, executions=ran(1, 120, 2_620), **changes)

    assert "ended as completed" in violations()[0]
    assert violations(moves={10: [2_621]}) == []
    assert "ended as completed" in violations(moves={10: [119]})[0]
    at_work["other"] = [seen("running", 1, 700, 3, origin="normal-0@6")]
    assert [one for one in violations() if "ends" in one] == [], "its owner wrote nothing: it waited for Kafka"


def test_a_result_is_too_large_only_while_the_topic_is_narrow() -> None:
    history = [*HISTORY[:2], seen("failed", 1, 130, 2, code="result_too_large")]
    acked = {ORIGIN: dataclasses.replace(DONE, large=True)}
    assert "result_too_large" in found(acked=acked, histories={ORIGIN: history})[0]
    assert found(acked=acked, histories={ORIGIN: history}, narrow=[(100, 120)]) == []
    assert found(histories={ORIGIN: history}, narrow=[(100, 120)]) != []


def test_an_acknowledged_cancel_ends_what_runs() -> None:
    end_ms = 100_000
    history = [*HISTORY[:2], seen("completed", 1, end_ms, 2)]
    acked = {ORIGIN: Expected(TASK, frozenset(), "async_waits")}

    def violations(**changes: Any) -> list[str]:
        return found(acked=acked, histories={ORIGIN: history}, **changes)

    assert "ended as completed" in violations(heard={TASK: 5_000})[0]
    assert violations() == [], "nobody asked"
    assert violations(heard={TASK: 90_000}) == [], "the wish came late"
    assert violations(heard={TASK: 5_000}, control_anew_ms=5_001) == [], "the wish was forgotten"
    assert violations(heard={TASK: 5_000}, control_anew_ms=4_999) != []


def test_a_request_that_starts_before_the_one_ahead_of_it_has_ended_is_told() -> None:
    ahead = "normal-0@4"
    keyed = {
        ORIGIN: dataclasses.replace(DONE, key=(1, "k")),
        ahead: dataclasses.replace(DONE, key=(1, "k")),
    }
    before = [seen("created", None, 90, 0, origin=ahead), seen("running", 1, 91, 1, origin=ahead)]
    before.append(seen("completed", 1, 95, 2, result=7, origin=ahead))
    after = [dataclasses.replace(one, offset=one.offset + 3) for one in HISTORY]
    executions = ran(1, 120, 125) + ran(1, 92, 94, origin=ahead)
    assert found(acked=keyed, histories={ahead: before, ORIGIN: after}, executions=executions) == []
    early = [after[0], dataclasses.replace(after[1], offset=1), after[2]]
    late = [before[0], dataclasses.replace(before[1], offset=0), dataclasses.replace(before[2], offset=4)]
    twisted: dict[str, Any] = {"acked": keyed, "histories": {ahead: late, ORIGIN: early}, "executions": executions}
    assert "order: " in found(**twisted)[0]
    assert found(**twisted, letters={ahead: ["duplicate"]}) == [], "it was refused, and ran when that was forgotten"


def test_a_neighbour_that_is_quarantined_is_told() -> None:
    lost = [
        seen("created", None, 100, 0),
        *(seen("running", n, 100 + 10 * n, n) for n in (1, 2, 3)),
        seen("failed", 3, 140, 4, code="worker_lost"),
    ]
    three = ran(1, 111, None) + ran(2, 121, None) + ran(3, 131, None)
    assert found(histories={ORIGIN: lost}, executions=three) == []
    two = three[:2] + ran(3, 131, 135)
    assert "only [1, 2] were lost" in found(histories={ORIGIN: lost}, executions=two)[0]
    assert found(histories={ORIGIN: lost}, executions=two, deaths={10: [136]}) == [], "its end was lost with its worker"
    assert found(histories={ORIGIN: lost}, executions=two, troubles={10: [Trouble("frozen", 132, 139)]}) == []


def test_an_overlap_lasts_until_the_older_execution_ended_or_its_process_died() -> None:
    both = ran(1, 120, 150) + ran(2, 130, 160, pid=11)
    (one,), unknown = overlaps(dataclasses.replace(GOOD, executions=both, troubles={10: [Trouble("frozen", 100, 139)]}))
    assert (one.ms, one.beyond_ms, one.kind, one.why, unknown) == (20, 11, "async", "frozen", 0)
    dead = ran(1, 120, None) + ran(2, 130, 160, pid=11)
    (one,), unknown = overlaps(dataclasses.replace(GOOD, executions=dead, deaths={10: [135]}))
    assert (one.ms, one.why, unknown) == (5, "", 0)
    assert overlaps(dataclasses.replace(GOOD, executions=dead)) == ([], 1)
    assert overlaps(dataclasses.replace(GOOD, executions=dead, deaths={10: [129]})) == ([], 0)


def test_an_overlap_that_lasts_beyond_its_bound_is_told() -> None:
    fine = [Overlap(ORIGIN, "async", 9_000, "frozen", 5_000), Overlap(ORIGIN, "thread", 9_000, "", 9_000, deaf=True)]
    assert list(too_long(fine)) == []
    assert len(list(too_long([Overlap(ORIGIN, "async", 9_000, "frozen", 5_001)]))) == 1
    assert len(list(too_long([Overlap(ORIGIN, "process", 1_001, "", 1_001)]))) == 1
