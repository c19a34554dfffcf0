"""The broker calls of a claim, one function each: texts in, texts out. The core decides their order and meaning.

Every call ends by its deadline and returns a Fault instead of raising. Two obvious clients are avoided:

- The admin client's listings of groups: an answer that comes after their timeout, or closing while one is open, aborts the
  whole process (an assertion in librdkafka 2.16, seen after a frozen broker thawed). A consumer that never joins, the
  *reader*, makes these queries instead. It reads uncommitted: that makes its offset queries unstable ones, and its log ends
  the high watermarks.
- The member's own synchronous commit(): it waits as long as a frozen broker is frozen (28 s measured), and inside a
  rebalance callback no other thread can interrupt it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.ports import UNKNOWN, Cell, Committed, Fault, FaultKind, OffsetCommit, Settled
from streamtask.kafka.faults import Call, error_of, fault
from streamtask.kafka.tail import LEADER_ELSEWHERE, LEADER_RECHECK_S, leader_try_s, look_at_leaders

VISIBLE_RECHECK_S = 0.003  # a plain commit takes 0.5-8 ms
PROBE_S = 0.5  # to tell whether the broker is away or an open transaction blocks the offsets
# The reader keeps what it knew of a topic for minutes. After a freeze of all brokers it had seen the topics without their
# partitions, and every claim failed for that long.
_METADATA_OLD = frozenset(
    {*LEADER_ELSEWHERE, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART}
)
_EARLIEST, _LATEST = -2, -1  # the protocol's special timestamps: offsets_for_times passes them on (all bands at once)


def reader(settings: KafkaSettings, group: str) -> Consumer:
    """A consumer that queries the group's offsets and the logs' bounds, and never joins, reads or commits."""
    return Consumer(settings.tail(read_committed=False) | {"group.id": group})


def cells_of(names: TopicNames, shards: Iterable[int]) -> dict[tuple[str, int], Cell]:
    """{(topic, partition): cell} of all bands of these shards."""
    return {(topic, shard): (band, shard) for shard in shards for band, topic in enumerate(names.requests)}


def _offsets(consumer: Consumer, places: Iterable[tuple[str, int]], *, timeout_s: float) -> list[TopicPartition]:
    """Committed offsets: stable ones if the consumer reads committed. Raises KafkaException: of the call, or the first one
    of a partition.
    """
    parts = consumer.committed([TopicPartition(*place) for place in places], timeout=max(timeout_s, 0.05))
    for part in parts:
        if part.error is not None:
            raise KafkaException(part.error)
    return parts


def _log_bound(
    consumer: Consumer, places: Iterable[tuple[str, int]], bound: int, *, deadline: float
) -> dict[tuple[str, int], int]:
    """The first offset held, or the end, of each log. Raises KafkaException."""
    wanted = [TopicPartition(*place, bound) for place in places]
    while True:
        try:
            parts = consumer.offsets_for_times(wanted, timeout=leader_try_s(deadline))
            for part in parts:
                if part.error is not None:
                    raise KafkaException(part.error)
            return {(part.topic, part.partition): part.offset for part in parts}
        except KafkaException as error:
            held = error_of(error)
            if held is None or held.code() not in _METADATA_OLD or time.monotonic() >= deadline:
                raise
        look_at_leaders(consumer, {part.topic for part in wanted}, deadline)
        time.sleep(LEADER_RECHECK_S)


def _committed(part: TopicPartition) -> tuple[int | None, str | None]:
    """A negative offset means none; an empty text counts as none."""
    return (part.offset, part.metadata or None) if part.offset >= 0 else (None, None)


def list_offsets(
    asker: Consumer, names: TopicNames, shards: Sequence[int], *, timeout_s: float
) -> dict[Cell, Committed] | Fault:
    """Claim 1: what is committed now, ignoring pending transactions."""
    cells = cells_of(names, shards)
    try:
        parts = _offsets(asker, cells, timeout_s=timeout_s)
    except KafkaException as error:
        return fault(error, Call.LIST_OFFSETS)
    answer = {cell: Committed() for cell in cells.values()}
    for part in parts:
        answer[cells[part.topic, part.partition]] = Committed(*_committed(part))
    return answer


def _log_bounds(
    asker: Consumer, places: Iterable[tuple[str, int]], *, deadline: float, looks: bool
) -> dict[tuple[str, int], tuple[int, int]]:
    """{place: (first offset held, end)} of the places with a leader. Raises KafkaException.

    looks  look up the leaders first: a query that includes a partition without a leader gets no answer for any before its
           deadline
    """
    asked = _led(asker, places) if looks else list(places)
    try:
        starts = _log_bound(asker, asked, _EARLIEST, deadline=deadline) if asked else {}
        ends = _log_bound(asker, asked, _LATEST, deadline=deadline) if asked else {}
    except KafkaException:
        if looks or len(_led(asker, asked)) == len(asked):
            raise
        return _log_bounds(asker, asked, deadline=time.monotonic() + PROBE_S, looks=True)
    return {place: (starts[place], ends[place]) for place in asked}


def _led(asker: Consumer, places: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The places that have a leader, as far as brokers know. Raises KafkaException."""
    places = list(places)
    topics = {topic for topic, _ in places}
    found = {topic: asker.list_topics(topic, timeout=PROBE_S).topics[topic].partitions for topic in topics}
    return [(topic, number) for topic, number in places if number in found[topic] and found[topic][number].leader >= 0]


