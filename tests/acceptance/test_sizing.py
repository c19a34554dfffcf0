"""What a task takes: memory while it runs, bytes in the topics and in the view. Printed for docs/how-to/size.md, and bounded.

None of it is a matter of time, so it may be measured on a machine that is busy: `pytest tests/acceptance/test_sizing.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from streamtask.config import TopicNames
from streamtask.devbroker.cluster import DevBroker
from streamtask.documents.examples import LONG_INFERENCE
from streamtask.domain.model import TaskRequest
from streamtask.kafka import admin
from tests.acceptance.harness import Bench, bench, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]

RUNNING = 1_000
BULK, SINGLE = 1_000, 30
Tell = Callable[[str], None]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    def show(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end="")

    return show


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["wait_for", "block"], ids=["coroutines", "threads"])
def test_memory_of_a_worker_grows_by_kilobytes_for_each_task_that_runs(bench: Bench, tell: Tell, kind: str) -> None:
    """bench: of the acceptance tests, on the shared broker."""
    running = RUNNING if kind == "wait_for" else 200
    worker = bench.worker(STREAMTASK_CONCURRENCY=str(2 * running), STREAMTASK_THREADS=str(2 * running))
    warm = bench.client.submit_many([TaskRequest(task_type="noop")] * 100)
    bench.ends([one.task_id for one in warm])
    process = psutil.Process(worker.pid)
    before = process.memory_info().rss
    gate = bench.directory / "gate"
    held = TaskRequest(
        task_type=kind,
        parameters={
            "path": str(gate),
        },
    )
    tasks = bench.client.submit_many([held] * running)
    until(lambda: len(bench.running()) == running, "all run", 120)
    kb = (process.memory_info().rss - before) / 1_000 / running
    tell(f"{kind}: {before / 1e6:.0f} MB at rest, {kb:.1f} kB for each of {running} that run")
    gate.touch()
    bench.ends([one.task_id for one in tasks], 120)
    assert before < 150e6
    assert kb < 40
    bench.finish()


def _bytes(kafka: DevBroker, topic: str) -> int:
    return sum(file.stat().st_size for file in (kafka.directory / "data1").glob(f"{topic}-[0-9]*/*.log"))


def _sizes(kafka: DevBroker, names: TopicNames) -> dict[str, int]:
    topics = {
        "requests": names.requests,
        "status": (names.status,),
        "others": (names.control, names.schedule, names.dead),
    }
    return {what: sum(_bytes(kafka, topic) for topic in found) for what, found in topics.items()}


@pytest.mark.timeout(300)
def test_a_task_takes_about_a_kilobyte_of_the_topics_and_as_much_of_the_view(tmp_path: Path, tell: Tell) -> None:
    """The request of the contract with its prompt, three events and a progress, in bulk and one at a time."""
    names = TopicNames("sizing")
    request = TaskRequest(task_type="long_inference", parameters=dict(LONG_INFERENCE["parameters"]), priority=8)
    with DevBroker(directory=tmp_path / "kafka") as kafka:
        admin.ensure_topics({"bootstrap.servers": kafka.bootstrap}, names, partitions=4)
        with bench(kafka.bootstrap, names, tmp_path) as one:
            one.worker(STREAMTASK_SESSION_TIMEOUT_MS="10000")
            sizes = [_sizes(kafka, names)]
            done = [receipt.task_id for receipt in one.client.submit_many([request] * BULK)]
            one.ends(done, 120)
            sizes.append(_sizes(kafka, names))
            for _ in range(SINGLE):
                task = one.client.submit_many([request])[0]
                one.end(task.task_id)
            sizes.append(_sizes(kafka, names))
            for what, count, (before, after) in (("bulk", BULK, sizes[:2]), ("one at a time", SINGLE, sizes[1:])):
                each = {name: round((after[name] - before[name]) / count) for name in after}
                tell(f"{what}: bytes of a task {each}")
                assert sum(each.values()) < 4_000
            store = tmp_path / "view.db"
            argv = [sys.executable, "-m", "streamtask", "serve", "--port", "0", "--store", str(store)]
            service = one._start(argv, {})
            until(lambda: "ready: " in service.text(), "the view is ready")
            rss = psutil.Process(service.pid).memory_info().rss
            assert service.drain() == 0
            size = sum(file.stat().st_size for file in tmp_path.glob("view.db*"))
            tell(f"view: {size / (BULK + SINGLE):.0f} bytes of a task, {rss / 1e6:.0f} MB with {BULK + SINGLE} of them")
            assert size / (BULK + SINGLE) < 3_000
            one.finish()
