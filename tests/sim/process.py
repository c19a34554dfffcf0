"""One worker process: the real core, driven one ask at a time against the model broker.

The loop is the worker's own, core/turn.py. Every ask of the broker is two moments, the one at which it takes effect there and
the one at which its answer arrives; between any two moments the adversary may act. What the loop asks of its own process is
answered at once, with as much as has come in, or less. A frozen process keeps what would have happened to it until it wakes; a
dead one loses it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from streamtask.core import turn
from streamtask.core.engine import Engine
from streamtask.core.slot_sharing import WHOLE
from streamtask.domain.model import ENDED, Ending, HandlerKind, Outcome, RequestRecord
from streamtask.domain.ports import (
    Ask,
    AwaitExecutions,
    Cell,
    Effect,
    Executions,
    Facts,
    FenceIds,
    Fetch,
    HandOver,
    Now,
    Pause,
    Place,
    Poll,
    Probe,
    ReadControl,
    Recalled,
    RecallStatus,
    Resume,
    Start,
    Stop,
    StopReason,
    TakeExecutions,
    TakeFacts,
    TakeRecords,
)

from . import in_time, weights
from .group import Membership
from .handlers import LOST, NOT_BEGUN, STOPPED, Execution, behaviour_of
from .performer import BLOCKED, Performer
from .promises import PromiseBroken

if TYPE_CHECKING:
    from .cluster import Cluster

FETCH_MAX = 12
LATE = 0.2
REREAD_MS = (5, 40)


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do: sleep until something happens, or for so long."""

    most_ms: int | None = None


Flow = Generator[Any, Any, Any]


