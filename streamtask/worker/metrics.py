"""What a worker knows about itself: counters of what was committed, a snapshot once a second, and two verdicts on it.

The owner thread feeds it (`performed`, `look`). All other threads read only the last `Snapshot`, which never changes, and
never the engine. Only what the broker has committed counts: an aborted transaction counts nothing, so the numbers of a worker
agree with its status events. This takes one pass over the events of a transaction: 0.15 us per event.

Health is a statement about progress: a worker is unhealthy when work waits and nothing starts, ends or reports for
`stalled_s`, when one of its shards stays unclaimed, or when its owner thread gives no sign of life. Conditions that a restart
would not improve are reported but do not make it unhealthy: no broker answers, a shard is refused, or a partition accepts no
records. Ready is a statement about membership: in the group, every owned shard open, not draining.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamtask.core.engine import Engine
from streamtask.core.shard import Shard, Standing
from streamtask.domain.model import ErrorCode, HandlerKind, TaskStatus
from streamtask.domain.ports import LETTERS, STATUS, Answer, Ask, Cell, CommitPlan, EndTransaction, Produce
from streamtask.execution.stack_location import Stragglers
from streamtask.observability import event_log

MIB = 1 << 20
EVERY_S = 1.0  # between two snapshots
CUT_OFF = "cut_off"  # no broker answers: tasks run on, and their ends are reported when one does
DEGRADED = "degraded"  # a partition accepts no records: what needs it waits, everything else continues
REFUSING = "refusing"  # this release cannot read a shard's ledger, or partitions are missing: other shards continue
BEAT_MAX_S = 15.0  # without a sign of life of the owner: a broker call takes 10 at most; the watchdog acts after 20
CLAIM_MAX_S = 30.0  # a shard assigned this long ago and still unclaimed: something is blocking it
DURATIONS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0)
COMMITS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
OTHER = "(other)"  # unknown task types and foreign error codes: names from outside are not bounded
REBALANCES = {"assigned": "shards_assigned", "revoked": "shards_revoked", "lost": "shards_lost"}
CREATED, COMPLETED, FAILED = TaskStatus.CREATED, TaskStatus.COMPLETED, TaskStatus.FAILED
NONE = Stragglers()
_DURATIONS_MS = tuple(round(bound * 1_000) for bound in DURATIONS_S)
_CODES = frozenset(str(code) for code in ErrorCode)


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram: counts[i] is the number of values in (bounds[i-1], bounds[i]]; the last count is above all bounds."""

    counts: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class TypeTally:
    """One task type, since the start of the worker. retries: attempts after the first."""

    attempts: int
    retries: int
    ended: Mapping[str, int]  # by outcome: completed, failed, cancelled
    durations: Durations


@dataclass(frozen=True, slots=True)
class BandState:
    """What waits here of one band: `tasks` read and not started, `oldest_s` the age of the longest waiting one."""

    tasks: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class SetAsideState:
    """A partition that accepts no records (topic: `status` or `dead`; number -1: all of tasks.dead), or has no leader (topic:
    `requests.BAND`).
    """

    topic: str
    number: int
    why: str
    seconds: float

    def __str__(self) -> str:
        where = f"partition {self.number} of tasks.{self.topic}" if self.number >= 0 else f"tasks.{self.topic}"
        if self.topic not in (STATUS, LETTERS):
            return f"{where} has had no leader for {self.seconds:.0f} s; shard {self.number} waits"
        waits = f"shard {self.number} waits" if self.topic == STATUS else "tasks that failed wait"
        if self.topic != STATUS and self.number >= 0:
            waits = "dead letters go to the others"
        return f"{where} has taken no records for {self.seconds:.0f} s: {self.why}; {waits}"


@dataclass(frozen=True, slots=True)
class CellState:
    """received: next offset expected from the log; open: requests below it that have not ended."""

    received: int
    open: int


