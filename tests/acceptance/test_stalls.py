"""What is slow is not dead: a host that stands still for less than its session keeps its shards, whatever the reason.

With the default of 6 s, a host may stand still for 4 s. The same share is tried on a longer session: what a busy machine adds
to the pause is not taken for the pause.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from streamtask.config import Settings
from tests.acceptance.harness import Bench, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]
SESSION_MS = Settings.model_fields["session_timeout_ms"].default
USERS = {"STREAMTASK_SESSION_TIMEOUT_MS": str(SESSION_MS)}  # the default of a user; the bench's own is shorter
PAUSE_S = 4.0  # of a VM that is moved or snapshotted, of a host that swaps
LONGER = 4
BUSY_S = 15.0


def _moves(workers: list[Running]) -> int:
    """How often the group has given or taken shards."""
    names = ("shards_assigned", "shards_revoked", "shards_lost")
    return sum(bool(told["shards"]) for one in workers for name in names for told in one.events(name))


def _two(bench: Bench, environment: dict[str, str] = USERS) -> list[Running]:
    workers = [bench.worker(environment), bench.worker(environment)]
    until(lambda: all(len(bench.owned_by(one)) == 2 for one in workers), "each has its half")
    return workers


def _through(bench: Bench, workers: list[Running], disturb: Callable[[], None]) -> None:
    """Work goes on through the disturbance, and no shard moves for it."""
    naps = [{"task_type": "nap", "parameters": {"ms": 20}, "priority": 5}] * 200
    tasks = bench.client.submit_many(naps)
    bench.until_begun(tasks, 20)
    before = _moves(workers)
    disturb()
    tasks += bench.client.submit_many(naps)
    assert {end.status for end in bench.ends([one.task_id for one in tasks], 90.0).values()} == {"completed"}
    assert _moves(workers) == before, "it lives: nobody takes its shards"
    bench.finish()


def _past(seconds: float) -> None:
    ended_s = time.monotonic() + seconds
    until(lambda: time.monotonic() > ended_s, f"{seconds:g} s are over", seconds + 30)


def test_a_host_that_stands_still_for_two_thirds_of_its_session_keeps_its_shards(bench: Bench) -> None:
    """A paused VM and a stalled host are the same to Kafka: nothing of them runs, their connections stay open."""
    assert PAUSE_S * 1_000 <= SESSION_MS * 2 / 3
    workers = _two(bench, {"STREAMTASK_SESSION_TIMEOUT_MS": str(LONGER * SESSION_MS)})

    def pause() -> None:
        os.kill(workers[0].pid, signal.SIGSTOP)
        _past(LONGER * PAUSE_S)
        os.kill(workers[0].pid, signal.SIGCONT)

    _through(bench, workers, pause)


@contextmanager
def _busy() -> Iterator[None]:
    """Twice as many processes as there are processors, none of which ever waits."""
    count = 2 * (os.cpu_count() or 1)
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


def test_a_host_whose_processors_are_all_busy_keeps_its_shards(bench: Bench) -> None:
    workers = _two(bench)

    def load() -> None:
        with _busy():
            _past(BUSY_S)

    _through(bench, workers, load)
