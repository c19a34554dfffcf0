"""Process handlers on a real Kafka: killed with their worker, killed for a timeout or a cancel, dead by themselves."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from streamtask.domain.model import TaskRequest
from tests.acceptance.harness import PATIENT, Bench, Running, until
from tests.processes import gone

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]

APP = "tests.acceptance.process_apps:app"
# Three children: one slot of each kind is kept for high requests.


def until_gone(pids: Iterable[int]) -> None:
    """None of them is left; where one is, the test fails and takes it along."""
    try:
        until(lambda: all(gone(pid) for pid in pids), lambda: f"{[pid for pid in pids if not gone(pid)]} are gone")
    except AssertionError:
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        raise


def the_worker(parent: Running) -> int:
    (pid,) = until(lambda: parent.children(), "there is a worker process")
    return pid


def family_of(pid: int, count: int, whom: str) -> set[int]:
    """The descendants of a process, once there are so many: the children that have nothing to do yet start last."""

    def found() -> set[int]:
        return {one.pid for one in psutil.Process(pid).children(recursive=True)}

    return until(lambda: family if len(family := found()) >= count else None, lambda: f"{whom}: {found()}")


def test_no_child_outlives_a_worker_that_was_killed_and_its_tasks_run_again(bench: Bench, tmp_path: Path) -> None:
    parent = bench.supervised(1, PATIENT, app=APP, STREAMTASK_CHILDREN="3")
    path = str(tmp_path / "go")
    held = bench.client.submit_many([TaskRequest(task_type="hold", parameters={"path": path}) for _ in range(3)])
    until(lambda: len(bench.running()) == 2, "two run")
    # They come when no child is free for them, or one of them might be what runs.
    others = bench.client.submit_many([TaskRequest(task_type="noop", parameters={"n": n}) for n in range(50)])
    pids = {one.pid for one in bench.running()}
    worker = psutil.Process(the_worker(parent))
    family = family_of(worker.pid, 6, "three children, what two have started, and the guard")
    assert pids < family, "handlers run in children of the worker"
    worker.kill()
    until_gone(family)
    until(lambda: len({one.pid for one in bench.running()} - pids) >= 2, "two run in children of the next worker")
    Path(path).touch()
    ends = bench.ends([one.task_id for one in (*held, *others)], 60)
    assert {end.status for end in ends.values()} == {"completed"}
    assert {ends[one.task_id].event.result for one in others} == set(range(50))
    assert max(ends[one.task_id].event.attempt or 0 for one in held) == 2
    bench.finish()


def test_a_dead_child_is_a_death_of_its_task_alone(bench: Bench, tmp_path: Path) -> None:
    parent = bench.supervised(1, PATIENT, app=APP, STREAMTASK_CHILDREN="3")
    path = str(tmp_path / "go")
    neighbours = bench.client.submit_many(
        [TaskRequest(task_type=name, parameters={"path": path}) for name in ("neighbour", "neighbour", "hold")]
    )
    until(lambda: len(bench.running()) == 3, "the neighbours run", 120)
    worker = the_worker(parent)
    poison = bench.client.submit("dies")
    end = bench.end(poison.task_id)
    assert (end.status, end.code, end.event.attempt) == ("failed", "worker_lost", 3)
    assert "SIGABRT" in (end.event.error or "")
    assert len({one.pid for one in bench.starts(poison.task_id)}) == 3
    assert (bench.letter(poison.origin).reason, the_worker(parent)) == ("worker_lost", worker)
    hungry = bench.client.submit("eats", {"mb": 500})
    end = bench.end(hungry.task_id)
    assert (end.code, end.event.error_details and end.event.error_details.exception) == ("handler_error", "MemoryError")
    Path(path).touch()
    ends = bench.ends([one.task_id for one in neighbours])
    assert {(end.status, end.event.attempt) for end in ends.values()} == {("completed", 1)}
    bench.finish()


@pytest.mark.timeout(420)
def test_however_a_handler_misbehaves_its_task_alone_ends_so(bench: Bench, tmp_path: Path) -> None:
    parent = bench.supervised(1, PATIENT, app=APP, STREAMTASK_CHILDREN="4", STREAMTASK_KILL_GRACE_S="0.3")
    path = str(tmp_path / "go")
    beside = bench.client.submit_many(
        [TaskRequest(task_type=name, parameters={"path": path}) for name in ("neighbour", "neighbour", "hold")]
    )
    until(lambda: len(bench.running()) == 3, "the neighbours run", 120)
    worker = the_worker(parent)
    lost = {
        "segfaults": "SIGSEGV",
        "closes its pipe": "closed its pipe",
        "writes into its pipe": "wrote an invalid frame",
        "exits": "exit code 0",
    }
    harmless = ("prints 10 MB", "forks")
    kinds = (*lost, *harmless, "returns garbage")
    asked = {kind: bench.client.submit("misbehaves", {"kind": kind}) for kind in kinds}
    stubborn = bench.client.submit("ignores_term")
    hungry = bench.client.submit("eats", {"mb": 500})
    quiet = bench.client.submit_many([TaskRequest(task_type="noop", parameters={"n": n}) for n in range(20)])
    ends = bench.ends([one.task_id for one in (*asked.values(), stubborn, hungry, *quiet)], 240)
    for kind, word in lost.items():
        end = ends[asked[kind].task_id]
        assert (kind, end.code, end.event.attempt) == (kind, "worker_lost", 3)
        assert word in (end.event.error or ""), end.event.error
    for kind in harmless:
        end = ends[asked[kind].task_id]
        assert (end.status, end.event.result, end.event.attempt) == ("completed", kind, 1)
    codes = {
        asked["returns garbage"].task_id: "not_serializable",
        stubborn.task_id: "timeout",
        hungry.task_id: "handler_error",
    }
    assert {task_id: ends[task_id].code for task_id in codes} == codes
    assert all(gone(one.pid) for one in bench.starts(stubborn.task_id))
    assert {ends[one.task_id].event.result for one in quiet} == set(range(20))
    reasons = sorted(letter.reason for letter in bench.letters())
    assert reasons == sorted([*codes.values(), *["worker_lost"] * len(lost)])
    Path(path).touch()
    ends = bench.ends([one.task_id for one in beside])
    assert {(end.status, end.event.attempt) for end in ends.values()} == {("completed", 1)}
    assert the_worker(parent) == worker, "it has noticed nothing"
    bench.finish()


def test_nobody_outlives_a_supervisor_that_was_killed(bench: Bench, tmp_path: Path) -> None:
    """Supervisor, worker, children, what those have started (in sessions of their own), the guard: one dies, all do."""
    parent = bench.supervised(app=APP, STREAMTASK_CHILDREN="3")
    path = str(tmp_path / "go")
    held = bench.client.submit_many([TaskRequest(task_type="hold", parameters={"path": path}) for _ in range(2)])
    until(lambda: len({one.id for one in bench.running()}) == 2, "both run")
    family = family_of(parent.pid, 7, "a worker, its guard, three children, what two have started")
    parent.kill()
    until_gone(family)
    killed = {one.task_id: bench.starts(one.task_id)[-1].attempt for one in held}
    bench.supervised(1, PATIENT, app=APP, STREAMTASK_CHILDREN="3")
    until(lambda: all(bench.starts(one)[-1].attempt > attempt for one, attempt in killed.items()), "both run again")
    Path(path).touch()
    ends = bench.ends(killed)
    assert {end.status for end in ends.values()} == {"completed"}
    assert {one: end.event.attempt for one, end in ends.items()} == {
        one: attempt + 1 for one, attempt in killed.items()
    }
    bench.finish()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_its_worker_however_that_dies(bench: Bench, tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM twice: the abort, which waits for nobody."""
    worker = bench.worker(app=APP, STREAMTASK_CHILDREN="2", STREAMTASK_KILL_GRACE_S="0.3")
    worker.expected = None
    held = bench.client.submit("hold", {"path": str(tmp_path / "go")})
    bench.until_status(held.task_id, "running", 2)
    family = family_of(worker.pid, 4, "two children, the guard, what one has started")
    worker.send(number)
    if number is signal.SIGTERM:
        until(lambda: "drain" in worker.text(), "it drains")
        worker.send(number)
    worker.wait()
    until_gone(family)
    held.cancel()
    bench.worker(app=APP, STREAMTASK_CHILDREN="2")
    assert bench.end(held.task_id).status == "cancelled"
    bench.finish()


