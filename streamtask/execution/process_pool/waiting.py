"""Jobs that wait for a child, in their order, and how much of them a child is handed at once.

A child always has its next jobs while it works on one, because its pool may need some 10 ms to answer it: the pool's thread
waits for the interpreter twice or three times, up to 5 ms each, while the owner of the worker computes. So a child holds short
jobs for AHEAD_MS, and gets more when half of that is done. On a busy machine the pool needs longer: each time that a child has
answered all that it had, and jobs wait for it, children get more from then on, up to AHEAD_MAX_MS. How long a job takes is
learned from those of its type.

Always true: a job of the lead band is before all others; within each of the two, what comes back is before what was submitted
after it; a child is handed no more than its share of what waits, so that none is idle at the end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

AHEAD_MS: Final = 16.0  # of work for one child: as much as shares a slot (core/slot_sharing.py),
AHEAD_MAX_MS: Final = 64.0  # at most this if the pool is too slow for that
# What becomes of it for each hand-over that came too late, or in time: one of ten may be late.
DRY, IN_TIME = 1.25, 0.98
AHEAD_BYTES: Final = 64 * 1024  # of payload: a recall must find it whole in the pipe, which holds 200 KB
JOBS_MAX: Final = 256  # for one child
OVERHEAD_MS: Final = 0.05  # what a child needs around each job
UNKNOWN_MS: Final = 1.0  # the core says that it is short, and none of its type has run in this pool
RUNS: Final = 16  # a run counts a sixteenth in the time that its type usually takes


@dataclass(slots=True, eq=False)
class Job:
    """One execution on its way into a child.

    payload      pipe.job_of(...)
    max_tasks    a child that ran this many of this type is replaced
    own          run it in a child that is started for it alone, in addition to the others
    shares       it is short: a child may be handed several of these at once
    timed        the child reports when it begins this execution
    lead         it is in the lead band: it overtakes those of other bands
    group        of suspects: it runs in the quarantine child of that group (quarantine.py); 0: in a child of the pool
    expected_ms  how long a child is expected to take; set when a child is handed it
    """

    token: int
    task_type: str
    payload: bytes
    max_tasks: int | None = None
    own: bool = False
    shares: bool = False
    timed: bool = False
    lead: bool = False
    group: int = 0
    expected_ms: float = 0.0


class Waiting:
    """The jobs that wait for a child. Iterates over their tokens."""

    def __init__(self) -> None:
        self._lead: OrderedDict[int, Job] = OrderedDict()
        self._others: OrderedDict[int, Job] = OrderedDict()
        self._ms: dict[str, float] = {}  # by task type; as many as the app has
        self.ahead_ms = AHEAD_MS  #: of work for one child

    def __len__(self) -> int:
        return len(self._lead) + len(self._others)

    def __iter__(self) -> Iterator[int]:
        yield from list(self._lead)
        yield from list(self._others)

    def add(self, jobs: Sequence[Job]) -> None:
        """Put these jobs behind those that wait."""
        for job in jobs:
            (self._lead if job.lead else self._others)[job.token] = job

    def put_back(self, job: Job) -> None:
        """Put this job before those that wait: it was handed over before them, and has not begun."""
        jobs = self._lead if job.lead else self._others
        jobs[job.token] = job
        jobs.move_to_end(job.token, last=False)

    def pop(self, token: int) -> Job | None:
        """Remove this job, if it waits."""
        return self._lead.pop(token, None) or self._others.pop(token, None)

    def first(self) -> Job | None:
        """The job whose turn it is."""
        return next(iter((self._lead or self._others).values()), None)

    def take(self, children: int, ms: float = 0.0, size: int = 0) -> list[Job]:
        """Remove and return what one of these children is handed next: the first job and, if it is short, those after it.

        ms, size  what the child has already got to do: milliseconds, bytes
        """
        taken: list[Job] = []
        share = min(JOBS_MAX // 2, -(-len(self) // max(children, 1)))
        while len(taken) < share and (job := self.first()) is not None:
            job.expected_ms = self._ms.get(job.task_type, UNKNOWN_MS) + OVERHEAD_MS
            ms += job.expected_ms
            size += len(job.payload)
            if taken and (not job.shares or ms > self.ahead_ms or size > AHEAD_BYTES):
                break
            taken.append(job)
            (self._lead or self._others).popitem(last=False)
            if not job.shares:
                break
        return taken

    def handed_over(self, in_time: bool) -> None:
        """A child got its next jobs before it had answered all that it had, or too late."""
        self.ahead_ms = min(max(AHEAD_MS, self.ahead_ms * (IN_TIME if in_time else DRY)), AHEAD_MAX_MS)

    def ran(self, task_type: str, ms: float) -> None:
        """A job of this type took `ms`."""
        known = self._ms.get(task_type, ms)
        # The usual time, not the mean: one that lost its processor to another process for 50 ms says nothing about the next.
        self._ms[task_type] = known + (min(ms, 2 * known) - known) / RUNS
