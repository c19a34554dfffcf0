"""What must hold after a chaos run, judged from four sources that do not share code: what the producers were told, the
handlers' own record, the status topic, and what the harness did to whom. Pure.

    lost          an acknowledged request that has neither a terminal event nor a dead letter
    ends          a terminal event that this kind of request must not have
    executions    each its own attempt, its RUNNING written before; none of what never ran, none after the end
    attempts      an attempt that the handler ended has its execution
    order         requests of one ordering key start in order, one at a time
    taken away    worker_lost without three attempts whose worker (or child) was taken away

Permitted, and counted: a process that was frozen, cut off, or had lost its shard may begin an *old* attempt late
(docs/guarantees.md); an attempt whose worker was taken away before the first instruction has no execution.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.acceptance.harness import Execution, Seen
from tests.chaos.load import Expected

LOST_MAX = 3
# They end their own process, or are killed with it before the next attempt begins: they never write an end.
NO_END = frozenset({"async_exits", "process_exits", "process_segfaults", "process_hangs"})
BY_HANDLER = frozenset({"handler_error", "not_serializable"})  # an end that only a handler can bring about


@dataclass(frozen=True)
class Facts:
    """histories, letters (reasons): by origin; deaths: pid → ms; disturbed: pid of a worker → `frozen`, `cut off`, or
    `lost shards` (unasked); deleted: (band name, partition) → first offset that is still there."""

    acked: Mapping[str, Expected]
    histories: Mapping[str, Sequence[Seen]]
    letters: Mapping[str, Sequence[str]]
    executions: Sequence[Execution]
    maybe_cancelled: Collection[str] = ()
    deaths: Mapping[int, int] = field(default_factory=dict)
    disturbed: Mapping[int, str] = field(default_factory=dict)
    deleted: Mapping[tuple[str, int], int] = field(default_factory=dict)


@dataclass
class Counts:
    """What is permitted, and how often it was seen."""

    late_starts: int = 0
    attempts: int = 0
    without_execution: int = 0
    deleted: int = 0
    ends: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Overlap:
    """Two executions of one task at the same time. kind: async, thread or process; why: what the older one's worker had
    suffered ("": nothing that we know of)."""

    origin: str
    kind: str
    ms: int
    why: str


def code_of(end: Seen) -> str:
    """`completed`, `cancelled`, or the code of the failure."""
    return end.code or "failed" if end.status == "failed" else end.status


def end_of(events: Sequence[Seen]) -> Seen | None:
    return next((seen for seen in events if seen.event.ended), None)


def place_of(origin: str) -> tuple[str, int, int]:
    """Band, partition, offset."""
    shard, _, offset = origin.partition("@")
    band, _, partition = shard.rpartition("-")
    return band, int(partition), int(offset)


def check(facts: Facts) -> tuple[list[str], Counts]:
    """Every violation in words, and the count of what is permitted."""
    counts = Counts()
    found = [
        *lost(facts, counts),
        *ends(facts, counts),
        *executions(facts, counts),
        *attempts(facts, counts),
        *order(facts),
        *taken_away(facts),
    ]
    return found, counts


def lost(facts: Facts, counts: Counts) -> Iterator[str]:
    for origin, expected in facts.acked.items():
        if end_of(facts.histories.get(origin, ())) or facts.letters.get(origin):
            continue
        band, partition, offset = place_of(origin)
        if offset < facts.deleted.get((band, partition), 0):
            counts.deleted += 1
            continue
        seen = [(one.status, one.event.attempt) for one in facts.histories.get(origin, ())]
        yield f"lost: {origin} ({expected.task_type or 'garbage'} {expected.task_id}) was acknowledged; it is {seen}"


def ends(facts: Facts, counts: Counts) -> Iterator[str]:
    for origin, events in facts.histories.items():
        end = end_of(events)
        if end is None:
            continue
        code = code_of(end)
        counts.ends[code] += 1
        expected = facts.acked.get(origin)
        if expected is None:
            continue
        if expected.ends is None:
            yield f"ends: {origin} is no request, yet it has a history: {end.event}"
        elif code == "cancelled" and expected.task_id in facts.maybe_cancelled:
            continue
        elif code == "completed" and code in expected.ends:
            if expected.result is not None and end.event.result != expected.result:
                yield f"ends: {origin} returned {expected.result}, its event says {end.event.result!r}"
        elif code not in expected.ends and code != "worker_lost":
            yield f"ends: {origin} ({expected.task_type}) ended as {code}, not {sorted(expected.ends)}: {end.event}"


def executions(facts: Facts, counts: Counts) -> Iterator[str]:
    seen: set[tuple[str, int]] = set()
    for one in facts.executions:
        if one.what != "start":
            continue
        if (one.origin, one.attempt) in seen:
            yield f"executions: two of {one.origin} attempt {one.attempt}: {one}"
        seen.add((one.origin, one.attempt))
        events = facts.histories.get(one.origin, ())
        ahead = next((s for s in events if s.status == "running" and s.event.attempt == one.attempt), None)
        if ahead is None:
            yield f"executions: {one} has no RUNNING: {[(s.status, s.event.attempt) for s in events]}"
        elif ahead.timestamp_ms > one.ms:
            yield f"executions: {one} began before its RUNNING was written ({ahead.timestamp_ms})"
        end = end_of(events)
        if end is None:
            continue
        if one.attempt > (end.event.attempt or 0):
            yield f"executions: {one} though it ended as {end.event}"
        elif one.ms > end.timestamp_ms:
            counts.late_starts += 1
            if not facts.disturbed.keys() & {one.pid, one.parent}:
                yield f"executions: {one} began after the end ({end.timestamp_ms}), in a worker that nobody disturbed"


def attempts(facts: Facts, counts: Counts) -> Iterator[str]:
    began = {(one.origin, one.attempt) for one in facts.executions if one.what == "start"}
    for origin, events in facts.histories.items():
        granted = {seen.event.attempt for seen in events if seen.status == "running" and seen.event.attempt}
        counts.attempts += len(granted)
        counts.without_execution += sum((origin, attempt) not in began for attempt in granted)
        end = end_of(events)
        if end is None:
            continue
        by_handler = end.status == "completed" or code_of(end) in BY_HANDLER
        if by_handler and (origin, end.event.attempt or 0) not in began:
            yield f"attempts: {origin} ended by a handler that never ran: {end.event}"


def order(facts: Facts) -> Iterator[str]:
    """By what stands in the status partition, which is the order of commits, whatever a zombie did."""
    keyed: dict[tuple[str, int, str], list[tuple[int, str]]] = defaultdict(list)
    for origin, expected in facts.acked.items():
        if expected.key is not None:
            band, partition, offset = place_of(origin)
            keyed[band, partition, expected.key[1]].append((offset, origin))
    for queue in keyed.values():
        open_until, before = -1, ""
        for _, origin in sorted(queue):
            events = facts.histories.get(origin, ())
            first = next((seen for seen in events if seen.status == "running"), None)
            if first is not None and first.offset < open_until:
                yield f"order: {origin} started at {first.offset}, {before} before it ended at {open_until}"
            end = end_of(events)
            if first is not None and end is not None:
                open_until, before = end.offset, origin


def taken_away(facts: Facts) -> Iterator[str]:
    finished = {(one.origin, one.attempt) for one in facts.executions if one.what == "end"}
    pids: dict[tuple[str, int], set[int]] = defaultdict(set)
    for one in facts.executions:
        if one.what == "start":
            pids[one.origin, one.attempt] |= {one.pid, one.parent}
    for origin, events in facts.histories.items():
        end = end_of(events)
        if end is None or code_of(end) != "worker_lost":
            continue
        granted = {seen.event.attempt or 0 for seen in events if seen.status == "running"}
        deaths = [
            attempt
            for attempt in granted
            if (origin, attempt) not in finished or pids[origin, attempt] & facts.disturbed.keys()
        ]
        if len(deaths) < LOST_MAX:
            yield f"taken away: {origin} is worker_lost, but of its attempts {sorted(granted)} only {deaths} were lost"


def overlaps(facts: Facts) -> tuple[list[Overlap], int]:
    """Executions of one task at the same time, and how many have no known end (their child died with nobody looking)."""
    found: list[Overlap] = []
    unknown = 0
    ended = {(one.origin, one.attempt): one.ms for one in facts.executions if one.what == "end"}
    by_origin: dict[str, list[Execution]] = defaultdict(list)
    for one in facts.executions:
        if one.what == "start" and one.type not in NO_END:
            by_origin[one.origin].append(one)
    for origin, starts in by_origin.items():
        starts.sort(key=lambda one: one.attempt)
        for older, younger in pairwise(starts):
            end = ended.get((origin, older.attempt))
            if end is None:
                died = [facts.deaths[pid] for pid in (older.pid, older.parent) if pid in facts.deaths]
                if not died:
                    unknown += 1
                    continue
                end = min(died)
            younger_end = ended.get((origin, younger.attempt), end)
            ms = min(end, younger_end) - younger.ms
            if ms > 0:
                why = next((facts.disturbed[pid] for pid in (older.pid, older.parent) if pid in facts.disturbed), "")
                found.append(Overlap(origin, older.type.partition("_")[0], ms, why))
    return found, unknown
