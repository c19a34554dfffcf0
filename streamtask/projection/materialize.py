"""Records in, rows out: folds the records of the tail into what is known, and writes rows and offsets together.

A request is its task's CREATED with version 0; a status event has version = offset + 1. core/fold.py decides which of two
facts about a task stands; this module only asks it, and keeps the tenant, which only the request carries. It runs in the
tail thread and nowhere else.

`peek_status` reads a status event (its JSON is served unchanged): a column is filled when the field has the right type. An
event that a later one of the same batch overtakes is not read at all when there is no listener (`_Later`): two of three in
a restore. A request is validated when its row is needed (10 µs each).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import orjson

from streamtask.codec import RequestDecoder, decode_control, peek_request, peek_status
from streamtask.codec.avro import RESPONSE
from streamtask.codec.reader import PLAIN, Reader
from streamtask.codec.wire import BINARY, time_text
from streamtask.config import TopicNames
from streamtask.core.fold import stands
from streamtask.domain.identity import Origin, origin_text
from streamtask.domain.model import PRIORITY_MAX, PRIORITY_MIN, RequestRecord, TaskStatus, message_of, to_ms
from streamtask.errors import DecodeError
from streamtask.projection.feed import Heard
from streamtask.projection.store import Known, Partition, Row, Store

WRITTEN_BYTES = 1 << 24  # 16 MB while a view restores: with a million tasks, 6 % of the others are asked about


class Record(Protocol):
    """A record as the tail returns it (kafka.tail.TailRecord)."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp_ms(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Any: ...


class _Event(NamedTuple):
    """A status event before it becomes a row: what folding needs, and the sources of the rest. updated_ms is not read,
    because folding needs it of requests only."""

    task_id: str
    status: str
    updated_ms: int
    version: int
    origin: str
    tenant: str | None
    record: Record
    document: dict[str, Any]
    body: bytes  # the event as JSON: the record's value, or its translation from Avro


class _Later:
    """Recognises the status events that this one overtakes, earlier in the same batch: they contain the same task_id, CREATED
    or RUNNING, and the same origin, at the positions where our writers put them (codec/status.py). By rule 2 of core/fold.py
    they do not stand beside this one. Takes 0.4 µs instead of 4; an event in another spelling is read and folded.
    """

    __slots__ = ("offset", "statuses", "tail")

    def __init__(self, event: _Event) -> None:
        self.offset = event.record.offset
        self.statuses = _BEFORE_CREATED if event.status == _CREATED else _BEFORE_OTHERS
        # At the end of a JSON object and after a comma, this can only be the object's own last member.
        self.tail = b',"origin":"%b"}' % event.origin.encode()


_CREATED = TaskStatus.CREATED.value
_HEAD_BEGIN, _HEAD_END = b'{"task_id":"', b'","status":"'
_ID_END = len(_HEAD_BEGIN) + 36
_HEAD_BYTES = _ID_END + len(_HEAD_END)
_BEFORE_CREATED = frozenset({b'created"'})
_BEFORE_OTHERS = frozenset({b'created"', b'running"'})
_STATUS_END = _HEAD_BYTES + 8


class _Asked:
    """A request before it becomes a row: what folding needs. It needs updated_ms only where two requests have the same
    task_id."""

    __slots__ = ("_made", "_make", "origin", "record", "task_id")

    status = TaskStatus.CREATED.value
    version = 0
    tenant = None

    def __init__(self, task_id: str, origin: str, record: Record, make: Callable[[Record], Row]) -> None:
        self.task_id, self.origin, self.record = task_id, origin, record
        self._make = make
        self._made: Row | None = None

    @property
    def updated_ms(self) -> int:
        return self.row().updated_ms

    def row(self) -> Row:
        if self._made is None:
            self._made = self._make(self.record)
        return self._made


Fact = Row | _Event | _Asked


class Folded(NamedTuple):
    """What a batch changes: whole rows, tenants of known tasks, and the tasks whose row changed."""

    rows: list[Row]
    tenants: dict[str, str]
    changed: list[str]


@dataclass(slots=True)
class Tally:
    """What was read since this process started."""

    requests: int = 0
    events: int = 0
    cancels: int = 0
    unreadable: int = 0  # not decodable, or without a task: in tasks.dead, or written by others