class Process(Performer):
    """A worker from its start to its death."""

    def __init__(self, cluster: Cluster, slot: int, incarnation: int) -> None:
        self.cluster = cluster
        self.twist = partial(cluster.twist, self)
        self.broker = cluster.broker
        self.rng = cluster.rng
        self.name = f"{'ABCDEFGH'[slot]}{incarnation}"
        self.slot = slot
        self.alive = True
        self.frozen = False
        self.deferred: list[Callable[[], object]] = []
        self.ids = 0
        self.producer = self.broker.new_producer(self.next_id())
        self.engine = Engine(cluster.config, self.producer.id, self.rng)
        self.member: int | None = None
        self.membership: Membership | None = None
        self.held: set[int] = set()
        self.claimed: set[int] = set()  # ghost: shards whose claim was answered since they were assigned
        self.positions: dict[Cell, int] = {}
        self.paused: set[Cell] = set()
        self.executions: dict[int, Execution] = {}
        self.begun: list[int] = []  # tokens that children have told
        self.endings: list[tuple[int, Outcome]] = []
        self.progress: list[tuple[int, float, None]] = []
        self.probes: list[tuple[Place, str | None]] = []
        self.control_at = 0
        self.control_wanted: list[tuple[int, tuple[int, ...]]] = []
        self.recalls: list[tuple[RecallStatus, int]] = []
        self._fencing: tuple[FenceIds | None, set[str]] = (None, set())
        self._produced_ms = 0
        self.barrier: dict[int, int] = {}  # ghost: end of tasks.control when the shard was claimed
        self.leaving = False
        self._leaves_at = 0
        self.skew_ms = cluster.adversary.skew_ms()
        self.mono_from = self.rng.randrange(1_000_000)
        self.doing = "starts"
        self.resting = False
        self.idle_rounds = 0
        self._wake_serial = 0
        self._flow = self._main()
        self._resume(None)

    def next_id(self) -> str:
        self.ids += 1
        return f"tasks.workers.{self.slot}.{self.name}-{self.ids}"

    def now(self) -> Now:
        at = self.cluster.timeline.now
        return Now(self.cluster.epoch_ms + at + self.skew_ms, self.mono_from + at)

    # -- moments -------------------------------------------------------------------------------------------------------

    def do(self, delay_ms: int, action: Callable[[], object]) -> None:
        """Something that happens inside this process: not when it is dead, and when it is frozen not before it wakes."""
        self.cluster.timeline.after(delay_ms, lambda: self._happen(action))

    def _happen(self, action: Callable[[], object]) -> None:
        if not self.alive:
            return
        if self.frozen:
            self.deferred.append(action)
            return
        action()

    def wake(self) -> None:
        self.frozen = False
        deferred, self.deferred = self.deferred, []
        for action in deferred:
            self.do(self.rng.randint(0, 3), action)

    def die(self) -> None:
        """kill -9. Every handler dies with it."""
        self.alive = False
        for execution in self.executions.values():
            stays = execution.told and execution.kind is HandlerKind.THREAD
            if execution.begun and not stays:
                self.cluster.promises.died(execution.record, execution.attempt)
        self.executions.clear()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _main(self) -> Flow:
        engine = self.engine
        while True:
            busy = yield from self._play(turn.turn(engine, self.now))
            self._bounded()
            self.idle_rounds = 0 if busy else self.idle_rounds + 1
            if self.leaving and not (turn.unfinished(engine) and self.cluster.timeline.now < self._leaves_at):
                yield from self._leave_group()
                return
            yield Rest()

    def drain(self, grace_ms: int) -> None:
        """SIGTERM: start nothing more, let what runs end within the grace time, hand over, leave."""
        self.leaving = True
        self._leaves_at = self.cluster.timeline.now + grace_ms
        self.engine.drain()
        self.stir()

    def _leave_group(self) -> Flow:
        held = tuple(sorted(self.held))
        self.membership = self.broker.group.capture(self.member)
        if held and self.membership is not None:
            yield from self._play(turn.revoked(self.engine, held, self.now))
        self.cluster.left(self)

    def _bounded(self) -> None:
        """Whatever the backlog: what a worker holds is bounded."""
        engine, config = self.engine, self.cluster.config
        for kind, slots in config.slots.items():
            running = [claim for claim in engine.running.values() if claim.kind is kind]
            whole = sum(engine.schedule.parts_of(claim) == WHOLE for claim in running)
            assert whole <= slots, f"{whole} whole executions in {slots} slots"
            assert len(running) <= slots * WHOLE, f"{len(running)} executions where {slots * WHOLE} fit"
        assert len(engine.cancels) <= config.cancels_max, f"{len(engine.cancels)} cancels are kept"
        weights.bounded(engine)
        claims = sum(len(shard.claims) for shard in engine.shards.values())
        owing = len(engine.urgent) + len(engine.fresh)
        assert owing <= claims, f"{owing} claims owe something, {claims} are there"
        for shard in engine.shards.values():
            for backlog in shard.backlogs:
                assert len(backlog.records) < config.backlog_max + FETCH_MAX, f"{len(backlog.records)} records wait"

    def _play(self, flow: Flow) -> Flow:
        """Drive a flow of the core; the group's callbacks run inside a poll. Returns what the flow returns."""
        answer: Any = None
        while True:
            try:
                ask = in_time.granted(self, flow.send(answer))
            except StopIteration as end:
                return end.value
            match ask:
                case TakeRecords(bands):
                    answer = self._take_records(bands)
                case TakeExecutions():
                    answer = self._take_executions()
                case TakeFacts():
                    answer = self._take_facts()
                case HandOver(effects):
                    self._hand_over(effects)
                    answer = None
                case AwaitExecutions(wait_ms):
                    answer = yield Rest(wait_ms)
                case Fetch():
                    yield ask
                    yield from self._callbacks()
                    answer = self._fetch()
                case Poll():
                    answer = yield ask
                    yield from self._callbacks()
                case _:
                    answer = yield ask

    def _callbacks(self) -> Flow:
        group, engine = self.broker.group, self.engine
        if not group.member(self.member):
            if self.held:
                lost, self.held = tuple(sorted(self.held)), set()
                self._leave(lost)
                yield from self._play(turn.lost(engine, lost))
            self.member = group.join()
            self.cluster.note(self.name, "joins the group")
        self.membership = group.capture(self.member)
        revoking = tuple(s for s in sorted(self.held) if s in group.revoking(self.member or 0))
        if revoking:
            self.cluster.note(self.name, f"revoke {revoking}")
            yield from self._play(turn.revoked(engine, revoking, self.now))
            self.held.difference_update(revoking)
            self._leave(revoking)
            group.release(self.member or 0, list(revoking))
        fresh = tuple(s for s in sorted(group.held(self.member or 0)) if s not in self.held)
        if fresh:
            self.held.update(fresh)
            self.membership = group.capture(self.member)
            yield from self._play(turn.assigned(engine, fresh, self.now))
        self.membership = group.capture(self.member)

    def _leave(self, shards: tuple[int, ...]) -> None:
        self.claimed.difference_update(shards)
        for cell in [c for c in self.positions if c[1] in shards]:
            del self.positions[cell]
            self.paused.discard(cell)

    def _resume(self, answer: Any) -> None:
        """Give the owner thread its answer and let it run to its next ask."""
        try:
            ask = self._flow.send(answer)
        except StopIteration:
            return  # it has drained and left
        if isinstance(ask, Rest):
            self._rest(ask.most_ms)
            return
        self.doing = type(ask).__name__
        self.do(self.cluster.latency(), lambda: self._arrive(ask, self.cluster.timeline.now))

    def _rest(self, most_ms: int | None) -> None:
        self.resting = True
        self.doing = "rests"
        self._wake_serial += 1
        most = most_ms or min(400, 2 << min(self.idle_rounds, 8))
        due_ms = self.engine.next_due_ms(self.now())
        if due_ms is not None and most_ms is None:
            most = min(most, due_ms + 5)
        self.do(self.rng.randint(1, most), partial(self._rested, self._wake_serial))

    def _rested(self, serial: int) -> None:
        if self.resting and serial == self._wake_serial:
            self.resting = False
            self._resume(None)

    def stir(self) -> None:
        """Something arrived for a resting owner."""
        self.idle_rounds = 0
        if self.resting:
            self._wake_serial += 1
            self.do(self.rng.randint(0, 2), partial(self._rested, self._wake_serial))

    # -- asks ----------------------------------------------------------------------------------------------------------

    def _arrive(self, ask: Ask, since_ms: int) -> None:
        """The ask reaches the broker, unless the adversary strikes first."""
        cluster = self.cluster
        if cluster.strikes(self, ask, before=True):
            # Frozen with the request still in the process, or already on the wire: both are possible.
            if self.alive:
                self._happen(lambda: self._arrive(ask, since_ms))
            return
        answer = self._perform(ask, since_ms)
        if answer is BLOCKED:
            self.do(self.rng.randint(*REREAD_MS), lambda: self._arrive(ask, since_ms))
            return
        if not isinstance(ask, Poll | Fetch):
            cluster.note(self.name, ask if answer is None else (ask, answer))
        self.do(cluster.latency(), lambda: self._resume(answer))
        cluster.strikes(self, ask, before=False)

    # -- facts and effects ---------------------------------------------------------------------------------------------

    def _take_records(self, bands: int | None) -> list[RequestRecord]:
        """What was fetched, or nothing yet: a real client has not always got it."""
        return [] if self.rng.random() < LATE else self._read_log(bands)

    def _take_executions(self) -> Executions:
        told = Executions(self.begun, self.progress, self.endings)
        self.begun, self.progress, self.endings = [], [], []
        return told

    def _take_facts(self) -> Facts:
        probed, self.probes = self.probes, []
        cancelled, controlled = self._read_control()
        return Facts(cancelled, controlled, self._read_back(), probed, self._take_executions())

    def _fetch(self) -> bool:
        """Whether there is anything to take."""
        still = self.paused | self.broker.leaderless
        return any(at < self.broker.logs[cell].end for cell, at in self.positions.items() if cell not in still)

    def _read_log(self, bands: int | None) -> list[RequestRecord]:
        out: list[RequestRecord] = []
        for cell, position in self.positions.items():
            if cell in self.paused or cell in self.broker.leaderless or (bands is not None and cell[0] >= bands):
                continue
            log = self.broker.logs[cell]
            if position < log.start:
                self.engine.position_lost(cell, log.start)
                position = log.start
            elif position > log.end:
                self.engine.position_lost(cell, log.end)
                position = log.end
            room, size = self.rng.randint(1, FETCH_MAX), 0
            while position < log.end and room and size < weights.FETCH_BYTES:
                record = log.records.get(position)
                if record is not None:
                    out.append(record)
                    room -= 1
                    size += len(record.value)
                position += 1
            self.positions[cell] = position
        return out

    def _read_control(self) -> tuple[list[str], list[int]]:
        """Ids that are cancelled, and shards whose reading is done."""
        news = self.broker.control[self.control_at : self.control_at + self.rng.randint(1, 20)]
        self.control_at += len(news)
        due = [shard for end, shards in self.control_wanted if end <= self.control_at for shard in shards]
        self.control_wanted = [wanted for wanted in self.control_wanted if wanted[0] > self.control_at]
        return news, due

    def _read_back(self) -> list[tuple[int, int, list[Recalled], bool]]:
        """Recall reads its status partition to the high watermark that it saw, as far as the LSO lets it."""
        slices = []
        ready = [(ask, end) for ask, end in self.recalls if self.broker.status[ask.shard].stable >= end]
        for item in ready:
            self.recalls.remove(item)
            ask, end = item
            facts = [
                Recalled(
                    e.event.origin, e.event.task_id, e.event.status in ENDED, e.event.attempt or 0, e.event.updated_ms
                )
                for e in self.broker.status[ask.shard].entries[:end]
                if e.fate and not e.compacted
            ]
            slices.append((ask.shard, ask.epoch, facts, True))
        return slices

    def _hand_over(self, effects: list[Effect]) -> None:
        for effect in in_time.handed_over(self, effects):
            if isinstance(effect, Start):
                self._start(effect)
            elif isinstance(effect, Stop):
                self._stop(effect)
            elif isinstance(effect, Pause):
                self.paused.update(effect.cells)
            elif isinstance(effect, Resume):
                self.paused.difference_update(effect.cells)
            elif isinstance(effect, ReadControl):
                self.control_wanted.append((len(self.broker.control), effect.shards))
            elif isinstance(effect, Probe):
                for place in effect.places:
                    self.do(self.rng.randint(20, 2_000), partial(self._probed, place))
            elif isinstance(effect, RecallStatus):
                self.recalls.append((effect, self.broker.status[effect.shard].end))
            else:
                self.cluster.note(self.name, effect)

    def _probed(self, place: Place) -> None:
        why = "in-sync replicas 1 of 2" if place in self.broker.sick else None
        self.probes.append((place, why))
        self.stir()

    def _start(self, effect: Start) -> None:
        assert effect.token not in self.executions, f"token {effect.token} is used twice"
        execution = Execution(
            effect.token,
            effect.record,
            effect.attempt,
            effect.kind,
            behaviour_of(effect.record, effect.attempt, self.rng),
            group=effect.group,
            timeout_ms=effect.timeout_ms,
            late=effect.late,
        )
        self.executions[effect.token] = execution
        delays_ms = self.cluster.child_starts_ms if effect.in_child else self.cluster.waits_for_others_ms
        begins_ms = self.rng.choice(delays_ms) if effect.late else 0
        self.do(self.cluster.latency() + begins_ms, lambda: self._begin(execution))

    def _begin(self, execution: Execution) -> None:
        if execution.token not in self.executions:
            return  # it was told to stop before it began
        cluster = self.cluster
        if cluster.strikes(self, execution, before=True):
            if self.alive:
                self._happen(lambda: self._begin(execution))
            return
        shard, record = execution.record.partition, execution.record
        owner = self.broker.group.owner.get(shard) == self.member and self.member is not None and shard in self.held
        cluster.note(self.name, execution)
        cluster.promises.started(record, execution.attempt, owner=owner)
        if owner and record.task_id in self.broker.control[: self.barrier.get(shard, 0)]:
            raise PromiseBroken(f"{record} starts, although it was cancelled before its shard was claimed")
        execution.begun, execution.begun_ms = True, cluster.timeline.now
        if execution.late:
            self.begun.append(execution.token)
            self.stir()
        behaviour = execution.behaviour
        if behaviour.kills and behaviour.takes_ms:
            self.do(behaviour.takes_ms, lambda: self._kills(execution))
            return
        if behaviour.kills:
            self._kills(execution)
            return
        for delay_ms, fraction in behaviour.progress:
            self.do(delay_ms, partial(self._progress, execution.token, fraction))
        if behaviour.outcome is not None:
            outcome = replace(behaviour.outcome, ran_ms=float(behaviour.takes_ms))  # short ones share slots from now on
            self.do(behaviour.takes_ms, lambda: self._end(execution, outcome))

    def _kills(self, execution: Execution) -> None:
        if execution.token not in self.executions:
            return  # it has been stopped
        if execution.group and not execution.behaviour.slays and self.rng.random() < 0.8:
            self._end(execution, LOST)
        else:  # in quarantine: in a way that reaches its worker, too
            self.cluster.note(self.name, "is killed by its handler")
            self.cluster.crash(self)

    def _progress(self, token: int, fraction: float) -> None:
        if token in self.executions:
            self.progress.append((token, fraction, None))
            self.stir()

    def _child_dies(self, execution: Execution) -> None:
        """With all that run in it; those that it has not begun begin in the next child of their group."""
        shared = execution.group and execution.kind is not HandlerKind.PROCESS
        ran = [one for one in self.executions.values() if one.begun and shared and one.group == execution.group]
        ran = ran or [execution]
        self.cluster.note(self.name, f"loses a child and {len(ran)} executions in it")
        for one in ran:
            self.executions.pop(one.token, None)
            self.cluster.promises.child_died(one.record, one.attempt, len(ran) - 1)
            self.endings.append((one.token, replace(LOST, beside=len(ran) - 1)))
        self.stir()

    def _end(self, execution: Execution, outcome: Outcome | None) -> None:
        if outcome is not None and outcome.ending is Ending.LOST and execution.token in self.executions:
            self._child_dies(execution)
        elif self.executions.pop(execution.token, None) is not None and outcome is not None:
            self.endings.append((execution.token, outcome))
            self.stir()

    def _stop(self, effect: Stop) -> None:
        execution = self.executions.get(effect.token)
        if execution is None:
            return
        execution.told = True
        had_ms, limit_ms = self.cluster.timeline.now - execution.begun_ms, execution.timeout_ms or 0
        timed_out = effect.reason is StopReason.TIMEOUT and execution.late
        if timed_out and not execution.begun:
            raise PromiseBroken(f"{execution.record} is stopped by its time limit before it began")
        if timed_out and had_ms < limit_ms:
            raise PromiseBroken(f"{execution.record} is stopped after {had_ms} of {limit_ms} ms")
        if not execution.begun:
            self._end(execution, NOT_BEGUN)
        elif not (execution.behaviour.stubborn and execution.kind is HandlerKind.THREAD):
            self.do(self.rng.randint(0, 5), lambda: self._end(execution, STOPPED))
        elif execution.behaviour.outcome is None:
            self.do(self.rng.randint(100, 5_000), lambda: self._end(execution, STOPPED))
