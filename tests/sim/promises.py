"""What is promised (docs/guarantees.md), checked at every step of a run, from outside.

The core is judged by what takes effect at the broker and by which handlers start, never by its own memory. Ghosts, as in
the formal model: `granted`, `ended`, `running`, `must`, `may` follow what is *decided* at the transaction coordinator,
`seen…` what a read_committed reader sees.

A request whose expires_at has passed at its owner is sent no RUNNING for its first attempt, and is not handed to its handler:
by that owner's wall clock, to the millisecond. One that was never begun may end so after its RUNNING.

A death *may* be charged when a new owner claims while the newest attempt was under way, and *must* be when a process
died under it: once. When the next attempt, or `worker_lost`, commits, `lost` has grown by what must and may allow. From 2 to 3
that is the death of a child in which it was alone, or of a worker in which it stood its trial alone; the death of a child
with several in it is charged to none of them. What has outlived its trial is acquitted: its deaths are forgiven, and it
starts again at 0. A thread that goes on after it was told to stop is the one whose death may stay uncounted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from streamtask.core.ledger import SUSPECT_LOST
from streamtask.core.offset_map import LOST_MAX, Head, LedgerUnreadable, Mark, OffsetMap, UnknownVersion, decode
from streamtask.core.suspects import ALONE, stage_of
from streamtask.domain.identity import Origin
from streamtask.domain.model import ENDED, DeadLetter, RequestRecord, StatusEvent, TaskStatus
from streamtask.domain.ports import Cell, OffsetCommit

from .history import History

if TYPE_CHECKING:
    from .broker import Broker, Entry

TEXT_MAX = 4_000
FOREVER = 1 << 60  # a log end that bounds nothing
TRIAL_MS = 200  # of handlers.config
CREATED, RUNNING, FAILED, CANCELLED = (
    TaskStatus.CREATED,
    TaskStatus.RUNNING,
    TaskStatus.FAILED,
    TaskStatus.CANCELLED,
)


class PromiseBroken(AssertionError):
    """A promise does not hold; the text says which, for whom, and when."""


class Promises:
    """Follows one run. Every method raises PromiseBroken when something promised does not hold."""

    def __init__(self, bands: Sequence[str], clock: Callable[[], int]) -> None:
        self.bands = list(bands)
        self.clock = clock
        self.broker: Broker
        self.histories: dict[tuple[str, str], History] = {}
        self.cells: dict[Cell, dict[int, History]] = defaultdict(dict)
        self.keys: dict[tuple[int, int, str], list[History]] = defaultdict(list)
        self.passed: dict[Cell, int] = {}
        self.open_count = 0
        self.executions = 0
        self.events = 0
        self.deaths = 0
        self.parted = 0
        self.acquitted = 0
        self.owners: dict[int, str] = {}  # by shard: the id in the newest committed head

    # -- what exists ---------------------------------------------------------------------------------------------------

    def appended(self, record: RequestRecord, lost_max: int) -> None:
        """A client's record is acknowledged."""
        origin = str(Origin(self.bands[record.band], record.partition, record.offset))
        history = History(record, origin, lost_max)
        self.histories[origin, record.task_id] = history
        self.cells[record.band, record.partition][record.offset] = history
        if record.request is not None and record.request.ordering_key is not None:
            self.keys[record.band, record.partition, record.request.ordering_key].append(history)
        self.open_count += 1

    def removed(self, cell: Cell, offsets: Iterable[int]) -> None:
        """The log lost these records: those not finished are excused."""
        for offset in offsets:
            history = self.cells[cell].pop(offset, None)
            if history is not None and not history.finished and not history.excused:
                history.excused = True
                self.open_count -= 1

    def truncated(self, cell: Cell, end: int) -> None:
        """The log is shorter than the ledger thought: its text cannot be believed, tasks.status is read in its place."""
        self.passed[cell] = min(self.passed.get(cell, 0), end)
        self._recalled(cell[1], (cell,))

    def forgotten(self, shard: int) -> None:
        """The group's offsets of this shard are gone."""
        cells = [(band, shard) for band in range(len(self.bands))]
        self.owners.pop(shard, None)
        for cell in cells:
            self.passed[cell] = 0
        self._recalled(shard, cells)
        self._unsaid(shard)

    def _unsaid(self, shard: int) -> None:
        """Ends of which compaction has left no word, and no later record of the same id in the same band tells of them: that
        of another band does not say which of the two came first (docs/guarantees.md, not promised)."""
        entries = [entry.event for entry in self.broker.status[shard].entries if entry.fate and not entry.compacted]
        said = {event.origin for event in entries}
        for history in self._of_shard(shard):
            if history.ended is not None and history.origin not in said:
                records, mine = self.cells[history.record.band, shard].items(), history.record
                later = [other for at, other in records if at > mine.offset and other.record.task_id == mine.task_id]
                history.unsaid = not any(other.origin in said for other in later)

    def _recalled(self, shard: int, cells: Iterable[Cell]) -> None:
        """What only the offsets told may be gone: deaths of the shard, and which records of these cells had become a mere
        dead letter (docs/decisions/0007: such a recovery writes those again, or runs one as a history of its own)."""
        for history in self._of_shard(shard):
            history.blurred = True
        for cell in cells:
            for history in self.cells[cell].values():
                history.again = history.letters > 0 and not history.created

    def _of_shard(self, shard: int) -> Iterable[History]:
        for band in range(len(self.bands)):
            yield from self.cells[band, shard].values()

    def unfinished(self) -> list[History]:
        return [history for history in self.histories.values() if history.open]

    def _find(self, origin: str, task_id: str, what: str) -> History:
        found = self.histories.get((origin, task_id))
        if found is None:
            raise self._broken(f"{what} of {origin} / {task_id}: no such request record")
        return found

    def _broken(self, why: str, history: History | None = None) -> PromiseBroken:
        about = "" if history is None else f"\n  {history}"
        return PromiseBroken(f"at {self.clock()} ms: {why}{about}")

    # -- decided at the coordinator ------------------------------------------------------------------------------------

    def decided(self, entries: Sequence[Entry], dead: Sequence[DeadLetter], commits: Sequence[OffsetCommit]) -> None:
        """A transaction was committed: from here on all of it will be seen."""
        texts = {(c.band, c.shard): self._read(c) for c in commits}
        touched = self._touched(entries, dead)
        open_before = sum(history.open for history in touched)
        for entry in entries:
            self._event(entry.event, texts)
        self._letters(dead, entries)
        self.open_count += sum(history.open for history in touched) - open_before
        for commit in commits:
            self._passes_nothing_open(commit, texts)
        self._marks(texts)

    def _touched(self, entries: Sequence[Entry], dead: Sequence[DeadLetter]) -> list[History]:
        keys = {(e.event.origin, e.event.task_id) for e in entries} | {(d.origin, d.record.task_id) for d in dead}
        return [history for key in keys if (history := self.histories.get(key)) is not None]

    def _event(self, event: StatusEvent, texts: dict[Cell, tuple[OffsetMap, Head | None]]) -> None:
        self.events += 1
        history = self._find(event.origin, event.task_id, f"event {event.status}")
        if event.partition != history.record.partition:
            raise self._broken(f"event in partition {event.partition}", history)
        if history.unsaid and event.status is CREATED:
            history.begin_anew()
        if history.ended is not None:
            raise self._broken(f"{event.status} is committed after the terminal event", history)
        attempt = event.attempt or 0
        if event.status is CREATED:
            if history.created:
                raise self._broken("a second CREATED is committed", history)
            if history.letters:
                self._runs_after_all(history)
            history.created = True
        elif event.status is RUNNING:
            if attempt == history.attempt + 1:
                self._next_attempt(history, attempt, texts)
            elif attempt != history.attempt:
                raise self._broken(f"RUNNING {attempt} is committed after attempt {history.attempt}", history)
            elif (event.message or "").startswith(f"attempt {attempt} failed"):
                history.running = False  # it waits for its retry: no death is its own now
            elif (event.message or "").startswith(f"attempt {attempt} was lost"):
                if not history.may:
                    raise self._broken("a child's death was told that did not happen", history)
                history.must = True  # its own, by the death of its child; the mark is cleared with it
                history.running = False
            elif (event.message or "").startswith(f"attempt {attempt} was broken off"):
                if not history.parted:
                    raise self._broken("a group's death was told that did not happen", history)
                history.lost = max(history.lost, SUSPECT_LOST)  # nobody's, but it stays in quarantine
                history.parted = history.running = False
        else:
            self._terminal(history, event, attempt)

    def _runs_after_all(self, history: History) -> None:
        """A duplicate, before its first task had ended and the offsets were lost: now it has a history of its own."""
        if not history.again:
            raise self._broken("CREATED is committed of a request that became a dead letter", history)
        history.letters = 0
        history.again = False
        history.anew = True

    def _next_attempt(self, history: History, attempt: int, texts: dict[Cell, tuple[OffsetMap, Head | None]]) -> None:
        cell = (history.record.band, history.record.partition)
        found = texts.get(cell)
        entry = found[0].entries.get(history.record.offset) if found is not None else None
        if entry is not None:
            history.charges = entry.lost
        self._deaths(history)
        history.attempt = attempt
        history.handed = history.parted = history.forgiven = False
        history.granted.add(attempt)
        history.running = True

    def _terminal(self, history: History, event: StatusEvent, attempt: int) -> None:
        if event.error_code == "expired" and history.started:
            raise self._broken("expired, although a handler of it has started", history)
        if event.status is CANCELLED:
            if attempt == 0 and history.started:
                raise self._broken("CREATED -> CANCELLED of a request that has run", history)
        elif attempt != history.attempt or not attempt:
            raise self._broken(f"{event.status} of attempt {attempt} after attempt {history.attempt}", history)
        if event.error_code == "worker_lost":
            if (event.error or "").startswith("its process died"):
                if history.forgiven:  # in quarantine, where an acquitted one is a suspect still
                    history.lost = max(history.lost, SUSPECT_LOST)
                    history.charges = max(history.charges, SUSPECT_LOST)
                history.charges += 1  # charged and ended in one: no ledger says it any more
            self._deaths(history)
            if history.charges < history.lost_max or not history.lost_max:
                raise self._broken(f"worker_lost after {history.charges} deaths of {history.lost_max}", history)
        history.ended = event.status
        history.ended_code = event.error_code
        history.running = False

    def _deaths(self, history: History) -> None:
        """`lost` has grown by exactly what has happened since it was last committed."""
        if history.blurred:
            history.blurred = False
        else:
            history.must = history.must or history.died
            grown = history.charges - history.lost
            if grown < history.must and history.charges < LOST_MAX:
                raise self._broken("a death was not counted", history)
            if grown > history.may:
                raise self._broken(f"{grown} deaths were counted that did not happen, or twice", history)
            self.deaths += grown
        history.lost = history.charges
        history.must = history.may = history.died = False

    def _letters(self, dead: Sequence[DeadLetter], entries: Sequence[Entry]) -> None:
        lettered = set()
        for letter in dead:
            history = self._find(letter.origin, letter.record.task_id, f"dead letter {letter.reason}")
            # Unsaid: a duplicate of the one that is open now, as far as anybody can know.
            history.letters = 1 if history.again or history.unsaid else history.letters + 1
            history.again = history.unsaid = False
            lettered.add(letter.origin)
            if history.letters > 1:
                raise self._broken("a second dead letter is committed", history)
        for entry in entries:
            event = entry.event
            if event.status is FAILED and event.origin not in lettered:
                raise self._broken(f"{event.origin} FAILED without a dead letter in its transaction")
            if event.status in (CANCELLED, TaskStatus.COMPLETED) and event.origin in lettered:
                raise self._broken(f"{event.origin} is {event.status} and a dead letter")

    # -- offsets and ledgers -------------------------------------------------------------------------------------------

    def recorded(self, commits: Sequence[OffsetCommit], *, fresh: frozenset[int]) -> None:
        """A plain commit took effect."""
        texts = {(c.band, c.shard): self._read(c) for c in commits}
        for commit in commits:
            self._passes_nothing_open(commit, texts)
        for shard in fresh:
            head = texts[0, shard][1]
            self._claimed(
                shard, lives=head is not None and _process(head.owner) == _process(self.owners.get(shard, ""))
            )
        self._marks(texts)

    def _claimed(self, shard: int, *, lives: bool) -> None:
        """A new owner: who may be, and who must be charged for the end of the last one. lives: it is the same process."""
        ran = [h for h in self._of_shard(shard) if h.running]
        alone = [h for h in ran if h.mark == Mark.TRIAL and stage_of(h.trial) == ALONE]
        for history in ran:
            own = not lives and (history in alone if alone else history.charges < SUSPECT_LOST)
            history.may = history.may or own
            history.must = history.must or (own and history.died)
            history.running = history.died = False

    def _read(self, commit: OffsetCommit) -> tuple[OffsetMap, Head | None]:
        if len(commit.text) > TEXT_MAX:
            raise self._broken(f"a ledger of {len(commit.text)} characters")
        try:
            found = decode(commit.text, commit.offset, log_start=0, log_end=FOREVER)
        except (LedgerUnreadable, UnknownVersion) as why:
            raise self._broken(f"unreadable ledger: {why}") from why
        if found is None:
            raise self._broken(f"a ledger that is not ours: {commit}")
        if (found[1] is not None) != (commit.band == 0):
            raise self._broken(f"head on the wrong cell, or none on the lead cell: {commit}")
        return found

    def _passes_nothing_open(self, commit: OffsetCommit, texts: dict[Cell, tuple[OffsetMap, Head | None]]) -> None:
        cell = (commit.band, commit.shard)
        log = self.broker.logs[cell]
        if commit.offset > log.end:
            raise self._broken(f"{cell}: committed {commit.offset} beyond the log end {log.end}")
        records = self.cells[cell]
        for offset in range(self.passed.get(cell, 0), commit.offset):
            history = records.get(offset)
            if history is not None and not history.finished:
                raise self._broken(f"{cell}: the committed offset {commit.offset} passes an unfinished one", history)
        state = texts[cell][0]
        at = commit.offset
        for low, high in zip(state.starts, state.ends, strict=True):
            self._done(cell, records, at, low)
            at = high
        self._done(cell, records, at, state.end)
        self.passed[cell] = commit.offset

    def _done(self, cell: Cell, records: dict[int, History], low: int, high: int) -> None:
        for offset in range(low, high):
            history = records.get(offset)
            if history is not None and not history.finished:
                raise self._broken(f"{cell}: the ledger calls {offset} done, which is not", history)

    def _marks(self, texts: dict[Cell, tuple[OffsetMap, Head | None]]) -> None:
        """Follow what the committed ledgers say about deaths and running executions."""
        for cell, (state, head) in texts.items():
            if head is not None:
                self.owners[cell[1]] = head.owner
            if head is not None and head.state == "clean":
                for left in self._of_shard(cell[1]):
                    left.handed = left.handed or left.running
                    left.running = False
            records = self.cells[cell]
            for offset, entry in state.entries.items():
                history = records.get(offset)
                if history is None:
                    continue
                if history.mark == Mark.TRIAL and entry.mark == Mark.RUNNING and entry.attempt == history.attempt:
                    self._acquitted(history, entry.lost)
                history.charges = entry.lost
                history.mark = entry.mark
                history.trial = entry.trial

    def _acquitted(self, history: History, lost: int) -> None:
        """Its ledger says that it has outlived its trial."""
        request = history.record.request
        limit_ms = TRIAL_MS if request is None or request.timeout_seconds is None else request.timeout_seconds * 1_000
        if self.clock() - history.begun_ms < min(TRIAL_MS, limit_ms) - 1:
            raise self._broken(f"acquitted {self.clock() - history.begun_ms} ms after it began", history)
        if lost:
            raise self._broken("acquitted, and its deaths are not forgiven", history)
        history.lost = 0
        history.forgiven = True
        self.acquitted += 1

    # -- handlers ------------------------------------------------------------------------------------------------------

    def started(self, record: RequestRecord, attempt: int, *, owner: bool) -> None:
        """A handler's first instruction. owner: the group says that this process owns the shard now."""
        origin = str(Origin(self.bands[record.band], record.partition, record.offset))
        history = self._find(origin, record.task_id, "start")
        self.executions += 1
        if attempt not in history.granted:
            raise self._broken(f"a handler starts before its RUNNING {attempt} is committed", history)
        if attempt in history.started:
            raise self._broken(f"two executions share attempt {attempt}", history)
        history.started.add(attempt)
        history.begun_ms = self.clock()
        if owner and history.ended is not None:
            raise self._broken("its owner starts a request whose terminal event is committed", history)
        if owner and record.request is not None and record.request.ordering_key is not None:
            self._in_order(history, record.request.ordering_key, attempt)

    def _in_order(self, history: History, key: str, attempt: int) -> None:
        for other in self.keys[history.record.band, history.record.partition, key]:
            if other is history:
                return
            if other.anew and attempt > 1:
                continue  # it had begun when the end of the other one was forgotten
            if not other.finished and not other.excused:
                raise self._broken(f"{history.origin} starts before {other.origin} of the same ordering key", other)

    def died(self, record: RequestRecord, attempt: int) -> None:
        """A process died under a running execution."""
        origin = str(Origin(self.bands[record.band], record.partition, record.offset))
        history = self._find(origin, record.task_id, "death")
        if attempt != history.attempt or history.ended is not None:
            return
        if history.handed:
            raise self._broken("a process died under a handler that a clean record says to have ended", history)
        history.died = history.died or history.running

    def child_died(self, record: RequestRecord, attempt: int, beside: int) -> None:
        """The child process of a running execution died, and its worker lives: its death may be charged now, if it was alone
        in there."""
        origin = str(Origin(self.bands[record.band], record.partition, record.offset))
        history = self._find(origin, record.task_id, "death of a child")
        if attempt == history.attempt and history.ended is None:
            history.parted = history.parted or (beside > 0 and history.running)
            history.may = history.may or (beside == 0 and history.running)
            self.parted += beside > 0

    # -- read committed ------------------------------------------------------------------------------------------------

    def visible(self, event: StatusEvent) -> None:
        """What a read_committed reader of tasks.status sees, in its order."""
        history = self._find(event.origin, event.task_id, "event")
        before, attempt = history.seen, event.attempt or 0
        if before in ENDED:
            raise self._broken(f"{event.status} is read after {before}", history)
        if event.status is CREATED:
            walks = before is None
        elif event.status is RUNNING:
            walks = (before is CREATED and attempt == 1) or (
                before is RUNNING and attempt in (history.seen_attempt, history.seen_attempt + 1)
            )
        elif event.status is CANCELLED:
            walks = before is CREATED or (before is RUNNING and attempt == history.seen_attempt)
        else:
            walks = before is RUNNING and attempt == history.seen_attempt
        if not walks:
            raise self._broken(f"{event.status} {attempt} is read after {before} {history.seen_attempt}", history)
        if event.updated_ms < history.seen_updated or event.updated_ms < event.created_ms:
            raise self._broken(f"updated_at falls to {event.updated_ms} from {history.seen_updated}", history)
        history.seen, history.seen_updated = event.status, event.updated_ms
        history.seen_attempt = max(history.seen_attempt, attempt)


def _process(owner: str) -> str:
    """What a transactional id says about whose it is, without the number that each of its process has."""
    return owner.rpartition("-")[0]