class Materializer:
    """Folds records into a store. `apply` is one local transaction.

    reader   for status events: what the workers wrote must be understood, so it may raise Unreachable
    lenient  for requests and control messages, which anyone may write: the workers deal with what it does not understand
    """

    def __init__(
        self,
        store: Store,
        names: TopicNames,
        cluster_id: str,
        *,
        locale: str = "en",
        reader: Reader = PLAIN,
        lenient: Reader = PLAIN,
    ) -> None:
        self._store = store
        self._reader = reader
        self._names = names
        self._locale = locale
        self._lenient = lenient
        self._decoder = RequestDecoder(names, cluster_id, lenient)
        self._band_of_name = {band.name: index for index, band in enumerate(names.bands)}
        self._band_of_topic = {topic: band for band, topic in enumerate(names.requests)}
        self.tally = Tally()
        self._known: dict[str, Known] = {}  # before the last `fold`
        self._written: bytearray | None = None  # see `restoring`

    def apply(
        self, records: Sequence[Record], offsets: Mapping[Partition, int], feed: list[Heard] | None = None
    ) -> list[str]:
        """Fold these records and move to `offsets`, both or neither. Returns the tasks whose row changed.

        feed  gets every status event that changed a row, in order; the rows know only the last one
        """
        folded = self.fold(self.read(records, every=feed is not None), feed)
        self._store.apply(folded.rows, offsets, folded.tenants)
        return folded.changed

    def restoring(self, into_empty: bool) -> None:
        """A restore begins (True: the store has no rows), or has ended (False).

        While an empty store is filled, it is asked only about tasks that may have a row by now, because a look-up of a task
        that has none takes as long as any (2 µs of 26 a task). A task that was written marks one byte of WRITTEN_BYTES; one
        that shares it is asked about without need, which is all that can go wrong.
        """
        self._written = bytearray(WRITTEN_BYTES) if into_empty else None

    def read(self, records: Sequence[Record], *, every: bool = False) -> list[Fact]:
        """The facts in these records; every: including overtaken ones. Does not access the store."""
        if every:
            return [fact for record in records if (fact := self._fact(record)) is not None]
        return self._lasting(records)

    def fold(self, facts: Sequence[Fact], feed: list[Heard] | None = None) -> Folded:
        """What these facts change, for Store.apply. Apply nothing else in between."""
        known = self._known = self._look_up({fact.task_id for fact in facts})
        latest: dict[str, Fact] = {}
        asked: dict[tuple[str, str], str] = {}  # (task_id, origin): the tenant in that request
        for fact in facts:
            task_id = fact.task_id
            if fact.tenant is not None:
                asked[task_id, fact.origin] = fact.tenant
            held = latest.get(task_id) or known.get(task_id)
            if held is None or stands(held, fact):
                latest[task_id] = fact
                if feed is not None and type(fact) is _Event:
                    feed.append(heard(fact.record, fact.document, fact.body))
        # Only facts that stand at the end become rows: most events of a long batch are overtaken within it.
        rows = [self._row(fact) for fact in latest.values()]
        tenants: dict[str, str] = {}
        for (task_id, origin), tenant in asked.items():
            held = latest.get(task_id) or known.get(task_id)
            if held is not None and held.origin == origin and held.tenant is None:
                tenants[task_id] = tenant
        return Folded(rows, tenants, list(latest))

    def _look_up(self, task_ids: set[str]) -> dict[str, Known]:
        written = self._written
        if written is None:
            return self._store.known(task_ids)
        places = [(hash(task_id) % WRITTEN_BYTES, task_id) for task_id in task_ids]
        known = self._store.known([task_id for place, task_id in places if written[place]])
        for place, _ in places:
            written[place] = 1
        return known

    def heard_again(self, records: Sequence[Record]) -> list[Heard]:
        """The feed of the records that were applied last, for listeners that registered meanwhile."""
        counted = replace(self.tally)
        facts = self.read(records, every=True)
        self.tally = counted
        latest: dict[str, Fact] = {}
        out: list[Heard] = []
        for fact in facts:
            held = latest.get(fact.task_id) or self._known.get(fact.task_id)
            if held is None or stands(held, fact):
                latest[fact.task_id] = fact
                if type(fact) is _Event:
                    out.append(heard(fact.record, fact.document, fact.body))
        return out

    def _lasting(self, records: Sequence[Record]) -> list[Fact]:
        """All facts that may stand. Reads from the last record to the first, because later ones show what is overtaken."""
        topic = self._names.status
        facts: list[Fact] = []
        later: dict[bytes, _Later] = {}  # by the first bytes of the event: its task_id in our writers' spelling
        overtaken = 0
        for record in reversed(records):
            if record.topic != topic:
                fact = self._fact(record)
                if fact is not None:
                    facts.append(fact)
            else:
                value = record.value or b""
                head = value[:_HEAD_BYTES]
                over = later.get(head)
                if (
                    over is not None
                    and value[_HEAD_BYTES:_STATUS_END] in over.statuses
                    and value.endswith(over.tail)
                    and record.offset < over.offset
                ):
                    overtaken += 1
                    continue
                event = self._status(record)
                if event is not None:
                    facts.append(event)
                    if over is None and event.origin and head[_ID_END:] == _HEAD_END and head.startswith(_HEAD_BEGIN):
                        later[head] = _Later(event)
        self.tally.events += overtaken
        facts.reverse()
        return facts

    def _fact(self, record: Record) -> Fact | None:
        if record.topic == self._names.status:
            return self._status(record)
        band = self._band_of_topic.get(record.topic)
        if band is not None:
            return self._request(band, record)
        if record.topic == self._names.control and record.value is not None:
            try:
                decode_control(record.key, record.value, self._lenient)
                self.tally.cancels += 1
            except DecodeError:
                self.tally.unreadable += 1
        return None

    def _status(self, record: Record) -> _Event | None:
        try:
            document, body = read_status(record, self._reader)
        except DecodeError:
            self.tally.unreadable += 1
            return None
        self.tally.events += 1
        document.pop("result", None)  # not needed here, and `body` has it: 900 KB of `[[],[],…]` decode to 25 MB
        return _Event(
            document["task_id"],
            document["status"],
            0,
            record.offset + 1,
            _text(document.get("origin")) or "",
            None,
            record,
            document,
            body,
        )

    def _row(self, fact: Fact) -> Row:
        if type(fact) is _Asked:
            return fact.row()
        if type(fact) is Row:
            return fact
        assert type(fact) is _Event, f"a fact is one of three kinds: {fact}"
        return self._row_of(fact)

    def _row_of(self, event: _Event) -> Row:
        record, document = event.record, event.document
        priority = document.get("priority")
        created_ms = _ms(document.get("created_at"), record.timestamp_ms)
        return Row(  # positional: twelve keywords would cost a microsecond
            event.task_id,
            event.body,
            event.status,
            _text(document.get("task_type")),
            None,
            priority if type(priority) is int and PRIORITY_MIN <= priority <= PRIORITY_MAX else None,
            created_ms,
            max(_ms(document.get("updated_at"), record.timestamp_ms), created_ms),
            event.version,
            event.origin,
            record.partition,
            self._band_of_name.get(event.origin.partition("-")[0], -1),
        )

    def _request(self, band: int, record: Record) -> Row | _Asked | None:
        document = peek_request(record.value)
        if document is not None and document.get("tenant") is None:  # only a valid request has a tenant
            self.tally.requests += 1
            origin = origin_text(self._names.bands[band].name, record.partition, record.offset)
            return _Asked(document["task_id"], origin, record, self._created)
        request = self._decoded(record)
        if not request.task_id:
            self.tally.unreadable += 1
            return None
        self.tally.requests += 1
        return created_row(request, self._names, self._locale)

    def _created(self, record: Record) -> Row:
        return created_row(self._decoded(record), self._names, self._locale)

    def _decoded(self, record: Record) -> RequestRecord:
        return self._decoder.decode(
            self._band_of_topic[record.topic],
            record.partition,
            record.offset,
            record.timestamp_ms,
            record.key,
            record.value,
            record.headers,
        )


