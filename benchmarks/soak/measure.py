"""The soak: start everything, let it run, disturb it every minute, look, end it in good order, judge."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.soak import queues
from benchmarks.soak.app import LEAK
from benchmarks.soak.judge import JUDGED, Bounds, Growth, Span, growths
from benchmarks.soak.plant import Plant, plant
from benchmarks.soak.sampling import Sampler, Segments
from benchmarks.stand import PARTITIONS, Failed
from streamtask.audit import Report, run_audit
from streamtask.config.kafka import KafkaSettings
from streamtask.kafka.offset_queries import group_offsets, topic_ends

FINISH_S = 300.0  # for what is open when the load ends, and for the view to have read it
TICK_S = 0.1
RATE = 300.0  # requests a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One soak.

    every_s         between two rebalances
    rebalances_min  it takes longer where there were fewer: a host that starts takes 15 s on a busy machine
    sample_s        between two looks
    segment_ms      of tasks.status
    cache_kib       of the view's store: see serve.py; 0: as it is
    leak_bytes      see app.py
    """

    minutes: float
    rate: float
    every_s: float = 60.0
    rebalances_min: int = 0
    sample_s: float = 5.0
    partitions: int = PARTITIONS
    segment_ms: int = 60_000
    cache_kib: int = 0
    bounds: Bounds = field(default_factory=Bounds)
    leak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a soak found. grown: what is beyond its bound; [] is flat."""

    plan: Plan
    tasks: int
    counts: dict[str, int]
    rebalances: int
    growths: list[Growth]
    report: Report
    events: int  # that the view has read: all that were written
    status_bytes: tuple[int, int]  # written, and left on the disk at the end of the load
    cores: float  # that all of this took: CPU seconds a second, starts and ends included

    @property
    def grown(self) -> list[Growth]:
        return [one for one in self.growths if one.role in JUDGED and one.beyond(self.plan.bounds)]

    def figures(self) -> dict[str, Any]:
        """For the benchmark's line."""
        of_role: dict[str, dict[str, list[float]]] = {}
        for one in self.growths:
            of_role.setdefault(one.role, {})[one.what] = [one.second, one.last]
        written, left = self.status_bytes
        return {
            "minutes": self.plan.minutes,
            "rate_per_s": self.plan.rate,
            "tasks": self.tasks,
            "rebalances": self.rebalances,
            **of_role,
            "grown": [str(one) for one in self.grown],
            "status_events_written": self.events,
            "status_events_left": self.report.events,
            "status_mb_written": round(written / 1e6, 1),
            "status_mb_left": round(left / 1e6, 1),
            "looked_up": self.counts["looked"],
            "late": self.counts["late"],
            "waited_for": self.counts["waited"],
            "cores": round(self.cores, 2),
            "partitions": self.plan.partitions,
        }


def soak(plan: Plan, directory: Path, say: Callable[[str], None] = lambda _text: None) -> Outcome:
    """Run it. Raises Failed when a process ended or complained, the audit is not clean, or a task is not done."""
    environment = {LEAK: str(plan.leak_bytes)}
    started_s, cpu_s = time.monotonic(), _cpu_s()
    with plant(
        directory,
        partitions=plan.partitions,
        segment_ms=plan.segment_ms,
        environment=environment,
        rate=plan.rate,
        cache_kib=plan.cache_kib,
        queues_ms=round(plan.sample_s * 1_000),
    ) as one:
        segments = Segments(one.kafka.directory / "data1", one.names)
        sampler = Sampler(one.roles, segments, plan.sample_s, directory / "samples.jsonl")
        roles, began_s = one.roles(), time.time()
        rebalances = _disturb(plan, one, sampler, say)
        seen = Span(began_s, time.time())
        counts = one.stop_load()
        status_bytes = (segments.written, segments.look())
        kafka = KafkaSettings(one.kafka.bootstrap, client_id="soak")
        _until(lambda: _all_done(kafka, one), "every request is done")
        events = _view_has_read(one, counts["submitted"])
        one.stop()
        broker_s = sum(psutil.Process(one.kafka.pid(1)).cpu_times()[:2])  # which is not waited for yet
        cores = (_cpu_s() - cpu_s + broker_s) / (time.monotonic() - started_s)
        say("load and workers have ended; the audit reads")
        report = run_audit(kafka, one.names)
    if not report.finished or report.requests != counts["submitted"]:
        raise Failed(f"{counts['submitted']} requests were acknowledged.\n{report.to_text()}")
    found = growths(sampler.samples, queues.read(one.queues), roles, seen)
    return Outcome(plan, report.requests, counts, rebalances, found, report, events, status_bytes, cores)


def _cpu_s() -> float:
    """CPU seconds of this process and of all that it has started and waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _disturb(plan: Plan, one: Plant, sampler: Sampler, say: Callable[[str], None]) -> int:
    """For the time of the plan: look, and rebalance when it is due. Returns the number of rebalances."""
    began_s = time.monotonic()
    due_s, rebalances = began_s + plan.every_s, 0
    under_way: Future[None] | None = None
    with ThreadPoolExecutor(1) as aside:
        while time.monotonic() < began_s + plan.minutes * 60 or rebalances < plan.rebalances_min:
            if sampler.tick():
                one.check()
            if under_way is not None and under_way.done():
                under_way.result()
                under_way, rebalances = None, rebalances + 1
                said = ", ".join(f"{s.role} {s.rss / 1e6:.0f} MB" for s in sampler.samples[-4:])
                say(f"{(time.monotonic() - began_s) / 60:5.1f} min: {rebalances} rebalances; {said}")
            if under_way is None and time.monotonic() >= due_s:
                due_s = max(due_s + plan.every_s, time.monotonic())
                under_way = aside.submit(one.strike if rebalances % 2 else one.pass_on)
            time.sleep(TICK_S)
        if under_way is not None:
            under_way.result()
            rebalances += 1
    return rebalances


def _all_done(kafka: KafkaSettings, one: Plant) -> bool:
    """The group's offsets have passed every request."""
    ends = {place: end for place, end in topic_ends(kafka, one.names.requests).items() if end}
    committed = group_offsets(kafka, one.names.group, ends)
    return all(committed.get(place, 0) >= end for place, end in ends.items())


def _view_has_read(one: Plant, tasks: int) -> int:
    """Once all of them have ended there too: how many status events it has read."""

    def read() -> int | None:
        said = httpx.get(f"{one.url}/stats", timeout=30).raise_for_status().json()
        ended = sum(said["tasks"].get(status, 0) for status in ("completed", "failed", "cancelled"))
        return int(said["read"]["status_events"]) if ended == sum(said["tasks"].values()) == tasks else None

    return int(_until(read, f"the view shows {tasks} tasks, and that all have ended"))


def _until(happened: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + FINISH_S
    while not (found := happened()):
        if time.monotonic() > deadline:
            raise Failed(f"Not within {FINISH_S:g} s after the load: {what}.")
        time.sleep(0.5)
    return found


def measure(
    bootstrap: str,
    *,
    tasks: int,
    concurrency: int,
    partitions: int,
    minutes: float,
    rate: float = RATE,
    keep: str | None = None,
) -> dict[str, Any]:
    """The figures; see the package. keep: a new directory for samples and logs; None: they are deleted."""
    assert not bootstrap, "it starts its own"
    plan = Plan(minutes=minutes, rate=rate, partitions=partitions)
    with tempfile.TemporaryDirectory(prefix="streamtask-soak-") as scratch:
        directory = Path(keep or scratch)
        directory.mkdir(parents=True, exist_ok=True)
        return soak(plan, directory, lambda text: print(text, flush=True)).figures()
