"""Groups of suspects on real children: they run at the same time, one death is told to all that ran in there, and what was
asked of one is done to that one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from streamtask.domain.model import Ending
from streamtask.domain.ports import Stop, StopReason
from streamtask.execution.process_pool import pipe
from streamtask.execution.process_pool.child_handle import how_ended
from tests.processes import gone
from tests.unit.process_pool_hand import Hand, ready, until
from tests.unit.process_pool_slow_app import LOADS


@pytest.fixture
def own() -> Iterator[Callable[..., Hand]]:
    made: list[Hand] = []

    def make(**options: Any) -> Hand:
        made.append(Hand(**{"children": 0, **options}))
        return made[-1]

    yield make
    for one in made:
        one.executor.stop(5.0)
        assert one.pids() == []


def test_a_group_of_coroutines_and_threads_runs_in_one_child_at_the_same_time(own: Callable[..., Hand]) -> None:
    """Defect: each suspect had a child of its own, and so few of them at a time that a partition stood still."""
    hand = own()
    tokens = hand.begin_group(7, *[("meets_async", {"others": 48})] * 40, *[("meets_thread", {"others": 48})] * 8)
    results = {outcome.result for outcome in hand.end_all(tokens)}
    assert len(results) == 1, "all of them in one process"
    assert results != {str(os.getpid()).encode()}
    assert sorted(hand.begun) == sorted(tokens)
    until(lambda: hand.pids() == [], "it ends with the last of them")


def test_groups_have_children_of_their_own(own: Callable[..., Hand]) -> None:
    hand = own()
    first, second = hand.begin("where_async", group=1), hand.begin("where_thread", group=2)
    pids = {outcome.result for outcome in hand.end_all([first, second])}
    assert len(pids) == 2
    assert hand.result("where_async")["pid"] == os.getpid(), "who is no suspect runs in the worker"


def test_the_death_of_a_child_is_told_to_each_one_that_ran_in_it(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own()
    sleeper, thread = hand.begin_group(
        1, ("waits_async", {"ready": str(tmp_path / "a")}), ("sleeps_in_a_thread", {"ready": str(tmp_path / "b")})
    )
    pids = {ready(tmp_path / "a"), ready(tmp_path / "b")}
    poison = hand.begin("dies_async", group=1, how="exit")
    outcomes = hand.end_all([sleeper, thread, poison])
    assert {(one.ending, one.beside) for one in outcomes} == {(Ending.LOST, 2)}
    assert all("exit code 7" in one.error for one in outcomes)
    assert all(gone(pid) for pid in pids)
    alone = hand.run("dies_async", group=2, how="exit")
    assert (alone.ending, alone.beside) == (Ending.LOST, 0)
    told = [fields["executions"] for name, fields in hand.events if name == "child_died"]
    assert told == [3, 1]


def test_one_that_has_ended_is_not_among_those_that_died(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own()
    sleeper = hand.begin("waits_async", group=1, ready=str(tmp_path / "a"))
    pid = ready(tmp_path / "a")
    assert hand.end(hand.begin("where_async", group=1)).ending is Ending.RETURNED
    os.kill(pid, signal.SIGKILL)
    outcome = hand.end(sleeper)
    assert (outcome.ending, outcome.beside) == (Ending.LOST, 0)
    assert how_ended(-signal.SIGKILL) in outcome.error


@pytest.mark.parametrize("reason", [StopReason.CANCEL, StopReason.TIMEOUT, StopReason.REVOKE])
def test_a_stop_ends_the_one_that_it_names_and_the_others_go_on(
    own: Callable[..., Hand], tmp_path: Path, reason: StopReason
) -> None:
    hand = own()
    first, second = hand.begin_group(1, *(("waits_async", {"ready": str(tmp_path / name)}) for name in "ab"))
    assert ready(tmp_path / "a") == ready(tmp_path / "b")
    assert hand.stop(first, reason).ending is Ending.STOPPED
    assert hand.end(hand.begin("where_async", group=1)).ending is Ending.RETURNED
    hand.look()
    assert second not in hand.outcomes
    assert hand.stop(second, reason).ending is Ending.STOPPED
    until(lambda: hand.pids() == [], "it ends with the last of them")


def test_a_thread_that_does_not_hear_its_stop_is_killed_when_nobody_else_is_left(
    own: Callable[..., Hand], tmp_path: Path
) -> None:
    hand = own()
    deaf, sleeper = hand.begin_group(
        1, ("sleeps_in_a_thread", {"ready": str(tmp_path / "a")}), ("waits_async", {"ready": str(tmp_path / "b")})
    )
    pid, _ = ready(tmp_path / "a"), ready(tmp_path / "b")
    hand.executor.stop_executions([Stop(deaf, StopReason.TIMEOUT)])
    assert hand.end(hand.begin("where_async", group=1)).ending is Ending.RETURNED
    assert not gone(pid), "another one runs in there"
    hand.stop(sleeper)
    assert hand.end(deaf).ending is Ending.STOPPED
    assert gone(pid)


def test_progress_and_log_lines_of_a_group_reach_the_worker(own: Callable[..., Hand]) -> None:
    hand = own()
    with capture_logs() as lines:
        token = hand.begin("tells_async", group=1, text="so far")
        assert hand.end(token).ending is Ending.RETURNED
        until(lambda: any(line["event"] == "said" for line in lines), "its log line")
    (line,) = [line for line in lines if line["event"] == "said"]
    assert line["text"] == "so far"


def test_parameters_are_validated_in_the_child_of_a_group_too(own: Callable[..., Hand]) -> None:
    outcome = own().run("meets_async", group=1, others="many")
    assert (outcome.ending, outcome.code) == (Ending.INVALID, "invalid_parameters")


def test_a_child_that_dies_before_it_has_begun_is_nobodys_death_and_all_begin_in_the_next_one(
    own: Callable[..., Hand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtask.execution.process_pool.pool.BACKOFF_S", 0.01)
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setenv(LOADS, str(tmp_path))
    hand = own(app="tests.unit.process_pool_slow_app:app")
    tokens = hand.begin_group(1, ("where_async", {}), ("where_async", {}))
    until((tmp_path / "waits").exists, "its child is being started")
    (first,) = hand.pids()
    (tmp_path / "waits").unlink()
    os.kill(first, signal.SIGKILL)
    until((tmp_path / "waits").exists, "another one is")
    (tmp_path / "fifo").write_text("go on")
    assert {outcome.ending for outcome in hand.end_all(tokens)} == {Ending.RETURNED}


def test_a_close_ends_what_runs_in_quarantine(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own()
    tokens = hand.begin_group(
        1, ("waits_async", {"ready": str(tmp_path / "a")}), ("sleeps_in_a_thread", {"ready": str(tmp_path / "b")})
    )
    pid, _ = ready(tmp_path / "a"), ready(tmp_path / "b")
    assert hand.executor.stop(5.0)
    assert gone(pid)
    hand.look()
    assert [hand.outcomes[token].ending for token in tokens] == [Ending.STOPPED] * 2


def test_a_child_that_writes_no_frames_is_killed_and_that_is_a_death(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own()
    sleeper = hand.begin("waits_async", group=1, ready=str(tmp_path / "a"))
    ready(tmp_path / "a")
    quarantine = hand.executor._quarantine
    assert quarantine is not None
    (ward,) = quarantine._wards()
    quarantine._calls.post(lambda: quarantine._break(ward, str(pipe.Garbage("nonsense"))))
    assert "nonsense" in hand.end(sleeper).error


WORKER = """
import sys
from tests.unit.process_pool_hand import Hand
hand = Hand(children=0)
hand.begin("starts_one", group=1, ready=sys.argv[1])
while True:  # a report of the execution ends a wait
    hand.executor.wait(3_600)
"""


def test_nobody_in_quarantine_outlives_a_worker_that_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "ready")]) as worker:
        try:
            grandchild = ready(tmp_path / "ready")
            family = [one.pid for one in psutil.Process(worker.pid).children(recursive=True)]
            assert worker.poll() is None, "it has ended by itself"
            assert grandchild in family, f"{grandchild} is not among {family}"
        finally:
            worker.kill()
    until(lambda: all(gone(pid) for pid in family), f"{family} are gone")