def read_status(record: Record, reader: Reader) -> tuple[dict[str, Any], bytes]:
    """A status event as `peek_status` reads it, and its JSON bytes. Raises DecodeError."""
    body = record.value or b""
    if body and body[0] in BINARY:
        body = reader.json(RESPONSE, body)
    return peek_status(body), body


def heard(record: Record, document: Mapping[str, Any], body: bytes) -> Heard:
    """The result of `read_status` as an event of the feed."""
    return Heard(
        record.partition,
        record.offset,
        document["task_id"],
        document["status"],
        _text(document.get("task_type")),
        _text(document.get("origin")) or "",
        body,
    )


def created_row(record: RequestRecord, names: TopicNames, locale: str) -> Row:
    """The row of a task of which only the request is known: CREATED, version 0."""
    request = record.request
    origin = str(Origin(names.bands[record.band].name, record.partition, record.offset))
    task_type = None if request is None else request.task_type
    created_at = time_text(record.created_ms)
    document: dict[str, Any] = {
        "task_id": record.task_id,
        "status": TaskStatus.CREATED.value,
        "created_at": created_at,
        "updated_at": created_at,
        "message": message_of(TaskStatus.CREATED, locale),
        "task_type": task_type,
        "priority": record.priority,
        "labels": None if request is None else request.labels,
        "origin": origin,
    }
    return Row(
        task_id=record.task_id,
        body=orjson.dumps({name: held for name, held in document.items() if held is not None}),
        status=TaskStatus.CREATED.value,
        task_type=task_type,
        tenant=None if request is None else request.tenant,
        priority=record.priority,
        created_ms=record.created_ms,
        updated_ms=record.created_ms,
        version=0,
        origin=origin,
        partition=record.partition,
        band=record.band,
    )


def _text(held: Any) -> str | None:
    return held if type(held) is str else None


_SECONDS_MAX = 4_096  # number of cached seconds; when the cache is full, it is emptied
_seconds: dict[str, int] = {}


def _ms(held: Any, otherwise: int) -> int:
    """The milliseconds of a time in wire format; `otherwise` when it is not a time.

    For a time in our own writers' spelling, `2026-11-24T07:26:00.123Z`, the seconds are looked up: 0.3 µs instead of 0.8.
    """
    if type(held) is not str:
        return otherwise
    if len(held) == 24 and held[19] == "." and held[23] == "Z":
        second, millis = _seconds.get(held[:19]), held[20:23]
        if second is not None and millis.isdecimal() and millis.isascii():
            return second + int(millis)
    try:
        when = datetime.fromisoformat(held)
    except ValueError:
        return otherwise
    if when.tzinfo is None:
        return otherwise
    ms = to_ms(when)
    if when.tzinfo is UTC:
        if len(_seconds) >= _SECONDS_MAX:
            _seconds.clear()
        _seconds[held[:19]] = ms - ms % 1_000
    return ms
