"""What is looked at while the soak runs: memory, open files and threads of the processes that live through it, their
children apart, and how large the status topic is on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.soak.plant import children
from streamtask.config import TopicNames


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment. rss: bytes; children_rss: of all its children together."""

    at_s: float  # wall clock
    role: str
    rss: int
    files: int
    threads: int
    children: int
    children_rss: int


def look(role: str, pid: int) -> Sample | None:
    """None: it has ended, or is just ending."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            rss, threads = process.memory_info().rss, process.num_threads()
        files = process.num_fds()
    except psutil.NoSuchProcess:
        return None
    below = 0
    pids = children(pid)
    for child in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            below += psutil.Process(child).memory_info().rss
    return Sample(time.time(), role, rss, files, threads, len(pids), below)


@dataclass
class Segments:
    """The status topic on disk. A segment is largest when it is closed: `written` is what was appended in all, as far as
    looks every few seconds can tell."""

    directory: Path  # the broker's log directory
    names: TopicNames
    largest: dict[Path, int] = field(default_factory=dict)

    def look(self) -> int:
        """Bytes there are now."""
        there = 0
        for partition in self.directory.glob(f"{self.names.status}-*"):
            sizes: dict[Path, int] = {}
            for log in partition.glob("*.log"):
                with contextlib.suppress(FileNotFoundError):  # just cleaned away
                    sizes[log] = log.stat().st_size
            there += sum(sizes.values())
            if sizes:
                active = max(sizes)  # the only one that is appended to; the others are there as they were cleaned
                self.largest[active] = max(self.largest.get(active, 0), sizes[active])
        return there

    @property
    def written(self) -> int:
        return sum(self.largest.values())


class Sampler:
    """tick() looks when it is due, says whether it did, and writes every sample down for who wants to look closer."""

    def __init__(self, roles: Callable[[], Mapping[str, int]], segments: Segments, every_s: float, place: Path) -> None:
        self.samples: list[Sample] = []
        self._roles, self._segments, self._every_s, self._place = roles, segments, every_s, place
        self._due_s = 0.0

    def tick(self) -> bool:
        if time.monotonic() < self._due_s:
            return False
        self._due_s = time.monotonic() + self._every_s
        found = [look(role, pid) for role, pid in self._roles().items()]
        kept = [sample for sample in found if sample is not None]
        self.samples += kept
        topic = {"at_s": time.time(), "status_bytes": self._segments.look(), "written": self._segments.written}
        with self._place.open("a") as out:
            for line in (*map(dataclasses.asdict, kept), topic):
                out.write(json.dumps(line) + "\n")
        return True
