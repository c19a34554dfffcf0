"""Selects the dead letters to run again and builds their new requests. Pure.

It changes the document of a request, not its model, so that fields of a newer producer, which this version does not know,
are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic_core import from_json, to_json

from streamtask.codec import DeadRecord, RequestDecoder
from streamtask.codec.avro import REQUEST
from streamtask.codec.reader import PLAIN, Reader
from streamtask.codec.request import TASK_ID_HEADER
from streamtask.config import TopicNames
from streamtask.domain.identity import redriven
from streamtask.domain.model import LABELS_MAX, ErrorCode, RequestRecord, rfc3339, to_ms
from streamtask.domain.partitioner import partition_of

REDRIVE_OF = "redrive_of"
_DUPLICATE = "a second request for a task that was still open; to run it anyway, name its origin or the code duplicate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which dead letters to select. All given conditions must hold; None or empty: any.

    ids                 origins (`high-3@12345`) or task_ids of the old task
    since_ms, until_ms  when the task failed: from, and before
    text                part of the error text; upper and lower case are the same
    """

    ids: frozenset[str] = frozenset()
    task_type: str | None = None
    code: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    text: str | None = None

    @property
    def everything(self) -> bool:
        """True when no condition was given."""
        return self == Choice()


@dataclass(frozen=True, slots=True)
class Redrive:
    """A new task, ready to be sent. notes: texts about what it lacks of the old request."""

    letter: DeadRecord
    task_id: str
    task_type: str
    band: int
    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A letter that was selected but cannot be redriven. why: the reason as text."""

    letter: DeadRecord
    why: str


@dataclass(slots=True)
class Plan:
    """What a redrive would do. missing: ids without a dead letter."""

    ready: list[Redrive] = field(default_factory=list)
    known: list[Redrive] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def select(letters: Iterable[DeadRecord], choice: Choice) -> list[DeadRecord]:
    """The letters that match, except for the task type, which is only known when the request has been read."""

    def wanted(letter: DeadRecord) -> bool:
        at_ms = failed_ms(letter)
        return (
            (not choice.ids or letter.origin in choice.ids or letter.task_id in choice.ids)
            and (choice.code is None or letter.reason == choice.code)
            and (choice.since_ms is None or at_ms >= choice.since_ms)
            and (choice.until_ms is None or at_ms < choice.until_ms)
            and (choice.text is None or choice.text.lower() in letter.text.lower())
        )

    return [letter for letter in letters if wanted(letter)]


def failed_ms(letter: DeadRecord) -> int:
    """When the task failed, as its worker wrote, or else when the letter was written."""
    try:
        when = datetime.fromisoformat(letter.failed_at)
    except ValueError:
        return letter.timestamp_ms
    return letter.timestamp_ms if when.tzinfo is None else to_ms(when)


class Builder:
    """Builds the requests for dead letters of one cluster. `build` raises only errors of its reader's source of schemas.

    partitions  current number of partitions of a band
    """

    def __init__(self, names: TopicNames, cluster: str, partitions: int, reader: Reader = PLAIN) -> None:
        self._names = names
        self._partitions = partitions
        self._reader = reader
        self._decoder = RequestDecoder(names, cluster, reader)
        self._bands = {topic: band for band, topic in enumerate(names.requests)}

    def build(self, letter: DeadRecord, now_ms: int) -> Redrive | Refusal:
        """The new task for a letter, or why there is none."""
        band = self._bands.get(letter.source_topic)
        partition, offset, timestamp_ms = letter.source_partition, letter.source_offset, letter.source_timestamp_ms
        if band is None or partition is None or offset is None or timestamp_ms is None:
            return Refusal(letter, f"its headers do not name a request record of prefix {self._names.prefix}")
        if not 0 <= partition < self._partitions:
            return Refusal(letter, f"{letter.source_topic} no longer has partition {partition}")
        if letter.value is None:
            place = f"{letter.source_topic}-{partition}@{offset}"
            return Refusal(
                letter, f"only a reference: its {letter.value_bytes:,} bytes did not fit; they were at {place}"
            )
        record = self._decoder.decode(band, partition, offset, timestamp_ms, letter.key, letter.value, letter.headers)
        if record.request is None:
            assert record.problem is not None, "no request and no problem"
            return Refusal(letter, f"cannot be read: {record.problem[1]}")
        return self._redrive(letter, record, now_ms)

    def _redrive(self, letter: DeadRecord, record: RequestRecord, now_ms: int) -> Redrive | Refusal:
        request = record.request
        assert request is not None, "checked by build"
        old = letter.task_id or record.task_id
        labels = {**(request.labels or {}), REDRIVE_OF: old}
        if len(labels) > LABELS_MAX:
            return Refusal(letter, f"has {LABELS_MAX} labels already, so {REDRIVE_OF} cannot be added")
        notes = []
        document: dict[str, Any] = from_json(self._reader.json(REQUEST, record.value))
        task_id = redriven(self._names.dead, letter.partition, letter.offset, letter.timestamp_ms)
        document.pop("created_at", None)
        if record.expires_ms is not None and record.expires_ms <= now_ms:
            assert request.expires_at is not None
            notes.append(f"expires_at {rfc3339(request.expires_at)} has passed; omitted")
            del document["expires_at"]
        if letter.headers_dropped:
            notes.append(
                f"{letter.headers_dropped} headers of the request were too large for the dead letter and are lost"
            )
        document |= {"task_id": task_id, "labels": labels}
        # With a key that belongs to another partition, workers would warn of a producer that places keys wrongly.
        key = letter.key if letter.key and partition_of(letter.key, self._partitions) == record.partition else None
        # A task_id header names the old task; the field of the new request is enough.
        headers = [item for item in letter.headers if item[0] != TASK_ID_HEADER]
        topic = self._names.requests[record.band]
        value = to_json(document)
        return Redrive(
            letter,
            task_id,
            request.task_type,
            record.band,
            topic,
            record.partition,
            key,
            value,
            headers,
            tuple(notes),
        )

    def order(self, letter: DeadRecord) -> tuple[int, int, int, int]:
        """The sort key of letters by their request records: band, partition, offset."""
        partition = -1 if letter.source_partition is None else letter.source_partition
        offset = -1 if letter.source_offset is None else letter.source_offset
        return self._bands.get(letter.source_topic, -1), partition, offset, letter.offset

    def record(self, item: Redrive, offset: int, timestamp_ms: int) -> RequestRecord:
        """The request record that the redrive has become."""
        return self._decoder.decode(item.band, item.partition, offset, timestamp_ms, item.key, item.value, item.headers)


def plan(letters: Iterable[DeadRecord], choice: Choice, builder: Builder, now_ms: int) -> Plan:
    """What is ready or refused, in the order of the request records, so that tasks with the same ordering key start in order.

    `known` is still empty: `read_plan` asks Kafka which tasks are known.
    """
    found = Plan()
    seen: set[str] = set()
    chosen = select(letters, choice)
    for letter in sorted(chosen, key=builder.order):
        seen |= {letter.origin, letter.task_id}
        made = builder.build(letter, now_ms)
        if isinstance(made, Redrive) and choice.task_type is not None and made.task_type != choice.task_type:
            continue
        if isinstance(made, Refusal):
            found.refused.append(made)
        elif letter.reason == ErrorCode.DUPLICATE and choice.code is None and letter.origin not in choice.ids:
            found.refused.append(Refusal(letter, _DUPLICATE))
        else:
            found.ready.append(made)
    found.missing = sorted(choice.ids - seen)
    return found
