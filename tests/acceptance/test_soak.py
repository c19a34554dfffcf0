"""The short form of the soak (`python -m benchmarks soak`, an hour): two minutes, a rebalance every 15 s, four at least.

Bounds that such a run can fail and does not fail by chance: 10 % of memory between two thirds of 40 s (a worker's were at
most 2 % apart, the view's 1 %), two open files or threads (a leak of one at each rebalance makes three). The long form has
5 %. That it sees a leak: STREAMTASK_SOAK_LEAK_BYTES=20000.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.soak.judge import Bounds, Growth, Span, growths
from benchmarks.soak.measure import Plan, soak
from benchmarks.soak.queues import Queues
from benchmarks.soak.sampling import Sample

SHORT = Plan(
    minutes=2.0,
    rate=120.0,
    every_s=15.0,
    rebalances_min=4,
    sample_s=0.5,
    partitions=6,
    segment_ms=10_000,
    cache_kib=2_048,
    bounds=Bounds(share=0.10),
    leak_bytes=int(os.environ.get("STREAMTASK_SOAK_LEAK_BYTES", "0")),
)


@pytest.mark.broker
@pytest.mark.acceptance
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_and_view_stay_as_they_are_at_steady_load_whatever_comes_and_goes(tmp_path: Path) -> None:
    """The soak itself fails when the audit is not clean, a request is not done, or a process complains."""
    found = soak(SHORT, tmp_path, print)
    print("\n".join(map(str, found.growths)))
    assert found.grown == []
    assert found.rebalances >= SHORT.rebalances_min, "hardly anything came or went"
    assert found.tasks > 0.5 * SHORT.rate * SHORT.minutes * 60, "hardly anything ran"
    assert {one.role for one in found.growths if one.what == "fetched"} == {"worker", "view", "client"}
    # Three events a task are written; of what is cleaned one is left. What was written last is not cleaned yet.
    assert found.events > 3 * found.tasks
    assert found.report.events < 0.75 * found.events, "tasks.status is compacted"
    written, left = found.status_bytes
    assert left < 0.9 * written, "and so are its segments"


def sample(at_s: float, mb: float = 100.0, files: int = 50) -> Sample:
    return Sample(at_s, "worker", int(mb * 1e6), files, 20, 2, 80_000_000)


def judged(samples: list[Sample], queues: list[Queues] | None = None) -> list[Growth]:
    found = growths(samples, queues or [], {"worker": 7}, Span(0.0, 90.0))
    return [one for one in found if one.beyond(Bounds())]


def test_what_grows_in_the_first_third_alone_has_only_warmed_up() -> None:
    assert judged([sample(at, 50.0 + min(at, 30.0)) for at in range(90)]) == []


def test_memory_that_grows_by_more_than_its_share_is_told() -> None:
    (one,) = judged([sample(at, 100.0 + at / 4) for at in range(90)])
    assert str(one).startswith("worker rss_mb: 111.1 → 118")
    assert judged([sample(at, 100.0 + at / 8) for at in range(90)]) == []


def test_one_file_more_at_every_rebalance_is_told() -> None:
    (one,) = judged([sample(at, files=50 + int(at) // 8) for at in range(90)])
    assert one.what == "files"


def test_a_queue_that_fills_is_told_and_that_of_another_process_is_not() -> None:
    samples = [sample(at) for at in range(90)]
    (one,) = judged(samples, [Queues(7, "rdkafka#consumer-1", at, 0, int(at**2), 0) for at in range(90)])
    assert one.what == "fetched"
    assert judged(samples, [Queues(8, "rdkafka#consumer-1", at, 0, int(at**2), 0) for at in range(90)]) == []