def read_settled(
    member: Consumer,
    asker: Consumer,
    names: TopicNames,
    shards: Sequence[int],
    *,
    timeout_s: float,
    looks: bool = False,
) -> dict[Cell, Settled] | Fault:
    """Claim 3: the stable committed offsets, waiting for pending ones, then the bounds of each log.

    looks  a partition had no leader the last time
    """
    cells = cells_of(names, shards)
    deadline = time.monotonic() + timeout_s
    try:
        parts = _offsets(member, cells, timeout_s=timeout_s)
    except KafkaException as error:
        held = error_of(error)
        if held is not None and held.code() == KafkaError._TIMED_OUT and _answers(asker, cells):
            return Fault(FaultKind.UNSTABLE, f"read settled: offsets are pending after {timeout_s} s")
        return fault(error, Call.READ_SETTLED)
    try:
        # A stable read may have taken all of the time; the bounds take a few milliseconds.
        deadline = max(deadline, time.monotonic() + PROBE_S)
        bounds = _log_bounds(asker, cells, deadline=deadline, looks=looks)
    except KafkaException as error:
        return fault(error, Call.READ_SETTLED)
    offsets = {(part.topic, part.partition): _committed(part) for part in parts}
    unknown = (UNKNOWN, UNKNOWN)
    return {
        cell: Settled(*offsets.get(place, (None, None)), *bounds.get(place, unknown)) for place, cell in cells.items()
    }


def _answers(asker: Consumer, places: Iterable[tuple[str, int]]) -> bool:
    """True if the coordinator answers the unstable query: then only pending offsets delay the stable one."""
    try:
        _offsets(asker, places, timeout_s=PROBE_S)
    except KafkaException:
        return False
    return True


def commit_plain(
    member: Consumer, asker: Consumer, names: TopicNames, offsets: Sequence[OffsetCommit], *, timeout_s: float
) -> Fault | None:
    """Claim 4: a commit of the member, fenced by its generation; then wait until the group shows exactly these texts.

    The caller's texts are unique (owner id and sequence), so seeing them proves the commit. A client that is no longer
    the member it was is STALE: the group does not know it, so no copy can land. Not visible by the deadline: DOUBT.
    """
    if not offsets:
        return None
    member_id = member.memberid()
    if not member_id:
        return Fault(FaultKind.STALE, "plain commit: not a member of the group")
    wanted = {(names.requests[item.band], item.shard): (item.offset, item.text or None) for item in offsets}
    parts = [TopicPartition(*place, offset, text or "") for place, (offset, text) in wanted.items()]
    deadline = time.monotonic() + timeout_s
    try:
        member.commit(offsets=parts, asynchronous=True)
    except KafkaException as error:
        return fault(error, Call.COMMIT_PLAIN)
    seen = "nothing"
    while True:
        try:
            listed = _offsets(asker, wanted, timeout_s=deadline - time.monotonic())
        except KafkaException as error:
            seen = str(error_of(error))
        else:
            if {(part.topic, part.partition): _committed(part) for part in listed} == wanted:
                return None
            seen = "other offsets"
        if member.memberid() != member_id:
            return Fault(FaultKind.STALE, f"plain commit: the group does not know member {member_id}")
        if time.monotonic() >= deadline:
            return Fault(FaultKind.DOUBT, f"plain commit: not visible after {timeout_s} s ({seen})")
        time.sleep(VISIBLE_RECHECK_S)
