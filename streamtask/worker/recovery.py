"""What a claimed shard reads before it starts anything: tasks.control, and tasks.status if its position is unknown.

The owner's loop reads both in slices, without a deadline, while other shards continue. Nothing here waits for a broker:
brokers that freeze meanwhile cost the owner no time. Both share one SideReader. Both end at the high watermark seen after the
claim, not at the last stable offset: EndTxn is answered before its markers are written, so the last transaction of a former
owner may still become visible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from streamtask.codec import decode_control
from streamtask.codec.reader import PLAIN, Reader
from streamtask.codec.recalled import read_recalled
from streamtask.config import TopicNames
from streamtask.domain.model import ControlAction, now_ms
from streamtask.domain.ports import Recalled, RecallStatus
from streamtask.errors import DecodeError, SchemaPending, SchemaUnavailable
from streamtask.kafka.side_reader import Mark, SideReader
from streamtask.kafka.tail import TailRecord
from streamtask.observability import event_log
from streamtask.worker.producer_checks import PassedOver

ASIDE_MAX = 1_000  # cancel requests whose schema is not known
ASIDE_S = 0.05  # between two attempts to decode them
WAITS_S = 30.0  # without a record to read: logged, then again each time that the wait has doubled


class ControlReader:
    """Reads tasks.control from its start and follows it; reports which shards have what they must read before they start."""

    def __init__(self, side: SideReader, names: TopicNames, reader: Reader = PLAIN) -> None:
        self._side, self._topic = side, names.control
        self._reader = reader
        self._barriers: list[tuple[Mark, tuple[int, ...]]] = []
        self._aside: list[TailRecord] = []
        self._look_at = 0.0
        self._pending = False  # one of them may soon be decodable
        self._passed_over = PassedOver()

    @property
    def undecodable(self) -> int:
        """Number of records that could not be decoded."""
        return self._passed_over.count

    def await_end(self, shards: tuple[int, ...]) -> None:
        """These shards may start when everything that the topic holds now has been read."""
        self._barriers.append((self._side.mark(self._topic), shards))

    def __bool__(self) -> bool:
        """Whether shards wait for it."""
        return bool(self._barriers)

    def poll(self) -> tuple[list[str], list[int]]:
        """(cancelled ids, shards whose barrier was reached). Never waits."""
        cancelled: list[str] = []
        if self._aside and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + ASIDE_S
            aside, self._aside, self._pending = self._aside, [], False
            self._read(aside, cancelled)
        self._read(self._side.take(self._topic), cancelled)
        ready: list[int] = []
        for barrier in list(self._barriers):
            if self._side.reached(barrier[0]) and not self._pending:
                ready.extend(barrier[1])
                self._barriers.remove(barrier)
        return cancelled, ready

    def _read(self, records: Iterable[TailRecord], cancelled: list[str]) -> None:
        for record in records:
            if record.value is None:
                continue
            try:
                message = decode_control(record.key, record.value, self._reader)
            except (SchemaPending, SchemaUnavailable) as error:
                if len(self._aside) < ASIDE_MAX:
                    self._aside.append(record)
                    self._pending = self._pending or isinstance(error, SchemaPending)
                else:
                    self._passed_over.add(record, error)
                continue
            except DecodeError as error:
                self._passed_over.add(record, error)  # there is no task to report it to
                continue
            if message.action is ControlAction.CANCEL:
                cancelled.append(message.task_id)


@dataclass(slots=True)
class _Recall:
    shard: int
    epoch: int
    end: Mark
    moved_s: float  # when the last record came
    log_at_s: float  # when to log that none comes
    unread: list[TailRecord] = field(default_factory=list)  # from the record on whose schema is not known yet
    paused: bool = False  # nothing more is fetched until that record can be decoded


class StatusRecall:
    """Reads partitions of tasks.status, each once from its start to the end it had when its shard was claimed."""

    def __init__(
        self,
        side: SideReader,
        names: TopicNames,
        reader: Reader = PLAIN,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._side, self._topic = side, names.status
        self._reader, self._clock = reader, clock
        self._reading: dict[int, _Recall] = {}  # by shard
        self._passed_over = PassedOver()

    @property
    def undecodable(self) -> int:
        """Number of records that no worker wrote."""
        return self._passed_over.count

    def begin(self, ask: RecallStatus) -> None:
        """Start over for this shard; drop an earlier reading of it."""
        self._drop(ask.shard)
        end, now_s = self._side.read((self._topic, ask.shard)), self._clock()
        self._reading[ask.shard] = _Recall(ask.shard, ask.epoch, end, now_s, now_s + WAITS_S)

    def __bool__(self) -> bool:
        return bool(self._reading)

    def poll(self) -> list[tuple[int, int, list[Recalled], bool]]:
        """(shard, epoch, facts, done) of each reading that has progressed; [] while all wait for a broker. Never waits."""
        if not self._reading:
            return []
        now_s = self._clock()
        for record in self._side.take(self._topic):
            reading = self._reading[record.partition]
            reading.unread.append(record)
            reading.moved_s, reading.log_at_s = now_s, now_s + WAITS_S
        out = []
        for reading in list(self._reading.values()):
            if now_s >= reading.log_at_s:
                self._log_wait(reading, now_s)
            facts = self._facts(reading)
            done = self._side.reached(reading.end) and not reading.unread
            if facts or done:
                out.append((reading.shard, reading.epoch, facts, done))
            if done:
                self._drop(reading.shard)
        return out

    def _facts(self, reading: _Recall) -> list[Recalled]:
        records, reading.unread = reading.unread, []
        facts, wall_ms = [], now_ms()
        for index, record in enumerate(records):
            if record.value is None:
                continue  # the tombstone of a deleted key: it names no request
            try:
                facts.append(read_recalled(record.partition, record.key, record.value, self._reader, wall_ms))
            except (SchemaPending, SchemaUnavailable):
                reading.unread = records[index:]
                break
            except DecodeError as error:
                self._passed_over.add(record, error)
        self._hold(reading, bool(reading.unread))
        return facts

    def _log_wait(self, reading: _Recall, now_s: float) -> None:
        waited_s = now_s - reading.moved_s
        reading.log_at_s = now_s + waited_s  # after 30 s, one minute, two minutes, …
        event_log.emit("recovery_waits", {"shard": reading.shard, "topic": self._topic, "seconds": round(waited_s)})

    def _hold(self, reading: _Recall, paused: bool) -> None:
        if reading.paused != paused:
            reading.paused = paused
            (self._side.pause if paused else self._side.resume)((self._topic, reading.shard))

    def _drop(self, shard: int) -> None:
        reading = self._reading.pop(shard, None)
        if reading is not None:
            self._hold(reading, False)  # a pause would outlive this reading
            self._side.drop((self._topic, shard))