def test_a_timeout_and_a_cancel_end_the_code_and_the_slots_are_free_again(bench: Bench, tmp_path: Path) -> None:
    bench.supervised(1, PATIENT, app=APP, STREAMTASK_CHILDREN="1", STREAMTASK_KILL_GRACE_S="0.5")
    spinning = bench.client.submit("spins")
    end = bench.end(spinning.task_id)
    assert (end.status, end.code) == ("failed", "timeout")
    assert all(gone(one.pid) for one in bench.starts(spinning.task_id)), "it has ended before that is told"
    held = bench.client.submit("hold", {"path": str(tmp_path / "never")})
    bench.until_status(held.task_id, "running", 2)
    assert bench.history(held.task_id)[-1].event.progress == 0.5
    (start,) = bench.starts(held.task_id)
    family = [start.pid, *(one.pid for one in psutil.Process(start.pid).children(recursive=True))]
    assert len(family) == 2
    held.cancel()
    assert bench.end(held.task_id).status == "cancelled"
    assert all(gone(pid) for pid in family), "the process that it had started, too"
    after = bench.client.submit("noop", {"n": 1})
    assert bench.end(after.task_id).status == "completed"
    bench.finish()


def test_a_task_that_has_died_twice_takes_its_worker_along_no_more(bench: Bench) -> None:
    parent = bench.supervised(1, PATIENT, app=APP)
    poison = bench.client.submit("dies_in_the_worker")
    end = bench.end(poison.task_id, 120)
    assert (end.status, end.code, end.event.attempt) == ("failed", "worker_lost", 3)
    assert "exit code 3" in (end.event.error or "")
    deaths = [told for told in parent.events("supervisor_event") if told["what"] == "child_ended"]
    assert len(deaths) == 2, "the third one was its child's alone"
    bench.finish()


