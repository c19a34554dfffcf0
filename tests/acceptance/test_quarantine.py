"""Two deaths under hundreds of running tasks of one partition: they run on together, and the rate with them.

The workload of the defect: one partition, `async` tasks of 1 ms and 15 s in turn, a concurrency of 1,000. Its ledger has room
for some 350 open requests, so that they are what bounds the rate: about 24 long ones end in a second.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.acceptance.harness import Bench, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]

APP = "tests.acceptance.quarantine_app:app"
LONG_S = 15
RUNNING_MIN = 300  # of those that the ledger has room for
COUNT = 6_000  # more than end in the longest of these tests
BUSY = {"STREAMTASK_CONCURRENCY": "1000", "STREAMTASK_CHILDREN": "2"}


def submit(bench: Bench, count: int) -> None:
    """Into one partition, short ones and long ones in turn."""
    for number in range(count):
        value = json.dumps({"task_type": "sleeps", "parameters": {"s": LONG_S if number % 2 else 0.001}}).encode()
        bench._producer.produce(bench.names.requests[1], value, str(uuid.uuid4()).encode(), 0)
        bench._producer.poll(0)
    assert bench._producer.flush(60) == 0


def running(bench: Bench, attempt: int) -> int:
    return sum(one.attempt == attempt for one in bench.running())


def amid(bench: Bench) -> bool:
    """Long ones run in waves, as they were let in together: a death between two waves meets hardly any of them."""
    now_ms = time.time() * 1_000
    return sum(2_000 <= now_ms - one.ms <= 1_000 * LONG_S * 2 / 3 for one in bench.running()) >= RUNNING_MIN


def ended(bench: Bench, since_s: float, until_s: float) -> int:
    """Handlers that ended in this time, short ones and long ones."""
    ends = [one for one in bench.executions() if one.what == "end" and since_s * 1_000 <= one.ms < until_s * 1_000]
    return len(ends)


def wait_until_s(at_s: float) -> None:
    until(lambda: time.time() >= at_s, "the time has come", max(1.0, at_s - time.time()) + 30)


def undisturbed(bench: Bench) -> float:
    """Ends a second, when as many run as the ledger has room for."""
    until(lambda: running(bench, 1) >= RUNNING_MIN, lambda: f"they run: {running(bench, 1)}", 120)
    start_s = time.time() + LONG_S  # the first wave begins at once, later ones spread
    wait_until_s(start_s + 2 * LONG_S)
    return ended(bench, start_s, start_s + 2 * LONG_S) / (2 * LONG_S)


def worker_of(parent: Running) -> int:
    return until(lambda: (parent.children() or [0])[-1], "a worker is there")


def killed(parent: Running) -> None:
    before = worker_of(parent)
    os.kill(before, signal.SIGKILL)
    until(lambda: worker_of(parent) != before, "another worker is there")


def frozen(parent: Running) -> None:
    """For 14 s: its session ends, and nobody else is there to take its shards."""
    worker = psutil.Process(worker_of(parent))
    worker.suspend()
    try:
        wait_until_s(time.time() + 14)
    finally:
        worker.resume()


@pytest.mark.timeout(540)
@pytest.mark.parametrize("second", [frozen, killed])
def test_two_deaths_of_a_worker_cost_no_concurrency(bench: Bench, second: Callable[[Running], None]) -> None:
    """Defect: 355 innocent ones ran on two at a time, each in a child of its own, and filled their cell: 90 ended in 140 s."""
    submit(bench, COUNT)
    parent = bench.supervised(1, BUSY, app=APP)
    rate = undisturbed(bench)
    until(lambda: amid(bench), "a wave is under way", 2 * LONG_S)
    killed(parent)
    until(lambda: running(bench, 2) >= RUNNING_MIN and amid(bench), lambda: f"they run again: {running(bench, 2)}", 120)
    second(parent)
    since_s = time.time()
    wait_until_s(since_s + 30 + 2 * LONG_S)
    after = ended(bench, since_s + 30, since_s + 30 + 2 * LONG_S) / (2 * LONG_S)
    assert after >= 0.8 * rate, f"{after:.1f} a second, {rate:.1f} before"
    assert not bench.letters()
    parent.kill()


@pytest.mark.timeout(540)
def test_a_poison_among_hundreds_is_found_in_twelve_deaths_of_children_and_the_others_go_on(
    bench: Bench, tmp_path: Path
) -> None:
    value = json.dumps({"task_type": "kills", "parameters": {"gates": str(tmp_path)}}).encode()
    submit(bench, 200)
    origin = bench.produce(value, str(uuid.uuid4()).encode(), partition=0)
    submit(bench, COUNT - 200)
    parent = bench.supervised(1, BUSY, app=APP)
    rate = undisturbed(bench)
    for death in (1, 2):

        def run_again(death: int = death) -> bool:
            return running(bench, death) >= RUNNING_MIN / 2 and poison_starts(bench, origin) >= death

        until(
            run_again,
            lambda: (
                f"they run: {running(bench, 1)}, {running(bench, 2)}; it started {poison_starts(bench, origin)} times"
            ),
            120,
        )

        def has_ended(before: int = worker_of(parent)) -> bool:
            return worker_of(parent) != before or opened(tmp_path, poison_starts(bench, origin))

        until(has_ended, "its end")
    (tmp_path / "open").touch()
    since_s, worker, starts = time.time(), worker_of(parent), poison_starts(bench, origin)
    letter = bench.letter(origin, 120)
    assert letter.reason == "worker_lost"
    assert poison_starts(bench, origin) - starts <= 12, "deaths of children"
    wait_until_s(since_s + 4 * LONG_S)
    after = ended(bench, since_s, since_s + 4 * LONG_S) / (4 * LONG_S)
    assert worker_of(parent) == worker, "no worker has died of it"
    assert [letter.origin for letter in bench.letters()] == [origin], "no innocent one is quarantined"
    assert after >= 0.5 * rate, f"{after:.1f} a second, {rate:.1f} before"
    parent.kill()


def poison_starts(bench: Bench, origin: str) -> int:
    """Its attempt: a start that the worker gave up, because Kafka did not answer in time, counts too."""
    return sum(one.origin == origin and one.what == "start" for one in bench.executions())


def opened(gates: Path, attempt: int) -> bool:
    """Its gate is open. Never true: what is waited for is the death of its worker."""
    (gates / str(attempt)).touch()
    return False
