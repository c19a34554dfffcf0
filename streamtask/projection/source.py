"""Where the view starts to read, and when it must start again: the Kafka side of the service.

A store with offsets continues from them. For an empty one, tasks.status is read from its start, and the bands only from
the workers' committed offsets, that is, what the workers have not finished (read uncommitted: an open transaction must not
delay the start; at worst a few finished requests are read too). A store that was filled from other topics (another
cluster, or topics that were deleted and created again) is emptied first: its offsets mean nothing for these topics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import orjson

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import ClusterError, Unreachable
from streamtask.kafka import admin
from streamtask.kafka.offset_queries import group_offsets, log_starts, topic_ends
from streamtask.kafka.tail import Tail, TailRecord
from streamtask.projection.store import Partition, Store
from streamtask.projection.view import OnGap, Retention

LOOK_S = 60.0  # interval of checks whether the topics are still the same
PAST_KBYTES = 4_096
_BEGINNING = -1  # for Tail, a negative offset means the beginning


class Facts(NamedTuple):
    """The topics of the view. identity: of the cluster and the topics, as the store keeps it."""

    cluster_id: str
    identity: str
    partitions: Mapping[str, int]
    retention: Retention


def topics_of(names: TopicNames) -> tuple[str, ...]:
    """The names of the topics that the view reads."""
    return (*names.requests, names.status, names.control)


def gather(kafka: KafkaSettings, names: TopicNames) -> Facts:
    """Ask the cluster about the view's topics. Raises TopicsMissing, Unreachable, ClusterError."""
    ids = admin.topic_ids(kafka, topics_of(names))
    facts = admin.cluster_facts(kafka, names)
    there = facts.topics
    return Facts(
        cluster_id=facts.cluster_id,
        identity=_identity(facts.cluster_id, ids),
        partitions={name: len(there[name].partitions) for name in ids},
        retention=Retention(
            status_ms=_retention_ms(there[names.status].config),
            requests_ms=_longest([_retention_ms(there[name].config) for name in names.requests]),
        ),
    )


class KafkaSource:
    """A Tail that knows where to start. Opened in the tail thread (`opener`), which alone uses it.

    note  called with texts for the operator: positions lost to retention, a store that was emptied
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames, store: Store, note: Callable[[str], None]) -> None:
        self._kafka = kafka
        self._names = names
        self._facts = gather(kafka, names)
        self._look_at = time.monotonic() + LOOK_S
        known = store.identity()
        if known != self._facts.identity:
            if known is not None:
                note("The store belongs to other topics (another cluster, or recreated ones): rebuilding it.")
            store.reset(self._facts.identity)
        bands = [(topic, shard) for topic in names.requests for shard in range(self._facts.partitions[topic])]
        begin = starts(self._facts.partitions, names, store.offsets(), lambda: group_offsets(kafka, names.group, bands))
        self._tail = Tail(
            kafka,
            within_logs(begin, log_starts(kafka, begin), topic_ends(kafka, self._facts.partitions), note),
            with_headers=names.requests,
            on_gap=lambda place, wanted, found: note(_gap(place, wanted, found)),
            on_error=note,
        )
        # A task with a status event needs no row of its request: written first, it would be written twice (40 µs, not 25).
        self._first = {place: end for place, end in self._tail.ends().items() if place[0] == names.status}
        self._paused = [place for place in begin if place not in self._first]
        self._tail.pause(self._paused)

    def poll(self, records_max: int, timeout_s: float, bytes_max: int | None = None) -> Sequence[TailRecord]:
        if self._paused and self._tail.caught_up(self._first):
            self._tail.resume(self._paused)
            self._paused = []
        return self._tail.poll(records_max, timeout_s, bytes_max)

    def positions(self) -> Mapping[Partition, int]:
        return self._tail.positions()

    def ends(self) -> Mapping[Partition, int]:
        return self._tail.ends()

    def high_watermarks(self) -> Mapping[Partition, int]:
        return self._tail.ends(read_committed=False)

    def stale(self) -> bool:
        """True when the topics changed since they were opened: created again under the same name, or with more partitions."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_S
        shards = min(count for name, count in self._facts.partitions.items() if name != self._names.control)
        try:
            ids = admin.topic_ids(self._kafka, topics_of(self._names))
            grown = admin.partition_count(self._kafka, self._names) != shards
        except Unreachable:
            return False  # cannot be decided now: check again later
        except ClusterError:
            return True  # topics are missing: opening the next source waits for them
        return grown or _identity(self._facts.cluster_id, ids) != self._facts.identity

    def close(self) -> None:
        self._tail.close()


def open_past(kafka: KafkaSettings, places: Mapping[Partition, int], on_gap: OnGap) -> Tail:
    """A tail that reads these partitions once more. It holds little memory, because there may be several (past.py)."""
    return Tail(replace(kafka, tail_kbytes=PAST_KBYTES), places, on_gap=on_gap)


def starts(
    partitions: Mapping[str, int],
    names: TopicNames,
    stored: Mapping[Partition, int],
    committed: Callable[[], Mapping[Partition, int]],
) -> dict[Partition, int]:
    """The offset to start at, per partition; negative: the beginning of the log.

    `committed` is only called for an empty store. A partition that a filled store does not know was added since then: it
    is read from its beginning.
    """
    begin = dict(stored) if stored else dict(committed())
    unfinished = {place: at for place, at in begin.items() if stored or place[0] in names.requests}
    return {
        (topic, number): unfinished.get((topic, number), _BEGINNING)
        for topic, count in partitions.items()
        for number in range(count)
    }


def within_logs(
    begin: Mapping[Partition, int],
    firsts: Mapping[Partition, int],
    ends: Mapping[Partition, int],
    note: Callable[[str], None],
) -> dict[Partition, int]:
    """The offsets to start at, each within its log; where one is not, the start of the log, and a note.

    An offset below the start: the view was stopped for longer than the topic keeps records. An offset beyond the end: the
    topic was truncated or restored, and what it holds now is not what was read.
    """
    out = {}
    for place, wanted in begin.items():
        out[place] = wanted if firsts[place] <= wanted <= ends[place] else firsts[place]
        if wanted >= 0 and out[place] != wanted:
            note(_gap(place, wanted, out[place]))
    return out


def _gap(place: Partition, wanted: int, found: int) -> str:
    return f"{place[0]}-{place[1]} no longer holds offset {wanted}: read on from {found}."


def _identity(cluster_id: str, ids: Mapping[str, str]) -> str:
    return orjson.dumps({"cluster": cluster_id, "topics": dict(ids)}, option=orjson.OPT_SORT_KEYS).decode()


def _retention_ms(config: Mapping[str, str]) -> int | None:
    """None: for ever, or unknown because the topic's settings may not be read (then nothing is forgotten early)."""
    text = config.get("retention.ms", "-1")
    return int(text) if text.isdigit() else None


def _longest(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None
