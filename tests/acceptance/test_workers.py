"""Workers come, drain, abort, move their shards and die with their parent: nothing is lost, and the audit says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from streamtask.config.container import cores
from streamtask.domain.model import TaskRequest
from tests.acceptance.harness import APP, PATIENT, ROOT, WAIT_S, Bench, until
from tests.processes import gone

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

# Runs what follows it on these cores alone.
PINNED = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def _naps(count: int, ms: int = 20) -> list[TaskRequest]:
    return [TaskRequest(task_type="nap", parameters={"ms": ms}, priority=1 + n % 10) for n in range(count)]


def test_a_drain_finishes_what_runs_and_hands_over_the_rest(bench: Bench) -> None:
    worker = bench.worker(PATIENT, STREAMTASK_CONCURRENCY="5")  # one of them is kept for high
    gate = bench.directory / "gate"
    held = bench.client.submit_many([{"task_type": "wait_for", "parameters": {"path": str(gate)}}] * 4)
    until(lambda: len(bench.executions()) == 4, "every slot is busy")
    rest = bench.client.submit_many([TaskRequest(task_type="nap", parameters={"ms": 1}, priority=4)] * 30)
    bench.until_status(rest[0].task_id, "created")
    worker.send(signal.SIGTERM)
    until(lambda: worker.events("worker_draining"), "it drains")
    gate.touch()
    assert worker.wait() == 0
    assert [told["clean"] for told in worker.events("shards_revoked")] == [True]
    assert all(bench.statuses(one.task_id) == ["created", "running", "completed"] for one in held)
    assert not [one for one in rest if bench.starts(one.task_id)], "a draining worker starts nothing"
    bench.worker(PATIENT)
    bench.ends([one.task_id for one in rest])
    bench.finish()
    assert all(one.attempt == 1 for one in bench.executions())


def test_what_outlives_the_grace_is_handed_over_and_nobody_is_charged(bench: Bench) -> None:
    worker = bench.worker(PATIENT, STREAMTASK_DRAIN_GRACE_S="0.5")
    gate = bench.directory / "gate"
    both = [bench.client.submit(kind, {"path": str(gate)}) for kind in ("wait_for", "block")]
    until(lambda: len(bench.executions()) == 2, "both run")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert [told["clean"] for told in worker.events("shards_revoked")] == [True]
    bench.worker(PATIENT)
    until(lambda: len([one for one in bench.executions() if one.what == "start"]) == 4, "both run again")
    gate.touch()
    for one in both:
        end = bench.end(one.task_id)
        assert (end.status, end.event.attempt) == ("completed", 2)
    bench.finish()


def test_a_second_sigterm_aborts_at_once_and_nothing_is_lost(bench: Bench) -> None:
    worker = bench.supervised(STREAMTASK_DRAIN_GRACE_S="600")
    worker.expected = None
    gate = bench.directory / "gate"
    task = bench.client.submit("wait_for", {"path": str(gate)})
    until(lambda: bench.starts(task.task_id), "it runs")
    worker.send(signal.SIGTERM)
    until(lambda: worker.events("worker_draining"), "it drains")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 1, "not the grace"
    bench.worker(PATIENT)
    until(lambda: len(bench.starts(task.task_id)) == 2, "it runs elsewhere")
    gate.touch()
    assert bench.end(task.task_id).event.attempt == 2
    bench.finish()


def test_a_rolling_restart_under_load_loses_nothing(bench: Bench) -> None:
    workers = [bench.supervised(), bench.supervised()]
    tasks = latest = bench.client.submit_many(_naps(200))
    for old in workers:
        bench.until_begun(latest, 20)
        assert old.drain() == 0
        bench.supervised()
        latest = bench.client.submit_many(_naps(200))
        tasks = [*tasks, *latest]
    ends = bench.ends([one.task_id for one in tasks], 60)
    assert {end.status for end in ends.values()} == {"completed"}
    bench.finish()


def test_scaling_out_and_in_under_load_loses_nothing(bench: Bench) -> None:
    workers = [bench.worker()]
    bench.until_owning(workers[0], 4)
    tasks = bench.client.submit_many(_naps(1_200, 60))
    workers += [bench.worker(), bench.worker()]
    until(lambda: sorted(len(bench.owned_by(worker)) for worker in workers) == [1, 1, 2], "each has its share")
    tasks += bench.client.submit_many(_naps(300, 60))
    pids = {one.pid for one in bench.executions()}
    until(lambda: len({one.pid for one in bench.executions()}) == 3, lambda: f"all three work: {pids}")
    for worker in workers[:2]:
        assert worker.drain() == 0
    bench.until_owning(workers[2], 4)
    ends = bench.ends([one.task_id for one in tasks], 60)
    assert {end.status for end in ends.values()} == {"completed"}
    bench.finish()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_without_a_number_a_worker_has_a_process_per_core_that_it_may_use(bench: Bench) -> None:
    places = sorted(os.sched_getaffinity(0))[:2]  # at most two processes, however large this machine is
    wanted = cores(affinity=len(places))
    command = ["-m", "streamtask", "worker", APP]
    parent = bench._start([sys.executable, "-c", PINNED, ",".join(map(str, places)), *command], {})
    until(lambda: len(parent.children()) == wanted.count, "they were started")
    until(lambda: len(parent.events("worker_started")) == wanted.count, "each has joined")
    starting = [told for told in parent.events("supervisor_event") if told["what"] == "starting"]
    assert [(told["processes"], told["processes_by"]) for told in starting] == [(wanted.count, wanted.source)]
    tasks = bench.client.submit_many(_naps(50, 1))
    assert {end.status for end in bench.ends([one.task_id for one in tasks]).values()} == {"completed"}
    assert parent.drain() == 0
    bench.finish()


def test_workers_die_with_their_supervisor(bench: Bench) -> None:
    parent = bench.supervised(2)
    until(lambda: len(parent.children()) == 2, "both were started")
    gate = bench.directory / "gate"
    task = bench.client.submit("block", {"path": str(gate)})
    until(lambda: bench.starts(task.task_id), "it runs")
    children = parent.children()
    parent.kill()
    until(lambda: all(gone(pid) for pid in children), "both have ended")
    bench.worker()
    until(lambda: len(bench.starts(task.task_id)) == 2, "it runs elsewhere")
    gate.touch()
    bench.end(task.task_id)
    bench.finish()


def test_a_killed_worker_is_replaced_and_its_tasks_run_again(bench: Bench) -> None:
    parent = bench.supervised(2, PATIENT)
    bench.until_all_work(2)
    gate = bench.directory / "gate"
    tasks = bench.client.submit_many([{"task_type": "wait_for", "parameters": {"path": str(gate)}}] * 12)
    until(lambda: len(bench.running()) == 12 and len({one.pid for one in bench.running()}) == 2, "both work")
    victim = bench.running()[0].pid
    mine = {one.id: one.attempt for one in bench.running() if one.pid == victim}
    psutil.Process(victim).kill()
    until(lambda: all(len(bench.starts(one)) > attempt for one, attempt in mine.items()), "its tasks run elsewhere")
    until(lambda: len(parent.children()) == 2, "it was replaced")
    gate.touch()
    ends = bench.ends([one.task_id for one in tasks])
    assert {end.status for end in ends.values()} == {"completed"}
    assert all((ends[task_id].event.attempt or 0) == attempt + 1 for task_id, attempt in mine.items())
    bench.finish()


def test_a_worker_without_topics_refuses_in_one_line(bench: Bench) -> None:
    argv = [
        sys.executable,
        "-m",
        "streamtask",
        "worker",
        APP,
        "--bootstrap",
        bench.kafka.bootstrap,
        "--prefix",
        "no.such",
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "topics create" in done.stderr
