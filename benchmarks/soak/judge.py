"""What counts as growth: the run in thirds, the first to warm up, the median of the last against that of the second."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.soak.queues import Queues
from benchmarks.soak.sampling import Sample

MB = 1e6
JUDGED = ("worker", "view", "supervisor")  # the client's is told beside them
QUEUES = ("messages", "fetched", "replies")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is no growth yet. share: of memory. count: open files, threads, children. queued: records in librdkafka's queues,
    beyond as many again as there were."""

    share: float = 0.05
    count: int = 2
    queued: int = 500


@dataclass(frozen=True, slots=True)
class Growth:
    """One figure of one process: medians (of queues: means) of the second and the last third."""

    role: str
    what: str
    second: float
    last: float

    def beyond(self, bounds: Bounds) -> bool:
        if self.what.endswith("rss_mb"):
            return self.last > self.second * (1 + bounds.share)
        if self.what in QUEUES:
            return self.last > 2 * self.second + bounds.queued
        return self.last > self.second + bounds.count

    def __str__(self) -> str:
        return f"{self.role} {self.what}: {self.second:g} → {self.last:g}"


def growths(samples: Iterable[Sample], queues: Iterable[Queues], roles: Mapping[str, int], seen: Span) -> list[Growth]:
    """Every figure of every process. roles: their pids."""
    found = []
    of_role: dict[str, list[Sample]] = {role: [] for role in roles}
    for sample in samples:
        of_role[sample.role].append(sample)
    for role, some in of_role.items():
        figures = {
            "rss_mb": [(one.at_s, one.rss / MB) for one in some],
            "children_rss_mb": [(one.at_s, one.children_rss / MB) for one in some],
            "files": [(one.at_s, float(one.files)) for one in some],
            "threads": [(one.at_s, float(one.threads)) for one in some],
            "children": [(one.at_s, float(one.children)) for one in some],
        }
        found += [Growth(role, what, *map(_median, seen.thirds(points))) for what, points in figures.items()]
    names = {pid: role for role, pid in roles.items()}
    held: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one in queues:
        if one.pid in names:
            for what in QUEUES:
                held.setdefault((names[one.pid], what), []).append((one.at_s, float(getattr(one, what))))
    found += [Growth(role, what, *map(_mean, seen.thirds(points))) for (role, what), points in held.items()]
    return found


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when was looked, wall clock."""

    began_s: float
    ended_s: float

    def thirds(self, points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """The values of the second and of the last third."""
        third_s = (self.ended_s - self.began_s) / 3
        second: list[float] = []
        last: list[float] = []
        for at_s, value in points:
            if self.began_s + third_s <= at_s < self.began_s + 2 * third_s:
                second.append(value)
            elif self.began_s + 2 * third_s <= at_s <= self.ended_s:
                last.append(value)
        return second, last


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 1)


def _mean(values: list[float]) -> float:
    return round(statistics.fmean(values), 1)
