"""The checks of a chaos run see each breach that is planted, and permit what is permitted."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from streamtask.model import TaskResponse, TaskStatus
from tests.acceptance.harness import Execution, Seen
from tests.chaos.checks import Facts, check, overlaps
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
    return Seen(event, 0, offset, ms, b"")


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
    assert found(histories={}, executions=[], letters={ORIGIN: ["duplicate"]}) == []


def test_what_was_deleted_on_purpose_is_not_lost() -> None:
    assert found(histories={}, executions=[], deleted={("normal", 0): 6}) == []
    assert found(histories={}, executions=[], deleted={("normal", 0): 5}) != []


def test_an_end_that_the_request_must_not_have_is_told() -> None:
    failed = [*HISTORY[:2], seen("failed", 1, 130, 2, code="timeout")]
    assert "ended as timeout" in found(histories={ORIGIN: failed})[0]
    assert "returned 7" in found(histories={ORIGIN: [*HISTORY[:2], seen("completed", 1, 130, 2, result=8)]})[0]
    cancelled = [*HISTORY[:2], seen("cancelled", 1, 130, 2)]
    assert "ended as cancelled" in found(histories={ORIGIN: cancelled})[0]
    assert found(histories={ORIGIN: cancelled}, maybe_cancelled={TASK}) == []
    assert "is no request" in found(acked={ORIGIN: Expected(None, None)})[0]


def test_two_executions_of_one_attempt_are_told() -> None:
    assert "two of normal-0@5 attempt 1" in found(executions=ran(1, 120, 125) + ran(1, 121, 126, pid=11))[0]


def test_an_execution_without_its_running_or_before_it_is_told() -> None:
    assert "has no RUNNING" in found(executions=ran(1, 120, 125) + ran(2, 121, 126))[0]
    assert "before its RUNNING was written" in found(executions=ran(1, 109, 125))[0]
    never = [seen("created", None, 100, 0), seen("cancelled", None, 105, 1)]
    assert "has no RUNNING" in found(histories={ORIGIN: never}, maybe_cancelled={TASK})[0]


def test_an_old_attempt_may_begin_after_the_end_only_where_its_worker_was_disturbed() -> None:
    history = [*HISTORY[:2], seen("running", 2, 115, 2), seen("completed", 2, 130, 3, result=7)]
    late = ran(1, 140, 150, pid=11) + ran(2, 120, 125)
    assert "after the end" in found(histories={ORIGIN: history}, executions=late)[0]
    violations, counts = check(
        dataclasses.replace(GOOD, histories={ORIGIN: history}, executions=late, disturbed={11: "frozen"})
    )
    assert violations == []
    assert counts.late_starts == 1


def test_an_end_by_a_handler_that_never_ran_is_told() -> None:
    assert "a handler that never ran" in found(executions=[])[0]


def test_an_attempt_that_was_taken_away_before_its_first_instruction_is_counted() -> None:
    history = [*HISTORY[:2], seen("running", 2, 115, 2), seen("completed", 2, 130, 3, result=7)]
    violations, counts = check(dataclasses.replace(GOOD, histories={ORIGIN: history}, executions=ran(2, 120, 125)))
    assert violations == []
    assert (counts.attempts, counts.without_execution) == (2, 1)


def test_a_request_that_starts_before_the_one_ahead_of_it_has_ended_is_told() -> None:
    ahead = "normal-0@4"
    keyed = {
        ORIGIN: dataclasses.replace(DONE, key=(1, "k")),
        ahead: dataclasses.replace(DONE, task_id="other", key=(1, "k")),
    }
    before = [seen("created", None, 90, 0, origin=ahead), seen("running", 1, 91, 1, origin=ahead)]
    before.append(seen("completed", 1, 95, 2, result=7, origin=ahead))
    after = [dataclasses.replace(one, offset=one.offset + 3) for one in HISTORY]
    executions = ran(1, 120, 125) + ran(1, 92, 94, origin=ahead)
    assert found(acked=keyed, histories={ahead: before, ORIGIN: after}, executions=executions) == []
    early = [after[0], dataclasses.replace(after[1], offset=1), after[2]]
    late = [before[0], dataclasses.replace(before[1], offset=0), dataclasses.replace(before[2], offset=4)]
    assert "order: " in found(acked=keyed, histories={ahead: late, ORIGIN: early}, executions=executions)[0]


def test_a_neighbour_that_is_quarantined_is_told() -> None:
    lost = [
        seen("created", None, 100, 0),
        *(seen("running", n, 100 + 10 * n, n) for n in (1, 2, 3)),
        seen("failed", 3, 140, 4, code="worker_lost"),
    ]
    three = ran(1, 111, None) + ran(2, 121, None) + ran(3, 131, None)
    assert found(histories={ORIGIN: lost}, executions=three) == []
    assert "only [1, 2] were lost" in found(histories={ORIGIN: lost}, executions=three[:2] + ran(3, 131, 135))[0]


def test_an_overlap_lasts_until_the_older_execution_ended_or_its_process_died() -> None:
    both = ran(1, 120, 150) + ran(2, 130, 160, pid=11)
    (one,), unknown = overlaps(dataclasses.replace(GOOD, executions=both, disturbed={10: "frozen"}))
    assert (one.ms, one.kind, one.why, unknown) == (20, "async", "frozen", 0)
    dead = ran(1, 120, None) + ran(2, 130, 160, pid=11)
    (one,), unknown = overlaps(dataclasses.replace(GOOD, executions=dead, deaths={10: 135}))
    assert (one.ms, one.why, unknown) == (5, "", 0)
    assert overlaps(dataclasses.replace(GOOD, executions=dead)) == ([], 1)
    assert overlaps(dataclasses.replace(GOOD, executions=dead, deaths={10: 129})) == ([], 0)
