"""What a claimed shard reads before it starts anything: tasks.control, and tasks.status where the position is not known.

Read in slices of the owner's loop, without a deadline; other shards go on. The end of both is the high watermark seen after
the claim, not the last stable offset: EndTxn is answered before its markers are written, so the last transaction of a
former owner may still become visible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from streamtask.codec import decode_control, peek_status
from streamtask.codec.reader import PLAIN, Reader
from streamtask.config import TopicNames
from streamtask.errors import DecodeError, SchemaPending, SchemaUnavailable, Unreachable
from streamtask.identity import canonical
from streamtask.kafka.settings import KafkaSettings
from streamtask.kafka.tail import Tail, TailRecord
from streamtask.model import ENDED, ControlAction, TaskStatus, to_ms
from streamtask.ports import Recalled, RecallStatus

SLICE_RECORDS = 2_000
ASIDE_MAX = 1_000  # wishes whose schema is not known
ASIDE_S = 0.05  # between two looks at them
OFFSET_BEGINNING = -2  # a Tail takes any negative offset for the beginning of the log
Ends = dict[tuple[str, int], int]


class ControlReader:
    """tasks.control from its start, followed for ever; tells which claims have it behind them."""

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        reader: Reader = PLAIN,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self._tail = Tail(settings, [names.control], on_error=on_error)
        self._reader = reader
        self._barriers: list[tuple[Ends | None, tuple[int, ...]]] = []  # ends None: no broker has told them yet
        self._aside: list[TailRecord] = []
        self._look_at = 0.0
        self._pending = False  # one of those may be understood soon
        self.undecodable = 0

    def await_end(self, shards: tuple[int, ...]) -> None:
        """These shards may start when everything that the topic holds now has been read."""
        self._barriers.append((None, shards))

    def poll(self) -> tuple[list[str], list[int]]:
        """(ids cancelled, shards whose barrier was reached); waits for nothing but the ends of a new barrier."""
        self._barriers = [(ends or _ends(self._tail), shards) for ends, shards in self._barriers]
        cancelled: list[str] = []
        if self._aside and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + ASIDE_S
            aside, self._aside, self._pending = self._aside, [], False
            self._read(aside, cancelled)
        self._read(self._tail.poll(SLICE_RECORDS, 0.0), cancelled)
        ready: list[int] = []
        for barrier in list(self._barriers):
            if barrier[0] is not None and not self._pending and self._tail.caught_up(barrier[0]):
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
                    self.undecodable += 1
                continue
            except DecodeError:
                self.undecodable += 1  # a wish about nobody: there is no task to tell it to
                continue
            if message.action is ControlAction.CANCEL:
                cancelled.append(message.task_id)

    def close(self) -> None:
        self._tail.close()


def _ends(tail: Tail) -> Ends | None:
    """The uncommitted ends; None while no broker answers (asked again at the next turn)."""
    try:
        return tail.ends(read_committed=False)
    except Unreachable:
        return None


@dataclass(slots=True)
class _Recall:
    shard: int
    epoch: int
    tail: Tail
    ends: Ends | None = None
    unread: list[TailRecord] = field(default_factory=list)  # from the one on whose schema is not known yet


class StatusRecall:
    """Partitions of tasks.status, each read once from its start to the end it had when its shard was claimed."""

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        reader: Reader = PLAIN,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self._reader = reader
        self._on_error = on_error
        self._settings = settings
        self._names = names
        self._reading: list[_Recall] = []
        self._waiting: list[RecallStatus] = []  # not begun: no broker has answered yet

    def begin(self, ask: RecallStatus) -> None:
        """Start over for this shard; an earlier reading of it is dropped."""
        self._drop(ask.shard)
        self._waiting.append(ask)

    def __bool__(self) -> bool:
        return bool(self._reading or self._waiting)

    def poll(self) -> list[tuple[int, int, list[Recalled], bool]]:
        """(shard, epoch, facts, done) of one slice for each reading; never waits."""
        out = []
        self._begin()
        for reading in list(self._reading):
            if reading.ends is None:
                reading.ends = _ends(reading.tail)
                continue
            facts = self._facts(reading)
            done = not reading.unread and reading.tail.caught_up(reading.ends)
            out.append((reading.shard, reading.epoch, facts, done))
            if done:
                self._drop(reading.shard)
        return out

    def _facts(self, reading: _Recall) -> list[Recalled]:
        records = reading.unread or list(reading.tail.poll(SLICE_RECORDS, 0.0))
        reading.unread = []
        facts = []
        for index, record in enumerate(records):
            try:
                fact = _fact(record.value, self._reader)
            except (SchemaPending, SchemaUnavailable):
                reading.unread = records[index:]
                break
            if fact is not None:
                facts.append(fact)
        return facts

    def _begin(self) -> None:
        while self._waiting:
            ask = self._waiting[0]
            try:
                place = (self._names.status, ask.shard)
                tail = Tail(self._settings, {place: OFFSET_BEGINNING}, on_error=self._on_error)
            except Unreachable:
                return
            self._reading.append(_Recall(ask.shard, ask.epoch, tail))
            del self._waiting[0]

    def close(self) -> None:
        for reading in list(self._reading):
            self._drop(reading.shard)

    def _drop(self, shard: int) -> None:
        self._waiting = [ask for ask in self._waiting if ask.shard != shard]
        for reading in [r for r in self._reading if r.shard == shard]:
            reading.tail.close()
            self._reading.remove(reading)


def _fact(value: bytes | None, reader: Reader) -> Recalled | None:
    if value is None:
        return None
    try:
        event = peek_status(value, reader)
    except SchemaUnavailable:
        raise
    except DecodeError:
        return None  # somebody else's bytes: they say nothing about a request of ours
    origin, task_id = event.get("origin"), canonical(str(event.get("task_id")))
    if not isinstance(origin, str) or task_id is None:
        return None
    return Recalled(
        origin,
        task_id,
        TaskStatus(event["status"]) in ENDED,
        int(event.get("attempt") or 0),
        _updated_ms(event.get("updated_at")),
    )


def _updated_ms(text: object) -> int:
    return to_ms(datetime.fromisoformat(text)) if isinstance(text, str) else 0