@pytest.mark.timeout(540)
@pytest.mark.parametrize("processes", [1, 2], ids=["one worker", "two workers"])
def test_neighbours_of_a_poison_that_kills_whole_workers_are_never_quarantined(bench: Bench, processes: int) -> None:
    parent = bench.supervised(processes, PATIENT, app=APP, STREAMTASK_CONCURRENCY="60", STREAMTASK_CHILDREN="6")
    before = bench.client.submit_many([TaskRequest(task_type="long", parameters={"ms": 1_500}) for _ in range(100)])
    poison = bench.client.submit("kills_its_worker")
    after = bench.client.submit_many([TaskRequest(task_type="long", parameters={"ms": 1_500}) for _ in range(100)])
    end = bench.end(poison.task_id, 270)
    assert (end.status, end.code) == ("failed", "worker_lost")
    deaths = bench.starts(poison.task_id)
    assert 4 <= len(deaths) <= 7, "two are charged, then its trials are narrowed until it stands one alone"
    ends = bench.ends([one.task_id for one in (*before, *after)], 240)
    assert {end.status for end in ends.values()} == {"completed"}
    assert [letter.reason for letter in bench.letters()] == ["worker_lost"]
    # They were beside it, or nothing is proved: the first two deaths took many along, and some were killed twice.
    ended = {(one.origin, one.attempt) for one in bench.executions() if one.what == "end"}
    killed = [one for one in bench.executions() if one.type == "long" and (one.origin, one.attempt) not in ended]
    for death in deaths[:2]:
        assert sum(one.pid == death.pid for one in killed) >= 10, f"it died alone: {death}"
    assert max(Counter(one.origin for one in killed).values()) >= 2, "nobody came near a quarantine"
    until(lambda: len(parent.children()) == processes, "the workers are there")
    bench.finish()
