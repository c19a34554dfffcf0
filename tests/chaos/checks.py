"""What must hold after a chaos run, judged from four sources that do not share code: what the producers were told, the
handlers' own record, the status topic, and what the harness did to whom. Pure.

    lost          an acknowledged request that has neither a terminal event nor the dead letter of a duplicate
    ends          a terminal event that this kind of request must not have, or before or after its time
    executions    each its own attempt, its RUNNING written before; none of what never ran, none after the end
    attempts      an attempt that the handler ended has its execution; one without has a reason
    order         requests of one ordering key start in order, one at a time
    taken away    worker_lost without three attempts whose worker (or child) was taken away
    overlap       two executions of one task beside each other for longer than docs/guarantees.md states

What is permitted needs what the harness knows to have happened to that process at that time (`Facts.troubles`): a process
that is frozen, cut off, or has lost its shard unasked may begin an *old* attempt late; an attempt whose worker was taken
away before the first instruction has no execution.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.acceptance.harness import Execution, Seen
from tests.chaos.load import Expected

LOST_MAX = 3
# They end their own process, or are killed with it before the next attempt begins: they never write an end.
NO_END = frozenset({"async_exits", "process_exits", "process_segfaults", "process_hangs"})
# They go on though they are told to stop, or keep others from hearing it (docs/how-to/cancel.md).
DEAF = frozenset({"async_ignores", "thread_hangs", "async_blocks"})
WAITING = frozenset({"async_waits", "thread_waits", "process_waits"})  # for 90 s, or their cancel
TIMEOUT_MS = {"async_ignores": 500, "thread_hangs": 1_000, "async_blocks": 1_000_000}
ACT_MS = 500  # from a timeout until the owner has acted on it, on a busy machine
BY_HANDLER = frozenset({"handler_error", "not_serializable", "timeout"})  # ends that want a handler that ran
NOT_RUN = frozenset({"invalid_parameters", "unknown_task_type", "cancelled", "expired"})  # ends that need none
NOT_BEGUN = ("was not begun in time", "was lost: ")  # of an attempt, in the event that says why there is another one
BROKEN_OFF = "its process died"  # in the same place
WAKE_MS = 10_000  # from the end of a trouble until the process has heard what it missed, on a busy machine
OVERLAP_MS = {"async": 5_000, "thread": 5_000, "process": 5_000}  # after the trouble of the older one's worker
MOVE_MS = 30_000  # from an end of a handler until its worker says that the shard is gone
WRITE_MS = 45_000  # from an end of a handler, or a change of a topic, until it is committed: an outage lies between
CANCEL_MS = 45_000  # until an acknowledged cancel has ended what runs: an outage lies between
DEATH_MS = 1_000  # from a death until the supervisor's line about it
NOT_BEFORE_MAX_MS = 3_600_000


@dataclass(frozen=True)
class Trouble:
    """Something that a worker process suffered: `frozen`, `cut off`, `lost shards` (unasked), `clock` (wrong by clock_ms)."""

    why: str
    since_ms: int
    until_ms: int
    clock_ms: int = 0


@dataclass(frozen=True)
class Facts:
    """histories, letters (reasons): by origin; cancelled: task_ids that somebody wanted cancelled; heard: when
    the broker had such a wish; repeated: those sent more
    than once; deaths: pid → ms, one for each process that had this pid, since a system hands them out again; troubles: by the
    pid of a worker; moves: pid → when it gave shards back, or was told to leave;
    narrow: when the status topic took small records only; deleted: (band name, partition) → first offset that is there;
    control_anew_ms: the last time when tasks.control was made anew, and what it had said was forgotten; letters_gone: (band
    name, partition) → offset below which a dead letter may have been in a tasks.dead that is gone."""

    acked: Mapping[str, Expected]
    histories: Mapping[str, Sequence[Seen]]
    letters: Mapping[str, Sequence[str]]
    executions: Sequence[Execution]
    cancelled: Collection[str] = ()
    heard: Mapping[str, int] = field(default_factory=dict)
    repeated: Collection[str] = ()
    deaths: Mapping[int, Sequence[int]] = field(default_factory=dict)
    troubles: Mapping[int, Sequence[Trouble]] = field(default_factory=dict)
    moves: Mapping[int, Sequence[int]] = field(default_factory=dict)
    narrow: Sequence[tuple[int, int]] = ()
    deleted: Mapping[tuple[str, int], int] = field(default_factory=dict)
    control_anew_ms: int | None = None
    letters_gone: Mapping[tuple[str, int], int] = field(default_factory=dict)

    def troubled(self, pids: Iterable[int], since_ms: int, until_ms: int) -> list[Trouble]:
        """What these processes suffered at that time, and shortly before; a wrong clock troubles nobody else."""
        return [
            trouble
            for pid in pids
            for trouble in self.troubles.get(pid, ())
            if trouble.why != "clock" and trouble.since_ms <= until_ms and since_ms <= trouble.until_ms + WAKE_MS
        ]

    def clock_ms(self, pids: Iterable[int], ms: int) -> int:
        """By how much their wall clock was wrong then: 0 when it was right."""
        every = (trouble for pid in pids for trouble in self.troubles.get(pid, ()) if trouble.why == "clock")
        return next((one.clock_ms for one in every if one.since_ms <= ms <= one.until_ms + WAKE_MS), 0)

    def written_by(self, pids: Collection[int]) -> Iterator[Seen]:
        every = (seen for events in self.histories.values() for seen in events)
        return (seen for seen in every if pid_of(seen.event.worker) in pids)

    def moved(self, pids: Iterable[int], since_ms: int, until_ms: int) -> bool:
        return any(since_ms <= ms <= until_ms + MOVE_MS for pid in pids for ms in self.moves.get(pid, ()))

    def children_of(self, pid: int) -> list[int]:
        """The children in which this worker has run something."""
        return list({one.pid for one in self.executions if one.parent == pid})

    def died(self, pids: Iterable[int], since_ms: int, until_ms: int) -> bool:
        return any(since_ms - DEATH_MS <= ms <= until_ms for pid in pids for ms in self.deaths.get(pid, ()))

    def death_after(self, pid: int, ms: int) -> int | None:
        """When the process that had this pid at that time died."""
        return min((death for death in self.deaths.get(pid, ()) if death >= ms), default=None)


@dataclass
class Counts:
    """What is permitted, and how often it was seen."""

    late_starts: int = 0
    attempts: int = 0
    without_execution: int = 0
    deleted: int = 0
    letters_gone: int = 0
    ends: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Overlap:
    """Two executions of one task at the same time. kind: async, thread or process; why: what the older one's worker had
    suffered ("": nothing that we know of); beyond_ms: how long the older one went on when that was over; deaf: it does not
    hear that it is to stop."""

    origin: str
    kind: str
    ms: int
    why: str
    beyond_ms: int = 0
    deaf: bool = False


def code_of(end: Seen) -> str:
    """`completed`, `cancelled`, or the code of the failure."""
    return end.code or "failed" if end.status == "failed" else end.status


def end_of(events: Sequence[Seen]) -> Seen | None:
    return next((seen for seen in events if seen.event.ended), None)


def pid_of(worker: str | None) -> int:
    """Of `app@host:pid`, which stands in every event."""
    digits = (worker or "").rpartition(":")[2]
    return int(digits) if digits.isdigit() else 0


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


def may_end_in_a_letter(expected: Expected, repeated: Collection[str]) -> bool:
    """With nothing but a dead letter: garbage, and a duplicate."""
    return expected.ends is None or expected.task_id in repeated


def lost(facts: Facts, counts: Counts) -> Iterator[str]:
    for origin, expected in facts.acked.items():
        letters = facts.letters.get(origin, ())
        if end_of(facts.histories.get(origin, ())):
            continue
        if letters and (
            expected.ends is None or (expected.task_id in facts.repeated and set(letters) == {"duplicate"})
        ):
            continue
        band, partition, offset = place_of(origin)
        if offset < facts.deleted.get((band, partition), 0):
            counts.deleted += 1
            continue
        if offset < facts.letters_gone.get((band, partition), 0) and may_end_in_a_letter(expected, facts.repeated):
            counts.letters_gone += 1
            continue
        seen = [(one.status, one.event.attempt) for one in facts.histories.get(origin, ())]
        text = f"lost: {origin} ({expected.task_type or 'garbage'} {expected.task_id}) was acknowledged; it is {seen}"
        yield f"{text}, dead letters {list(letters)}" if letters else text


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
            continue
        if expected.task_id is not None and expected.task_id != end.event.task_id:
            yield f"ends: {origin} is the request of {expected.task_id}, its events are of {end.event.task_id}"
        if code == "cancelled":
            permitted = _may_be_cancelled(facts, expected, end)
        elif code == "worker_lost":
            permitted = True  # taken_away looks at it
        else:
            permitted = code in expected.ends or _excused(facts, expected, origin, end, code)
        if not permitted:
            yield f"ends: {origin} ({expected.task_type}) ended as {code}, not {sorted(expected.ends)}: {end.event}"
        elif code == "completed" and expected.result not in (None, _returned(end)):
            yield f"ends: {origin} returned {expected.result}, its event says {end.event.result!r:.200}"


def _returned(end: Seen) -> object:
    """The result, of text its length."""
    return len(end.event.result) if isinstance(end.event.result, str) else end.event.result


def _may_be_cancelled(facts: Facts, expected: Expected, end: Seen) -> bool:
    """Somebody wished it, or its time was over, as the clock of that worker said."""
    if end.code != "expired":
        return expected.task_id in facts.cancelled
    wrong = facts.clock_ms([pid_of(end.event.worker)], end.timestamp_ms) > 0
    return expected.expires_ms is not None and (end.timestamp_ms >= expected.expires_ms or wrong)


def _excused(facts: Facts, expected: Expected, origin: str, end: Seen, code: str) -> bool:
    """An end that is none of its kind, and follows from what was done."""
    if code == "completed" and expected.task_type in DEAF:
        # docs/how-to/cancel.md: what one returns after a timeout or cancel is dropped; not, what it returns after a move.
        runs = [one for one in facts.executions if (one.origin, one.attempt) == (origin, end.event.attempt)]
        times = [one.ms for one in runs]
        if not runs:
            return False
        pids, begin_ms, end_ms = {one.pid for one in runs}, min(times), max(times)
        if facts.moved(pids, begin_ms, end_ms):
            return True
        # docs/guarantees.md: the owner acts on it between two calls to Kafka. It was in one when it wrote nothing meanwhile.
        late = range(begin_ms + TIMEOUT_MS[expected.task_type] + ACT_MS, end_ms)
        return not any(seen.timestamp_ms in late for seen in facts.written_by(pids))
    if code == "invalid_parameters" and expected.not_before_ms is not None:
        # By the clock of that worker it cannot wait: more than an hour.
        clock_ms = facts.clock_ms([pid_of(end.event.worker)], end.timestamp_ms)
        return expected.not_before_ms - (end.timestamp_ms + clock_ms) > NOT_BEFORE_MAX_MS - WRITE_MS
    if code == "completed" and expected.task_type in WAITING:
        # Nobody asked for it; or only now, as after an outage; or it was forgotten.
        heard_ms = facts.heard.get(end.event.task_id)
        forgotten = facts.control_anew_ms is not None and heard_ms is not None and heard_ms <= facts.control_anew_ms
        return heard_ms is None or forgotten or heard_ms > end.timestamp_ms - CANCEL_MS
    if code == "result_too_large" and expected.large:
        return any(since <= end.timestamp_ms <= until + WRITE_MS for since, until in facts.narrow)
    return False


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
        expected, pids = facts.acked.get(one.origin), {one.pid, one.parent}
        if expected is not None and expected.not_before_ms is not None and one.ms < expected.not_before_ms:
            if facts.clock_ms(pids, one.ms) <= 0:
                yield f"executions: {one} began before its not_before ({expected.not_before_ms})"
        end = end_of(events)
        if end is None:
            continue
        if one.attempt > (end.event.attempt or 0):
            yield f"executions: {one} though it ended as {end.event}"
        elif one.ms > end.timestamp_ms:
            counts.late_starts += 1
            if not facts.troubled(pids, one.ms, one.ms):
                yield f"executions: {one} began after the end ({end.timestamp_ms}), in a worker that nobody disturbed"


def attempts(facts: Facts, counts: Counts) -> Iterator[str]:
    began = {(one.origin, one.attempt): one.ms for one in facts.executions if one.what == "start"}
    for origin, events in facts.histories.items():
        first: dict[int, Seen] = {}
        for seen in events:
            if seen.status == "running" and seen.event.attempt:
                first.setdefault(seen.event.attempt, seen)
        counts.attempts += len(first)
        for attempt, running in first.items():
            if (origin, attempt) in began:
                continue
            counts.without_execution += 1
            if not _taken_before_its_start(facts, running, events):
                told = [(seen.status, seen.event.attempt, seen.event.message) for seen in events]
                yield f"attempts: {origin} attempt {attempt} never ran, and nothing happened to its worker: {told}"
        end = end_of(events)
        if end is None or not (end.status == "completed" or code_of(end) in BY_HANDLER):
            continue
        start_ms = began.get((origin, end.event.attempt or 0))
        if start_ms is None or start_ms > end.timestamp_ms:
            yield f"attempts: {origin} ended by a handler that never ran (start: {start_ms}): {end.event}"


def _taken_before_its_start(facts: Facts, running: Seen, events: Sequence[Seen]) -> bool:
    """Why this attempt has no execution: its end needs none, or something happened to the process that was to run it."""
    later = [seen for seen in events if seen.offset > running.offset]
    same = [seen for seen in later if seen.event.attempt == running.event.attempt]
    if any(seen.event.ended and (seen.code in NOT_RUN or seen.status == "cancelled") for seen in same):
        return True
    if any(text in (seen.event.message or "") for text in NOT_BEGUN for seen in same):
        return True
    if any(seen.code == "worker_lost" for seen in same):
        return True
    following = next((seen for seen in later if seen.event.attempt != running.event.attempt), None)
    if following is None and not same:
        return True  # still open: told elsewhere, unless its record was deleted
    until_ms = (following or later[-1]).timestamp_ms
    pids, since_ms = [pid_of(running.event.worker)], running.timestamp_ms
    if any(BROKEN_OFF in (seen.event.message or "") for seen in same):
        pids += facts.children_of(pids[0])  # of a group of suspects, some had not begun when their child died
    return (
        facts.died(pids, since_ms, until_ms)
        or bool(facts.troubled(pids, since_ms, until_ms))
        or facts.moved(pids, since_ms, until_ms)
    )


def order(facts: Facts) -> Iterator[str]:
    """By what stands in the status partition, which is the order of commits, whatever a zombie did."""
    keyed: dict[tuple[str, int, str], list[tuple[int, str]]] = defaultdict(list)
    for origin, expected in facts.acked.items():
        # A duplicate that was refused stands behind nobody; where its letter was forgotten (decision 0007) it runs later.
        if expected.key is not None and "duplicate" not in facts.letters.get(origin, ()):
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
    started: dict[tuple[str, int], Execution] = {}
    ended: dict[tuple[str, int], int] = {}
    for one in facts.executions:
        if one.what == "start":
            started[one.origin, one.attempt] = one
        else:
            ended[one.origin, one.attempt] = one.ms
    for origin, events in facts.histories.items():
        end = end_of(events)
        if end is None or code_of(end) != "worker_lost":
            continue
        granted = {seen.event.attempt or 0 for seen in events if seen.status == "running"}
        deaths = []
        for attempt in granted:
            begun, ended_ms = started.get((origin, attempt)), ended.get((origin, attempt))
            # Never begun, or begun and never ended; or its end was lost with its process before it was committed.
            if begun is None or ended_ms is None or _end_lost(facts, begun, ended_ms):
                deaths.append(attempt)
        if len(deaths) < LOST_MAX:
            yield f"taken away: {origin} is worker_lost, but of its attempts {sorted(granted)} only {deaths} were lost"


def _end_lost(facts: Facts, begun: Execution, ended_ms: int) -> bool:
    pids = {begun.pid, begun.parent}
    return facts.died(pids, ended_ms, ended_ms + WRITE_MS) or bool(facts.troubled(pids, begun.ms, ended_ms + WRITE_MS))


def overlaps(facts: Facts) -> tuple[list[Overlap], int]:
    """Executions of one task at the same time, and how many have no known end (their child died with nobody looking)."""
    found: list[Overlap] = []
    unknown = 0
    ended = {(one.origin, one.attempt): one.ms for one in facts.executions if one.what == "end"}
    by_origin: dict[str, list[Execution]] = defaultdict(list)
    written_ms: dict[int, int] = {}
    for one in facts.executions:
        written_ms[one.pid] = max(one.ms, written_ms.get(one.pid, 0))
        if one.what == "start" and one.type not in NO_END:
            by_origin[one.origin].append(one)
    for origin, starts in by_origin.items():
        starts.sort(key=lambda one: one.attempt)
        for older, younger in pairwise(starts):
            end = ended.get((origin, older.attempt))
            if end is None:
                own, parents = (facts.death_after(pid, older.ms) for pid in (older.pid, older.parent))
                died = [ms for ms in (own, parents) if ms is not None]
                if not died:
                    unknown += 1
                    continue
                end = min(died)
                if own is None and not older.type.startswith("process"):
                    # In a child for suspects that died while its worker gave the shard away: no log names its end. It lived
                    # for as long as it wrote.
                    end = min(end, written_ms[older.pid])
            younger_end = ended.get((origin, younger.attempt), end)
            ms = min(end, younger_end) - younger.ms
            if ms > 0:
                troubles = facts.troubled((older.pid, older.parent), older.ms, end)
                over = max((one.until_ms for one in troubles), default=0)
                beyond = max(end - max(over, younger.ms), 0)
                why = troubles[0].why if troubles else ""
                kind, deaf = older.type.partition("_")[0], older.type in DEAF
                found.append(Overlap(origin, kind, ms, why, beyond, deaf))
    return found, unknown


def too_long(found: Iterable[Overlap]) -> Iterator[str]:
    """Those that went on for longer than guarantees.md states: where nothing had happened to the worker, not at all."""
    for one in found:
        bound_ms = OVERLAP_MS[one.kind] if one.why else DEATH_MS
        if not one.deaf and one.beyond_ms > bound_ms:
            yield f"overlap: {one.origin} for {one.beyond_ms} ms after {one.why!r}, more than {bound_ms} ms: {one}"
