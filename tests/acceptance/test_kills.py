"""Workers are killed and frozen under load, at random moments; what is promised holds all the same.

The seed is printed; STREAMTASK_KILLS_SEED runs the same moments again (the machine adds its own).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from streamtask.domain.model import TaskRequest
from tests.acceptance.harness import SESSION_MS, WAIT_S, Bench, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

KILLS = 10
PROCESSES = 3
BACKLOG = 200  # tasks that wait or run, at least most of the time
GAP_S = (0.2, 3.0)  # between two kills: while a claim is made, after it, under full load
LOST_MAX = 3


class _Load:
    """Tasks of several kinds, in all bands, a few of them with a key; submitted a little ahead of the work."""

    def __init__(self, bench: Bench, rng: random.Random) -> None:
        self.bench, self.rng = bench, rng
        self.task_ids: list[str] = []

    def more(self, count: int) -> None:
        kinds = ("nap", "nap", "nap", "sleep", "flaky", "counts")
        requests = []
        for _ in range(count):
            kind = self.rng.choice(kinds)
            ms = self.rng.randint(5, 400)
            parameters = {
                "flaky": {"failures": self.rng.randint(0, 1)},
                "counts": {"steps": 4, "ms": ms // 4},
            }.get(kind, {"ms": ms})
            key = f"key-{self.rng.randint(0, 9)}" if kind == "nap" and self.rng.random() < 0.1 else None
            requests.append(
                TaskRequest(task_type=kind, parameters=parameters, priority=self.rng.randint(1, 10), ordering_key=key)
            )
        self.task_ids += [one.task_id for one in self.bench.client.submit_many(requests)]

    def until(self, happened: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Keep the workers busy until then."""

        def busy_until() -> bool:
            self._keep_up(BACKLOG)
            return happened()

        until(busy_until, what, timeout_s)

    def _keep_up(self, backlog: int) -> None:
        ended = sum(1 for events in self.bench.histories().values() if events[-1].event.ended)
        if len(self.task_ids) - ended < backlog:
            self.more(backlog // 4)


def _wait(seconds: float, load: _Load) -> None:
    deadline = time.monotonic() + seconds
    load.until(lambda: time.monotonic() >= deadline, "the moment comes", seconds + 60)


def _one_of(parent: Running, rng: random.Random) -> int:
    children = until(parent.children, "a worker is there")
    return rng.choice(children)


@pytest.mark.timeout(240)
def test_ten_kills_and_a_freeze_under_load_keep_every_promise(bench: Bench) -> None:
    seed = int(os.environ.get("STREAMTASK_KILLS_SEED") or time.time_ns() % 1_000_000)
    print(f"STREAMTASK_KILLS_SEED={seed}")
    rng = random.Random(seed)
    load = _Load(bench, rng)
    parent = bench.supervised(PROCESSES)
    load.until(lambda: len({one.pid for one in bench.executions()}) == PROCESSES, "all of them work")
    gone: set[int] = set()
    frozen_after = rng.randint(2, KILLS - 2)
    for kill in range(KILLS):
        _wait(rng.uniform(*GAP_S), load)
        victim = _one_of(parent, rng)
        gone.add(victim)
        psutil.Process(victim).kill()
        if kill == frozen_after:
            _freeze(bench, parent, load, rng, gone)
    ends = bench.ends(load.task_ids, 90)
    assert {end.status for end in ends.values()} <= {"completed", "failed"}
    _explain_failures(bench, gone)
    report = bench.finish()
    attempts = Counter(one.attempt for one in bench.executions() if one.what == "start" and one.type != "flaky")
    print(f"{report.requests} requests, {report.events} events, {report.counts}, executions by attempt {attempts}")
    assert attempts[2] >= KILLS, "the kills hit work that ran"


def _freeze(bench: Bench, parent: Running, load: _Load, rng: random.Random, gone: set[int]) -> None:
    """One that is at work stands still until the others have its shards, and then goes on as a zombie."""
    seen = len(bench.executions())
    load.until(lambda: len(bench.executions()) >= seen + 20, "work goes on")
    working = {one.pid for one in bench.executions()[-20:]} & set(parent.children())
    frozen = rng.choice(sorted(working or parent.children()))
    gone.add(frozen)
    os.kill(frozen, signal.SIGSTOP)
    try:
        _wait(SESSION_MS / 1_000 + 2.0, load)
    finally:
        os.kill(frozen, signal.SIGCONT)
    until(lambda: parent.events("shards_lost") or parent.events("producer_lost"), "the zombie finds out")


def _explain_failures(bench: Bench, gone: set[int]) -> None:
    """A `worker_lost` needs three attempts whose workers we took away; nothing else fails here."""
    for task_id, events in bench.histories().items():
        end = events[-1]
        if end.status != "failed":
            continue
        assert end.code == "worker_lost", f"{task_id}: {end.event}"
        wrote = {
            seen.event.attempt: int((seen.event.worker or "").rsplit(":", 1)[1])
            for seen in events
            if seen.status == "running"
        }
        deaths = [attempt for attempt, pid in wrote.items() if pid in gone]
        assert len(deaths) >= LOST_MAX, f"{task_id} is worker_lost after {wrote}, of which {gone} were taken away"