@dataclass(frozen=True, slots=True)
class MemoryState:
    """Bytes (core/memory.py): `waiting` by requests until their end, `active` by parameters and results of running tasks,
    `budget` for both; `paused` cells for lack of memory, and how often one was.
    """

    waiting: int = 0
    active: int = 0
    budget: int = 0
    paused: int = 0
    pauses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A worker at one moment. at_s: time.monotonic(); stalled_s: how long work has waited without any progress."""

    at_s: float
    member: bool = False
    draining: bool = False
    running: int = 0
    stalled_s: float = 0.0
    shards: Mapping[str, int] = field(default_factory=dict)  # by standing; without refused ones
    refused: Mapping[int, str] = field(default_factory=dict)
    aside: tuple[SetAsideState, ...] = ()
    batch_bytes: int = 0  # what the next transaction may carry
    unclaimed_s: float = 0.0  # of the shard that has been unclaimed longest
    bands: tuple[BandState, ...] = ()
    cells: Mapping[Cell, CellState] = field(default_factory=dict)
    slots: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # by kind: used, total
    types: Mapping[str, TypeTally] = field(default_factory=dict)
    dead: Mapping[str, int] = field(default_factory=dict)
    created: int = 0
    commits: int = 0
    events: int = 0
    commit_times: Durations = Durations((), 0.0)
    deaths: int = 0
    stragglers: Stragglers = NONE
    late_results: int = 0
    memory: MemoryState = MemoryState()
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Tasks read and not started, in all bands."""
        return sum(band.tasks for band in self.bands)


class _Type:
    __slots__ = ("attempts", "cancelled", "completed", "duration_ms", "durations", "failed", "retries")

    def __init__(self) -> None:
        self.attempts = self.retries = self.completed = self.failed = self.cancelled = 0
        self.durations = [0] * (len(_DURATIONS_MS) + 1)
        self.duration_ms = 0

    def frozen(self) -> TypeTally:
        ended = {"completed": self.completed, "failed": self.failed, "cancelled": self.cancelled}
        return TypeTally(self.attempts, self.retries, ended, Durations(tuple(self.durations), self.duration_ms / 1_000))


class Tally:
    """Counts what was committed. Used by one thread; plain integers."""

    def __init__(self, task_types: Iterable[str]) -> None:
        self.types = {name: _Type() for name in task_types}
        self.other = _Type()
        self.dead: Counter[str] = Counter()
        self.created = self.moves = self.commits = self.events = 0
        self.commit_s = 0.0
        self.commit_times = [0] * (len(COMMITS_S) + 1)

    def committed(self, plan: CommitPlan, seconds: float) -> None:
        """The transaction of this plan has committed, `seconds` after its first record was produced."""
        self.commits += 1
        self.events += len(plan.events)
        self.commit_s += seconds
        self.commit_times[bisect_left(COMMITS_S, seconds)] += 1
        find, other, created = self.types.get, self.other, 0
        for event in plan.events:
            status = event.status
            if status is CREATED:
                created += 1
                continue
            of = find(event.task_type or "", other)
            started_ms, finished_ms = event.started_ms, event.finished_ms
            if finished_ms is not None:
                if status is COMPLETED:
                    of.completed += 1
                elif status is FAILED:
                    of.failed += 1
                else:
                    of.cancelled += 1
                if started_ms is not None:
                    ms = finished_ms - started_ms
                    of.durations[bisect_left(_DURATIONS_MS, ms)] += 1
                    of.duration_ms += ms
            elif started_ms == event.updated_ms and event.progress is None and event.message is None:
                of.attempts += 1  # the rest is progress, a wait for a retry, or the RUNNING of a task that never ran
                if event.attempt != 1:
                    of.retries += 1
        self.created += created
        self.moves += len(plan.events) - created
        for letter in plan.dead:
            reason = str(letter.reason)
            self.dead[reason if reason in _CODES else OTHER] += 1


