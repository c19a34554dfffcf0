"""The owner loop of a worker process, which performs what the core asks for and decides nothing.

The owner thread (the main thread of the process) holds consumer, transactional producer and engine. Handlers run on the event
loop of the executor; two bounded hand-overs, in batches, connect the threads. core/turn.py decides what happens in a turn, and
in which order. The loop never waits with a transaction open, and otherwise only a few milliseconds: when both a Kafka record
and the end of a handler may come, it polls briefly and sleeps until a handler ends.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from streamtask.codec import RequestDecoder, encode_dead
from streamtask.config import EngineConfig, Settings, TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.core import ownership, turn
from streamtask.core.engine import Engine
from streamtask.domain.model import DeadLetter, RequestRecord, now_ms
from streamtask.domain.ports import (
    Answer,
    Ask,
    AwaitExecutions,
    Effect,
    EndTransaction,
    Executions,
    Facts,
    Fault,
    Fetch,
    HandOver,
    LocalAsk,
    Note,
    Now,
    Pause,
    Probe,
    ReadControl,
    RecallStatus,
    Resume,
    Start,
    Stop,
    TakeExecutions,
    TakeFacts,
    TakeRecords,
)
from streamtask.errors import StreamtaskError
from streamtask.execution.executor import Executor
from streamtask.kafka import admin
from streamtask.kafka.broker_adapter import BrokerAdapter
from streamtask.kafka.connection_errors import hopeless
from streamtask.kafka.side_reader import SideReader
from streamtask.observability import event_log
from streamtask.schema_registry import Formats
from streamtask.worker.metrics import Observer
from streamtask.worker.producer_checks import Noticing
from streamtask.worker.recovery import ControlReader, StatusRecall
from streamtask.worker.result_size import EventSize, take_reports
from streamtask.worker.watchdog import Watchdog

RECORDS_MAX = 2_000  # per poll
IDLE_POLL_S = 0.05  # nothing runs: a record ends the wait at once; cancels of waiting tasks are seen this often
BUSY_WAIT_S, BUSY_WAIT_LONG_S = 0.002, 0.01  # tasks run: an end wakes the loop at once, a record waits this long
# The broker answers EndTxn before its markers are written. A transaction that begins earlier is told to retry, and librdkafka
# waits 20 ms whatever retry.backoff.ms says: this hits one in eight of those that follow at once, none after 2 ms (measured).
# A busy broker takes longer for both, so wait as long as its answer took.
SETTLE_S, SETTLE_MAX_S = 0.0015, 0.008
LONG_AFTER_S = 0.25  # idle time after which waits become longer
LOOK_S = 10.0  # how often a shard with missing partitions is checked again
PARTIAL = "its partition does not exist in every topic"
RECOMMIT_S = 24 * 3600.0  # offsets of topics that the group is not subscribed to expire (KIP-211)
REFERENCE_BYTES_MAX = 8_192  # for a dead letter whose bytes the broker refused


def clock() -> Now:
    """The present time of both clocks."""
    return Now(now_ms(), time.monotonic_ns() // 1_000_000)


class StopRequests:
    """How often the worker was asked to stop. It drains after the first time, and aborts after the second."""

    def __init__(self) -> None:
        # A list, since append is atomic: a signal handler and another thread may ask at the same moment.
        self._asks: list[None] = []

    def ask(self) -> None:
        """From any thread, and from signal handlers."""
        self._asks.append(None)

    @property
    def asked(self) -> int:
        return len(self._asks)


class Owner:
    """The loop of one worker process, with its consumer, its producer and its engine.

    partitions  number of partitions that every topic has
    stops       says when to drain, and when to abort
    on_member   called with the group's id of this worker whenever it changes; "" while it is not a member

    Raises Unreachable, TopicsMissing, ConfigError.
    """

    def __init__(
        self,
        settings: Settings,
        kafka: KafkaSettings,
        config: EngineConfig,
        *,
        slot: int,
        partitions: int,
        formats: Formats,
        executor: Executor,
        size: EventSize,
        watchdog: Watchdog,
        observer: Observer | None,
        stops: StopRequests,
        on_member: Callable[[str], None],
    ) -> None:
        self.names: TopicNames = settings.topics
        self.executor, self.watchdog, self.observer = executor, watchdog, observer
        self._settings, self._identity = settings, config.worker
        self._size, self._partitions, self._stops = size, partitions, stops
        self.member_changed = on_member
        self._hopeless: StreamtaskError | None = None
        self._noticing = Noticing(self.names)
        self._joined = False
        self._drained_at: float | None = None
        self._settled_s = 0.0  # see SETTLE_S
        self._poll_s, self._fetched = 0.0, 0  # how long the next fetch may wait, and how much the last one returned
        write_status = formats.encoder().status_writer(
            self.names.status,
            locale=settings.locale,
            worker=self._identity,
            tracebacks=settings.tracebacks == "events",
        )
        self.adapter = BrokerAdapter(
            kafka,
            self.names,
            slot=slot,
            decode=RequestDecoder(self.names, admin.cluster_id(kafka), formats.reader, compact=True).decode,
            encode_event=write_status,
            encode_dead=self._encode_dead,
            listener=self,
        )
        self.engine = Engine(config, self.adapter.transactional_id, random.Random())
        self.side = SideReader(kafka, (self.names.control,), on_error=self.kafka_error)
        self.control = ControlReader(self.side, self.names, formats.reader)
        self.recall = StatusRecall(self.side, self.names, formats.reader)

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Join the group, work until stopped, hand over, leave. ready: called once it has joined."""
        self.adapter.join()
        if ready is not None:
            ready()
        self._loop()
        self._leave()

    def close(self) -> None:
        self.side.close()
        self.adapter.close()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        engine, adapter = self.engine, self.adapter
        active_s, look_s = time.monotonic(), 0.0
        recommit_s = active_s + RECOMMIT_S
        while True:
            self.watchdog.step()
            busy = self._drive(turn.turn(engine, clock))
            now_s = time.monotonic()
            if self.executor.failure is not None:
                raise self.executor.failure
            if self._hopeless is not None:
                raise self._hopeless
            if self._stops.asked and not self._draining(now_s):
                return
            if now_s >= recommit_s:
                ownership.recommit(engine)
                recommit_s = now_s + RECOMMIT_S
            if self.observer is not None and now_s >= self.observer.due_s:
                self._observe(self.observer, now_s)
            if now_s >= adapter.reseating.due_s and self._drained_at is None:
                adapter.reseating.look(ownership.expected(engine), now_s)
            if now_s >= look_s:
                look_s = now_s + LOOK_S
                if any(shard.refused == PARTIAL for shard in engine.shards.values()):
                    self._count_partitions()
                    self._refuse_partial()
            if (fills_ms := engine.fills_ms(clock())) > 0:
                # Sleep in the poll, which a request ends; an end does not, or each would cost a turn.
                self._poll_s, active_s = min(fills_ms / 1_000, BUSY_WAIT_LONG_S), now_s
            elif busy:
                self._poll_s, active_s = 0.0, now_s
            else:
                self._poll_s = self._rest(now_s - active_s)

    def _observe(self, observer: Observer, now_s: float) -> None:
        observer.look(
            self.engine,
            now_s,
            wall_ms=now_ms(),
            running=len(self.executor),
            member=bool(self.adapter.member_id),
            stragglers=self.executor.stragglers(),
        )

    def _rest(self, idle_s: float) -> float:
        """Sleep until a handler ends, if any runs; returns how long the next poll may wait."""
        if len(self.executor):
            self.executor.wait(BUSY_WAIT_S if idle_s < LONG_AFTER_S else BUSY_WAIT_LONG_S)
            return 0.0
        if self.control or self.recall or self.engine.fenced or ownership.unclaimed(self.engine, clock()):
            return BUSY_WAIT_LONG_S
        due = self.engine.next_due_ms(clock())
        return IDLE_POLL_S if due is None else min(IDLE_POLL_S, due / 1_000)

    # -- what the core asks for ----------------------------------------------------------------------------------------

    def _drive(self, flow: turn.Turn) -> bool:
        return turn.drive(flow, self._answer)

    def _answer(self, ask: Ask | LocalAsk) -> Answer:
        answer: Answer = None
        match ask:
            case TakeRecords(bands):
                answer = self._take(bands)
            case TakeExecutions():
                answer = self._executions()
            case TakeFacts():
                answer = self._facts()
            case HandOver(effects):
                self._hand_over(effects)
            case AwaitExecutions(wait_ms):
                self.executor.wait(wait_ms / 1_000)
            case Fetch():
                answer = self._fetched = self.adapter.fetch(self._poll_s, RECORDS_MAX)
            case _:
                answer = self._perform(ask)
        self.watchdog.step()
        return answer

    def _perform(self, ask: Ask) -> Answer:
        began_s = time.monotonic()
        answer = self.adapter.perform(ask)
        if isinstance(ask, EndTransaction):
            now_s = time.monotonic()
            self._settled_s = now_s + min(max(SETTLE_S, now_s - began_s), SETTLE_MAX_S)
        if self.observer is not None:
            self.observer.performed(ask, answer)
        return answer

    def _take(self, bands: int | None) -> list[RequestRecord]:
        records = self.adapter.take(bands)
        if records:
            self._noticing.look(records, self._partitions)
        return records

    def _facts(self) -> Facts:
        if self._fetched or self.executor.ended:  # a batch will follow
            time.sleep(max(0.0, self._settled_s - time.monotonic()))  # under load this time has already passed
        cancelled, controlled = self.control.poll()
        return Facts(
            cancelled,
            controlled,
            self.recall.poll(),
            self.adapter.probes.answers(),
            self._executions(),
            int(self.adapter.throttled_s * 1_000),
        )

    def _executions(self) -> Executions:
        return take_reports(self.executor, self.engine, self._size)

    def _hand_over(self, effects: list[Effect]) -> None:
        """Perform effects, starts and stops in batches."""
        starts: list[Start] = []
        stops: list[Stop] = []
        for effect in effects:
            match effect:
                case Start():
                    starts.append(effect)
                case Stop():
                    stops.append(effect)
                case Pause(cells):
                    self.adapter.pause(cells)
                case Resume(cells):
                    if self._drained_at is None:
                        self.adapter.resume(cells)
                case ReadControl(shards):
                    self.control.await_end(shards)
                case RecallStatus():
                    self.recall.begin(effect)
                case Probe(places):
                    self.adapter.probes.ask(places)
                case Note(name, fields):
                    event_log.emit(name, fields)
        if starts:
            self.executor.submit(starts)
        if stops:
            self.executor.stop_executions(stops)

    # -- GroupListener: see its docstrings -----------------------------------------------------------------------------

    def shards_assigned(self, shards: Sequence[int]) -> None:
        self._joined = True
        event_log.emit("shards_assigned", {"shards": list(shards)})
        if any(number >= self._partitions for number in shards):
            self._count_partitions()
        whole = [number for number in shards if number < self._partitions]
        ownership.own(self.engine, [number for number in shards if number >= self._partitions])
        self._refuse_partial()
        if whole:
            self._drive(turn.assigned(self.engine, whole, clock))

    def _count_partitions(self) -> None:
        """Count the shards whose partitions all exist. Partitions are added topic by topic, the lead topic last."""
        counts = self.adapter.partition_counts()
        if not isinstance(counts, Fault):
            needed = (*self.names.requests, self.names.status, self.names.schedule)
            self._partitions = min(counts.get(topic, 0) for topic in needed)

    def _refuse_partial(self) -> None:
        """A shard with missing partitions is not claimed; it is checked again from time to time."""
        for number, shard in self.engine.shards.items():
            if number >= self._partitions:
                ownership.refuse(self.engine, number, PARTIAL)
            elif shard.refused == PARTIAL:
                shard.refused = None

    def shards_revoked(self, shards: Sequence[int]) -> None:
        clean = self._drive(turn.revoked(self.engine, shards, clock))
        event_log.emit("shards_revoked", {"shards": list(shards), "clean": clean})

    def shards_lost(self, shards: Sequence[int]) -> None:
        self._drive(turn.lost(self.engine, shards))
        event_log.emit("shards_lost", {"shards": list(shards)})

    def position_lost(self, band: int, shard: int, offset: int) -> None:
        """Retention (or a truncation) removed the next record: reading continues at `offset`."""
        self.engine.position_lost((band, shard), offset)

    def kafka_error(self, text: str) -> None:
        event_log.emit("kafka_error", {"why": text})
        found = hopeless(text, self.names.group, self._settings.session_timeout_ms, joined=self._joined)
        self._hopeless = self._hopeless or found

    # -- drain ---------------------------------------------------------------------------------------------------------

    def _draining(self, now_s: float) -> bool:
        """True while the worker waits for tasks to end."""
        if self._drained_at is None:
            self._drained_at = now_s
            self.engine.drain()
            self.adapter.pause(tuple((band, s) for s in self.engine.shards for band in range(len(self.names.bands))))
            event_log.emit("worker_draining", {"running": len(self.executor), "grace_s": self._settings.drain_grace_s})
        if self._stops.asked > 1:
            return False
        return turn.unfinished(self.engine) and now_s - self._drained_at < self._settings.drain_grace_s

    def _leave(self) -> None:
        """Leave the group; on_revoke hands everything over."""
        self.adapter.leave()
        self._hand_over(self.engine.take_effects())

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _encode_dead(self, letter: DeadLetter) -> tuple[bytes | None, bytes, list[tuple[str, bytes]]]:
        limit = REFERENCE_BYTES_MAX if letter.reference else self._size.bytes_max
        fields: dict[str, Any] = {"worker": self._identity, "failed_at_ms": now_ms(), "value_bytes_max": limit}
        return encode_dead(letter, self.names, traceback=self._settings.tracebacks == "dead", **fields)
