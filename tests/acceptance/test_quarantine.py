"""Two deaths under hundreds of running tasks of one partition: they run on together, as many as before.

The workload of the defect: one partition, `async` tasks of 1 ms and 15 s in turn, a concurrency of 1,000. Its ledger has room
for some 350 open requests, so that they are what bounds how many run at once.

How many run at once does not depend on how fast the machine is, and a rate does. Where work was held up, only two ran.
"""

from __future__ import annotations

import json
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
HUNDREDS_S = 180.0  # 30 s where nothing else runs: a wave of long ones ends after 15 s, and others begin
COUNT = 6_000  # more than end in the longest of these tests
BUSY = {"STREAMTASK_CONCURRENCY": "1000", "STREAMTASK_CHILDREN": "2"}


def submit(bench: Bench, count: int) -> None:
    """Into one partition, short ones and long ones in turn."""
    for number in range(count):
        value = json.dumps({"task_type": "sleeps", "parameters": {"s": LONG_S if number % 2 else 0.001}}).encode()
        bench._producer.produce(bench.names.requests[1], value, str(uuid.uuid4()).encode(), 0)
        bench._producer.poll(0)
    assert bench._producer.flush(60) == 0


def worker_of(parent: Running) -> int:
    return until(lambda: (parent.children() or [0])[-1], "a worker is there")


def at_once(bench: Bench, parent: Running, since_s: float = 0.0) -> int:
    """Handlers that run in the worker that is there now, and that began after this time."""
    worker = worker_of(parent)
    return sum(one.pid == worker and one.ms >= since_s * 1_000 for one in bench.running())


def until_hundreds_run(bench: Bench, parent: Running, since_s: float = 0.0) -> None:
    def count() -> int:
        return at_once(bench, parent, since_s)

    until(lambda: count() >= RUNNING_MIN, lambda: f"{RUNNING_MIN} run at once; {count()} do", HUNDREDS_S)


def until_all_go_on(bench: Bench, parent: Running, since_s: float) -> None:
    """As many as before run at once, and they end, and others begin in their place: three times as many have begun."""
    until_hundreds_run(bench, parent, since_s)

    def begun() -> int:
        return sum(one.what == "start" and one.ms >= since_s * 1_000 for one in bench.executions())

    until(lambda: begun() >= 3 * RUNNING_MIN, lambda: f"{3 * RUNNING_MIN} begin; {begun()} have", HUNDREDS_S)
    until_hundreds_run(bench, parent, since_s)


def suspended(bench: Bench, parent: Running) -> psutil.Process:
    """The worker while it runs hundreds: it stands still while they are counted, since many of them end at once."""

    def amid() -> psutil.Process | None:
        until_hundreds_run(bench, parent)
        worker = psutil.Process(worker_of(parent))
        worker.suspend()
        if at_once(bench, parent) >= RUNNING_MIN:
            return worker
        worker.resume()
        return None

    return until(amid, "the worker is stopped while hundreds run", HUNDREDS_S)


def killed(bench: Bench, parent: Running) -> None:
    worker = suspended(bench, parent)
    worker.kill()
    until(lambda: worker_of(parent) != worker.pid, "another worker is there")


def frozen(bench: Bench, parent: Running) -> None:
    """For 14 s: its session ends, and nobody else is there to take its shards."""
    worker = suspended(bench, parent)
    try:
        over_s = time.monotonic() + 14
        until(lambda: time.monotonic() >= over_s, "14 s are over")
    finally:
        worker.resume()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("second", [frozen, killed])
def test_two_deaths_of_a_worker_cost_no_concurrency(bench: Bench, second: Callable[[Bench, Running], None]) -> None:
    """Defect: 355 innocent ones ran on two at a time, each in a child of its own, and filled their cell: 90 ended in 140 s."""
    submit(bench, COUNT)
    parent = bench.supervised(1, BUSY, app=APP)
    killed(bench, parent)
    second(bench, parent)
    until_all_go_on(bench, parent, time.time())
    assert not bench.letters()
    parent.kill()


@pytest.mark.timeout(600)
def test_a_poison_among_hundreds_is_found_in_twelve_deaths_of_children_and_the_others_go_on(
    bench: Bench, tmp_path: Path
) -> None:
    value = json.dumps({"task_type": "kills", "parameters": {"gates": str(tmp_path)}}).encode()
    submit(bench, 200)
    origin = bench.produce(value, str(uuid.uuid4()).encode(), partition=0)
    submit(bench, COUNT - 200)
    parent = bench.supervised(1, BUSY, app=APP)
    for death in (1, 2):

        def has_started(death: int = death) -> bool:
            return poison_starts(bench, origin) >= death

        until(has_started, f"it has started {death} times", HUNDREDS_S)
        until_hundreds_run(bench, parent)

        def has_ended(before: int = worker_of(parent)) -> bool:
            return worker_of(parent) != before or opened(tmp_path, poison_starts(bench, origin))

        until(has_ended, "its end")
    (tmp_path / "open").touch()
    worker, starts = worker_of(parent), poison_starts(bench, origin)
    letter = bench.letter(origin, HUNDREDS_S)
    assert letter.reason == "worker_lost"
    assert poison_starts(bench, origin) - starts <= 12, "deaths of children"
    until_all_go_on(bench, parent, time.time())
    assert worker_of(parent) == worker, "no worker has died of it"
    assert [letter.origin for letter in bench.letters()] == [origin], "no innocent one is quarantined"
    parent.kill()


def poison_starts(bench: Bench, origin: str) -> int:
    """Its attempt: a start that the worker gave up, because Kafka did not answer in time, counts too."""
    return sum(one.origin == origin and one.what == "start" for one in bench.executions())


def opened(gates: Path, attempt: int) -> bool:
    """Its gate is open. Never true: what is waited for is the death of its worker."""
    (gates / str(attempt)).touch()
    return False