class Observer:
    """See the module docstring. `performed` and `look` belong to the owner thread; any thread may call the rest.

    task_types  the names that counters may have
    stalled_s   work that waits this long without any progress makes the worker unhealthy
    """

    def __init__(self, task_types: Iterable[str], bands: Iterable[str], *, stalled_s: float) -> None:
        self.tally = Tally(task_types)
        self.bands = tuple(bands)
        self.stalled_s = stalled_s
        self.due_s = 0.0  # when the next look is due
        self.snapshot = Snapshot(at_s=time.monotonic())
        self._plan: CommitPlan | None = None
        self._began_s = 0.0
        self._moved_s: float | None = None  # the last progress, or the last moment without waiting work
        self._moves = 0
        self._unclaimed: dict[int, tuple[int, float]] = {}  # shard: (epoch, seen unclaimed at)

    # --- The owner's side ---------------------------------------------------------------------------------------------

    def performed(self, ask: Ask, answer: Answer) -> None:
        """Record an ask and its answer: a transaction counts when its end was answered without a fault."""
        if isinstance(ask, Produce):
            self._plan, self._began_s = ask.plan, time.monotonic()
        elif isinstance(ask, EndTransaction):
            plan, self._plan = self._plan, None
            if answer is None and plan is not None:
                self.tally.committed(plan, time.monotonic() - self._began_s)

    def look(
        self,
        engine: Engine,
        now_s: float,
        *,
        wall_ms: int,
        running: int,
        member: bool,
        stragglers: Stragglers = NONE,
    ) -> None:
        """Publish a new snapshot. It walks over shards and types, never over claims."""
        self.due_s = now_s + EVERY_S
        bands = tuple(self._band(engine, band, now_s, wall_ms) for band in range(len(self.bands)))
        standings = Counter(s.standing.name.lower() for s in engine.shards.values() if s.refused is None)
        tally, slots = self.tally, engine.config.slots
        types = {**tally.types, OTHER: tally.other} if tally.other.attempts or _any(tally.other) else tally.types
        self.snapshot = Snapshot(
            at_s=now_s,
            member=member,
            draining=engine.draining,
            running=running,
            stalled_s=self._stalled(_waits(engine, bands), now_s),
            shards={standing.name.lower(): standings[standing.name.lower()] for standing in Standing},
            refused={number: s.refused for number, s in engine.shards.items() if s.refused is not None},
            aside=(*_aside(engine, now_s), *_leaderless(engine, now_s)),
            batch_bytes=engine.size.limit,
            unclaimed_s=self._unclaimed_for(engine.shards, now_s),
            bands=bands,
            cells={
                (band, number): CellState(ledger.received, ledger.open_count)
                for number, shard in engine.shards.items()
                for band, ledger in enumerate(shard.ledgers)
            },
            slots={
                kind.value: (slots.get(kind, 0) - engine.schedule.free(kind), slots.get(kind, 0))
                for kind in HandlerKind
            },
            types={name: one.frozen() for name, one in types.items()},
            dead=dict(tally.dead),
            created=tally.created,
            commits=tally.commits,
            events=tally.events,
            commit_times=Durations(tuple(tally.commit_times), tally.commit_s),
            deaths=engine.deaths,
            stragglers=stragglers,
            late_results=engine.late_results,
            memory=_memory(engine),
            notes=event_log.counted(),
        )

    @staticmethod
    def _band(engine: Engine, band: int, now_s: float, wall_ms: int) -> BandState:
        held = [shard.backlogs[band].records for shard in engine.shards.values()]
        tasks = engine.schedule.queued(band) + sum(map(len, held))
        first = engine.schedule.oldest(band)
        oldest_ms = 0
        if first is not None:
            oldest_ms = int(now_s * 1_000) - first.queued_ms
            if not first.attempt and first.record.not_before_ms is None:
                # Count from when it was written: a task that is taken over has already waited elsewhere.
                oldest_ms = max(oldest_ms, wall_ms - first.record.timestamp_ms)
        for records in held:
            if records:
                oldest_ms = max(oldest_ms, wall_ms - records[0].timestamp_ms)
        return BandState(tasks, max(0, oldest_ms) / 1_000)

    def _stalled(self, waits: bool, now_s: float) -> float:
        moves = self.tally.moves
        if not waits or moves != self._moves or self._moved_s is None:
            self._moves, self._moved_s = moves, now_s
        return now_s - self._moved_s

    def _unclaimed_for(self, shards: Mapping[int, Shard], now_s: float) -> float:
        before = self._unclaimed
        self._unclaimed = now = {
            number: before[number] if before.get(number, (0,))[0] == shard.epoch else (shard.epoch, now_s)
            for number, shard in shards.items()
            if shard.standing is Standing.UNCLAIMED and not shard.leaderless
        }
        return max((now_s - since for _, since in now.values()), default=0.0)

    # --- The side of any thread ---------------------------------------------------------------------------------------

    def health(self, beat_age_s: float, silent_s: float = 0.0) -> tuple[bool, dict[str, Any]]:
        """(healthy, facts); `problems` describes what is wrong, in whole sentences.

        silent_s  how long no broker has answered: reported, but not unhealthy, because a restart would not help
        """
        seen = self.snapshot
        refused = [f"shard {number} is refused: {why}" for number, why in seen.refused.items()]
        aside = [str(state) for state in seen.aside]
        problems = []
        if beat_age_s > BEAT_MAX_S:
            problems.append(f"the owner thread gave no sign of life for {beat_age_s:.0f} s")
        if seen.stalled_s > self.stalled_s:
            text = f"nothing started, ended or reported for {seen.stalled_s:.0f} s while {seen.waiting} tasks wait"
            problems.append(f"{text} and {seen.running} run")
        if seen.unclaimed_s > CLAIM_MAX_S:
            problems.append(f"a shard could not be claimed for {seen.unclaimed_s:.0f} s")
        late = seen.stragglers
        if late.blocked_s > self.stalled_s:
            problems.append(
                f"the handlers' event loop has been blocked for {late.blocked_s:.0f} s at {late.blocked_at}"
            )
        known = CUT_OFF if silent_s else REFUSING if refused else DEGRADED if aside else ""
        well = known or ("draining" if seen.draining else "healthy")
        facts = {
            "state": "unhealthy" if problems else well,
            "problems": [*refused, *aside, *problems],
            "kafka": _silence(silent_s) or "answers",
            "running": seen.running,
            "overdue": late.overdue,
            "abandoned": late.abandoned,
            "waiting": seen.waiting,
            "memory": {
                "held_mb": round((seen.memory.waiting + seen.memory.active) / MIB, 1),
                "budget_mb": round(seen.memory.budget / MIB, 1),
                "cells_paused": seen.memory.paused,
            },
            "stalled_s": round(seen.stalled_s, 1),
            "beat_age_s": round(beat_age_s, 3),
            "shards": {name: count for name, count in seen.shards.items() if count} | _refused(seen),
        }
        return not problems, facts

    def ready(self, silent_s: float = 0.0) -> tuple[bool, dict[str, Any]]:
        """(ready, facts). A member without a shard is ready: it is on standby. silent_s: as for health()."""
        seen = self.snapshot
        opening = sum(count for name, count in seen.shards.items() if name != "open") + len(seen.refused)
        why = ""
        if seen.draining:
            why = "it drains"
        elif not seen.member:
            why = "it has not joined the group"
        elif opening:
            why = f"{opening} of its shards are not open"
        elif silent_s:
            why = _silence(silent_s)
        facts = {"ready": not why, "why": why or None, "shards": {n: c for n, c in seen.shards.items() if c}}
        return not why, facts | ({"refused": dict(seen.refused)} if seen.refused else {})


