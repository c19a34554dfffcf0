"""A desk to try the engine at: a broker that always says yes, or answers what the test put down, and two clocks.

Not the simulation: no other worker, nothing fails by itself. Tests read what was committed: events, dead letters, offsets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from streamtask.config import EngineConfig
from streamtask.core import ownership, protocol, turn
from streamtask.core.engine import Engine
from streamtask.domain.model import (
    BANDS,
    DeadLetter,
    Ending,
    HandlerKind,
    Outcome,
    RequestRecord,
    StatusEvent,
    TaskPolicy,
    TaskRequest,
)
from streamtask.domain.ports import (
    AbortTransaction,
    Answer,
    Ask,
    AwaitEnded,
    Cell,
    CommitPlain,
    CommitPlan,
    Committed,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    Flush,
    ListOffsets,
    Note,
    Now,
    OffsetCommit,
    Produce,
    ReadControl,
    ReadSettled,
    RecallStatus,
    RenewProducer,
    SendOffsets,
    Settled,
    Start,
    Stop,
)

RETURNED = Outcome(Ending.RETURNED, result=b"1")
STOPPED = Outcome(Ending.STOPPED)
START_MS = 1_800_000_000_000


def raised(text: str = "no", **more: Any) -> Outcome:
    return Outcome(Ending.RAISED, code="handler_error", error=text, exception="ValueError", **more)


class Desk:
    """One engine owning shard 0 (unless told otherwise), and everything that it committed."""

    def __init__(
        self,
        policies: dict[str, TaskPolicy] | None = None,
        *,
        shards: tuple[int, ...] = (0,),
        claim: bool = True,
        **config: Any,
    ) -> None:
        policies = policies if policies is not None else {"noop": TaskPolicy()}
        slots = config.pop("slots", {HandlerKind.ASYNC: 8, HandlerKind.THREAD: 2, HandlerKind.PROCESS: 0})
        self.config = EngineConfig(policies=policies, slots=slots, **config)
        self.now = Now(START_MS, 1_000_000)
        self.offsets: dict[Cell, OffsetCommit] = {}
        self.log_ends: dict[Cell, int] = {}
        self.log_starts: dict[Cell, int] = {}
        self.events: list[StatusEvent] = []
        self.dead: list[DeadLetter] = []
        self.running: dict[int, Start] = {}
        self.stops: list[Stop] = []
        self.notes: list[Note] = []
        self.other_effects: list[Any] = []
        self.asked: list[Ask] = []
        self.answers: dict[type, list[Answer]] = {}  # what to answer instead, first one first
        self.when_flushing: Callable[[], None] = lambda: None
        self.when_awaiting: Callable[[tuple[int, ...]], None] = lambda tokens: None
        self.place = 0
        self.ids = iter(f"tasks.workers.0.{n}" for n in range(1, 1_000))
        self.children_begin = True  # at once
        self.refuses: Callable[[CommitPlan], bool] = lambda plan: False
        self._plan: Any = None
        self._next: dict[Cell, int] = {}
        self.shards = shards
        self.engine = Engine(self.config, next(self.ids), random.Random(1))
        if claim:
            self.claim()

    # -- time and facts ------------------------------------------------------------------------------------------------

    def clock(self) -> Now:
        return self.now

    def later(self, ms: int) -> None:
        self.now = Now(self.now.wall_ms + ms, self.now.mono_ms + ms)

    def record(
        self, task_type: str = "noop", *, band: int = 1, shard: int = 0, skip: int = 0, **more: Any
    ) -> RequestRecord:
        """The next record of a cell. `skip`: offsets that hold nothing before it."""
        cell = (band, shard)
        offset = self._next.get(cell, 0) + skip
        self._next[cell] = offset + 1
        self.log_ends[cell] = offset + 1
        task_id = more.pop("task_id", f"0190a0a0-{band:04d}-7000-8000-{shard:04d}{offset:08d}")
        problem = more.pop("problem", None)
        times = {name: more.pop(name, None) for name in ("expires_ms", "not_before_ms")}
        priority = more.pop("priority", BANDS[band].middle)
        request = None if problem else TaskRequest(task_type=task_type, **more)
        now_ms = self.now.wall_ms
        return RequestRecord(
            band, shard, offset, now_ms, task_id, request, priority, now_ms, b"{}", problem=problem, **times
        )

    def feed(self, *records: RequestRecord) -> None:
        self.engine.fetched(records)

    def submit(self, task_type: str = "noop", **more: Any) -> RequestRecord:
        record = self.record(task_type, **more)
        self.feed(record)
        return record

    def end(self, record: RequestRecord, outcome: Outcome = RETURNED) -> None:
        start = next(s for s in self.running.values() if s.record is record)
        del self.running[start.token]
        self.engine.ended(start.token, outcome, self.now)

    # -- driving -------------------------------------------------------------------------------------------------------

    def claim(self) -> bool:
        done = self.drive(protocol.assigned(self.engine, self.shards, self.clock))
        self.take()
        return done

    def ready(self) -> None:
        """tasks.control (and tasks.status, empty) are read."""
        ownership.control_read(self.engine, self.shards)
        for effect in [e for e in self.other_effects if isinstance(e, RecallStatus)]:
            ownership.recalled(self.engine, effect.shard, effect.epoch, [], done=True)

    def turn(self) -> bool:
        done = self.drive(protocol.step(self.engine, self.clock))
        self.take()
        return done

    def settle(self, turns: int = 20) -> None:
        """Turns until nothing is committed any more."""
        for _ in range(turns):
            if not self.turn():
                return
        raise AssertionError("it goes on committing")

    def drive(self, flow: protocol.Flow) -> bool:
        return turn.drive(flow, self._answer)

    def _answer(self, ask: Ask) -> Answer:
        self.asked.append(ask)
        planned = self.answers.get(type(ask))
        answer = planned.pop(0) if planned else self.perform(ask)
        if isinstance(answer, Fault):
            self._plan = None
        return answer

    def perform(self, ask: Ask) -> Answer:
        cells = [(band, shard) for shard in getattr(ask, "shards", ()) for band in range(len(BANDS))]
        match ask:
            case ListOffsets():
                return {cell: self._listed(cell) for cell in cells}
            case ReadSettled():
                return {cell: self._settled(cell) for cell in cells}
            case CommitPlain(offsets):
                self._keep(offsets)
            case Produce(plan):
                if self.refuses(plan):
                    return Fault(FaultKind.RECORD, "too large")
                self._plan = plan
            case EndTransaction():
                self.land()
            case RenewProducer():
                return next(self.ids)
            case AwaitEnded(tokens):
                self.take()
                self.when_awaiting(tokens)
            case Flush():
                self.when_flushing()
            case FenceIds() | SendOffsets() | AbortTransaction():
                pass
        return None

    def land(self) -> None:
        """The open transaction becomes visible."""
        plan, self._plan = self._plan, None
        self.events += plan.events
        self.dead += plan.dead
        self._keep(plan.offsets)

    def _keep(self, offsets: Iterable[OffsetCommit]) -> None:
        self.offsets.update({(o.band, o.shard): o for o in offsets})

    def _listed(self, cell: Cell) -> Committed:
        found = self.offsets.get(cell)
        return Committed(found.offset, found.text) if found else Committed()

    def _settled(self, cell: Cell) -> Settled:
        found = self._listed(cell)
        return Settled(found.offset, found.text, self.log_starts.get(cell, 0), self.log_ends.get(cell, 0))

    def take(self) -> None:
        for effect in self.engine.take_effects():
            match effect:
                case Start():
                    self.running[effect.token] = effect
                    begins = effect.kind is HandlerKind.PROCESS or effect.shares
                    if self.children_begin and begins and effect.timed:
                        self.engine.begun(effect.token, self.now)
                case Stop():
                    self.stops.append(effect)
                case Note():
                    self.notes.append(effect)
                case ReadControl() | RecallStatus() | _:
                    self.other_effects.append(effect)

    # -- reading back --------------------------------------------------------------------------------------------------

    def history(self, record: RequestRecord) -> list[str]:
        """`created`, `running 1`, … of one record, as committed."""
        origin = f"{BANDS[record.band].name}-{record.partition}@{record.offset}"
        return [
            e.status.value + (f" {e.attempt}" if e.attempt and e.status.value == "running" else "")
            for e in self.events
            if e.origin == origin
        ]

    def last(self, record: RequestRecord) -> StatusEvent:
        return [e for e in self.events if e.task_id == record.task_id][-1]

    def successor(self, **more: Any) -> Desk:
        """Another worker that takes the shards over from what is committed here; the records come again."""
        other = Desk(dict(self.config.policies), shards=self.shards, claim=False, slots=dict(self.config.slots), **more)
        other.offsets, other.log_ends, other.log_starts = self.offsets, self.log_ends, self.log_starts
        other.events, other.dead, other.now, other._next = self.events, self.dead, self.now, self._next
        other.place = self.place + 1  # no id is used twice: an id of one's own on a shard means that nobody has died
        other.ids = iter(f"tasks.workers.{other.place}.{n}" for n in range(1, 1_000))
        other.engine.owner = next(other.ids)
        other.engine.own_ids = {other.engine.owner}
        assert other.claim()
        other.ready()
        return other
