"""What the logs tell, and how processes ended, is a breach unless something that was done explains it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamtask.config import TopicNames
from tests.chaos import judge
from tests.chaos.checks import Trouble
from tests.chaos.fleet import Fleet

TIME = "2026-11-24T12:00:00.500Z"
MS = 1_795_521_600_500


class _Worker:
    """A process that ended, with its log."""

    def __init__(self, code: int, text: str = "") -> None:
        self.process = SimpleNamespace(returncode=code)
        self.log, self.pid = Path("worker-0.log"), 7
        self._text = text

    def text(self) -> str:
        return self._text


def stage(told: list[dict[str, Any]] | None = None, workers: tuple[_Worker, ...] = (), **changes: Any) -> Any:
    """Nothing was done to this one. told: lines of worker-0.log."""
    bench = SimpleNamespace(workers=list(workers), names=TopicNames("t"), complaints=lambda _worker: [])
    fleet = Fleet(bench, Path(), {})  # type: ignore[arg-type]
    fleet.told = [("worker-0.log", one) for one in told or []]
    plain: dict[str, Any] = {"narrow": [], "deleted": {}, "offsets_touched_ms": None, "grown": False}
    plain |= {"letters_gone": {}, "dead_anew_ms": None}
    return SimpleNamespace(bench=bench, fleet=fleet, **plain | changes)


@pytest.mark.parametrize(
    ("line", "reason", "no_reason"),
    [
        (
            {"event": "records_lost", "band": 0, "shard": 3},
            {"deleted": {("high", 3): 9}},
            {"deleted": {("high", 2): 9}},
        ),
        ({"event": "record_refused"}, {"narrow": [(MS - 900, MS - 500)]}, {"narrow": [(MS + 1, MS + 500)]}),
        ({"event": "shard_refused"}, {"grown": True}, {"offsets_touched_ms": 1}),
        ({"event": "position_recovered", "band": 0, "shard": 3}, {"offsets_touched_ms": 1}, {"grown": True}),
    ],
)
def test_what_a_worker_tells_of_positions_and_records_needs_its_fault(
    line: dict[str, Any], reason: dict[str, Any], no_reason: dict[str, Any]
) -> None:
    told = [line | {"timestamp": TIME}]
    assert list(judge._told(stage(told, **reason))) == []
    assert len(list(judge._told(stage(told, **no_reason)))) == 1


def test_exit_code_2_needs_its_reason() -> None:
    assert len(list(judge._told(stage(workers=(_Worker(2, "cannot work"),))))) == 1
    assert list(judge._told(stage(workers=(_Worker(2, "no broker answered"),)))) == []
    missing = stage(workers=(_Worker(2, "Topics do not exist: t.control. Create them"),))
    assert len(list(judge._told(missing))) == 1
    missing.fleet.missing = {"t.control"}
    assert list(judge._told(missing)) == []


def test_a_worker_that_crashes_is_told() -> None:
    one = stage()
    one.fleet.codes = {1: 0, 2: 1, 3: -9, 4: 3}
    assert list(judge._told(one)) == []
    one.fleet.codes = {5: -11}
    assert list(judge._told(one)) == ["worker 5 ended with exit code -11"]


def test_a_failed_task_needs_no_letter_where_it_had_ended_before_tasks_dead_was_made_anew() -> None:
    def broken(**changes: Any) -> dict[str, int]:
        one = stage(**changes)
        end = SimpleNamespace(event=SimpleNamespace(ended=True, origin="high-3@7"), timestamp_ms=MS)
        one.bench.histories = lambda: {"id": [end]}
        missing = SimpleNamespace(kind="failed_not_dead", origin="high-3@7")
        report: Any = SimpleNamespace(violations=[missing], violations_by_kind={"failed_not_dead": 1}, repeats=[])
        return dict(judge._broken(one, report))

    assert broken(letters_gone={("high", 3): 8}, dead_anew_ms=MS) == {}
    assert broken(letters_gone={("high", 3): 8}, dead_anew_ms=MS - 1) == {"failed_not_dead": 1}
    assert broken(letters_gone={("high", 3): 7}, dead_anew_ms=MS) == {"failed_not_dead": 1}
    assert broken() == {"failed_not_dead": 1}


def test_a_duplicate_whose_letter_is_gone_leaves_nothing_and_any_other_request_must() -> None:
    def broken(times: int, **changes: Any) -> dict[str, int]:
        one = stage(letters_gone={("high", 3): 8}, dead_anew_ms=MS, **changes)
        one.bench.histories = dict
        expected = SimpleNamespace(ends=frozenset({"completed"}), task_id="id")
        one.load = SimpleNamespace(sent={"id": times}, acked={"high-3@7": expected})
        passed = SimpleNamespace(kind="committed_past_unfinished", origin="high-3@7")
        report: Any = SimpleNamespace(violations=[passed], violations_by_kind={passed.kind: 1}, repeats=())
        return dict(judge._broken(one, report))

    assert broken(2) == {}
    assert broken(1) == {"committed_past_unfinished": 1}


def test_letters_are_twice_only_where_a_partition_read_its_past_after_its_offsets_were_touched() -> None:
    read = {"event": "position_unknown", "band": 0, "shard": 3, "timestamp": TIME}
    twice = SimpleNamespace(kind="dead_twice", origin="high-3@7")
    report: Any = SimpleNamespace(violations=[], violations_by_kind={}, repeats=[twice])
    assert judge._broken(stage([read], offsets_touched_ms=MS), report) == {}
    assert judge._broken(stage([read]), report) == {"dead_twice": 1}
    assert judge._broken(stage([read], offsets_touched_ms=MS + 1), report) == {"dead_twice": 1}
    assert judge._broken(stage([read | {"shard": 4}], offsets_touched_ms=MS), report) == {"dead_twice": 1}


def test_time_falls_back_only_where_a_clock_was_far_ahead_and_the_past_was_read_anew() -> None:
    """Seed 1202: a clock 40 days ahead, then the offsets lost."""
    read = {"event": "position_recovered", "band": 0, "shard": 3, "timestamp": TIME}
    fell = SimpleNamespace(kind="time_back", origin="low-3@7", evidence={"partition": 3})
    report: Any = SimpleNamespace(violations=[fell], violations_by_kind={"time_back": 1}, repeats=[])

    def broken(clock_ms: int, told: list[dict[str, Any]]) -> dict[str, int]:
        one = stage(told, offsets_touched_ms=MS)
        one.fleet.troubles[7].append(Trouble("clock", MS - 9, MS - 5, clock_ms))
        return dict(judge._broken(one, report))

    assert broken(3_456_000_000, [read]) == {}
    assert broken(60_000, [read]) == {"time_back": 1}
    assert broken(3_456_000_000, [read | {"shard": 4}]) == {"time_back": 1}


def test_a_child_that_died_under_its_worker_has_an_end_of_its_own() -> None:
    died = {"what": "child_died", "pid": 12, "how": "exit code 3", "timestamp": "2026-11-28T14:10:13.054097Z"}
    begun = {"what": "child_started", "pid": 13, "timestamp": "2026-11-28T14:10:13.054097Z"}
    assert judge.child_deaths([died, begun]) == {12: [1_795_875_013_054]}