def _waits(engine: Engine, bands: Iterable[BandState]) -> bool:
    """Whether work waits or is owed that is not blocked by a partition without a leader or one that accepts no records."""
    aside = engine.aside
    leaderless = {number for number, shard in engine.shards.items() if shard.leaderless}
    if not aside and not leaderless:
        return bool(engine.urgent) or any(band.tasks for band in bands)
    if any(not aside.holds(claim) and claim.shard not in leaderless for claim in engine.urgent):
        return True
    held = [number for number in engine.shards if aside.has_shard(number) or number in leaderless]
    shards = [shard for number, shard in engine.shards.items() if number not in held]
    waiting = engine.schedule.waiting > 0 and any(any(shard.waiting) for shard in shards)
    return waiting or any(backlog.records for shard in shards for backlog in shard.backlogs)


def log_backlog(seen: Snapshot, ends: Mapping[Cell, int], band: int) -> int:
    """Requests of a band's owned cells that have not ended: what Kafka's lag should be. An offset taken by an unread
    transaction marker counts as one.
    """
    cells = ((cell, state) for cell, state in seen.cells.items() if cell[0] == band)
    return sum(state.open + max(0, ends.get(cell, 0) - state.received) for cell, state in cells)


def _memory(engine: Engine) -> MemoryState:
    memory = engine.memory
    return MemoryState(memory.waiting.total, memory.active.total, memory.budget, len(memory.heavy), memory.pauses)


def _any(of: _Type) -> int:
    return of.completed + of.failed + of.cancelled


def _silence(silent_s: float) -> str:
    return f"no broker has answered for {silent_s:.0f} s" if silent_s else ""


def _refused(seen: Snapshot) -> dict[str, int]:
    return {"refused": len(seen.refused)} if seen.refused else {}


def _aside(engine: Engine, now_s: float) -> Iterator[SetAsideState]:
    for (topic, number), sick in engine.aside.places.items():
        yield SetAsideState(topic, number, sick.why, max(0.0, now_s - sick.since_ms / 1_000))


def _leaderless(engine: Engine, now_s: float) -> Iterator[SetAsideState]:
    for number, shard in engine.shards.items():
        for band in shard.leaderless:
            topic = f"requests.{engine.config.bands[band].name}"
            yield SetAsideState(topic, number, "no leader", max(0.0, now_s - shard.leaderless_since_ms / 1_000))
