"""Reads whole topics to their ends, then follows them; no group, no commits.

Invariants: the position of a partition never falls, except if the log itself fell behind it (reported through on_gap). The
position passes over transaction markers, aborted records and compacted ends, so `caught_up(ends)` becomes true although the
last offsets hold nothing. One thread owns a Tail; only `ends` may be called by another one at the same time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import islice
from typing import Any, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamtask.config.kafka import KafkaSettings
from streamtask.errors import ClusterError
from streamtask.kafka.background_close import close, in_background
from streamtask.kafka.connection_errors import Heard, failed, refuse_absent
from streamtask.kafka.faults import error_of
from streamtask.kafka.headers import headers_of

# Another broker leads, or none yet: no client retries these by itself (seen one time in five on a new topic). Or the queried
# broker is dead, because it led when the client last looked.
LEADER_ELSEWHERE = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._DESTROY_BROKER,
)
STEP_RECORDS = 1_000  # taken at once when bytes are bounded: the next records may be larger than the last ones
LEADER_RECHECK_S = 0.02
LEADER_TRY_S = 3.0  # one query, of several that fit into the caller's time; an answer takes milliseconds

Place = tuple[str, int]  # (topic, partition)
Headers = tuple[tuple[str, bytes], ...]

# No leader answers for a partition: it has just moved, its broker has left the cluster, or the topic is very new. The next
# look shows.
MOVING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError._DESTROY_BROKER,
    }
)
MOVING_WAIT_S = 0.05


class TailRecord(NamedTuple):
    """One record. `headers` is () unless the Tail was made with_headers. `record[1:]` is what a decoder takes."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def plain_headers(headers: Any) -> Headers:
    """Headers as bytes: a null value becomes empty, no headers become ()."""
    if not headers:
        return ()
    return tuple((name, value or b"") for name, value in headers)


def log_offsets(
    admin: AdminClient, places: Iterable[Place], *, earliest: bool, timeout_s: float, read_committed: bool = False
) -> dict[Place, int]:
    """The first offset held (earliest), or else the end of each log, in one request per broker.

    read_committed  the end is the last stable offset, otherwise the high watermark (the uncommitted end)

    Raises KafkaException, also if no answer came in time.
    """
    spec = OffsetSpec.earliest() if earliest else OffsetSpec.latest()  # type: ignore[no-untyped-call]
    places = list(places)
    wanted = {TopicPartition(topic, partition): spec for topic, partition in places}
    if not wanted:
        return {}
    level = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED
    deadline = time.monotonic() + timeout_s
    while True:
        try_s = leader_try_s(deadline)
        futures = admin.list_offsets(wanted, isolation_level=level, request_timeout=try_s)
        try:
            until_s = time.monotonic() + try_s
            return {
                (part.topic, part.partition): offset_of(result_of(future, until_s)) for part, future in futures.items()
            }
        except KafkaException as error:
            held = error_of(error)
            if held is None or held.code() not in LEADER_ELSEWHERE or time.monotonic() >= deadline:
                raise
        look_at_leaders(admin, {topic for topic, _ in places}, deadline)
        time.sleep(LEADER_RECHECK_S)


def offset_of(answer: Any) -> int:
    """The offset in one partition's answer. Raises KafkaException if there is none: after a broker has thawed, an answer
    without an error was seen that says -1001 (librdkafka's "invalid"). As a log end it would be reached at once.
    """
    offset = int(answer.offset)
    if offset < 0:
        raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, f"an answer without an offset ({offset})"))
    return offset


def leader_try_s(deadline: float) -> float:
    """How long one query to leaders may take, so that another one, after a look-up of the leaders, fits before `deadline`."""
    return max(min((deadline - time.monotonic()) / 2, LEADER_TRY_S), 0.05)


def look_at_leaders(client: AdminClient | Consumer, topics: Iterable[str], deadline: float) -> None:
    """Have the client look up the leaders of these topics.

    For topics that it does not read, a client keeps asking the broker that led them before it died, or keeps "no leader",
    until its metadata is minutes old (librdkafka; a claim hung for that long).
    """
    for topic in topics:
        with contextlib.suppress(KafkaException):  # the caller has its own error to report
            client.list_topics(topic, timeout=max(deadline - time.monotonic(), 0.25))


def asking(properties: Mapping[str, Any], topics: Iterable[str], timeout_s: float) -> AdminClient:
    """An AdminClient that is connected to its brokers, if there are any: if queried for log offsets before that, it does
    not answer for 3 s, one time in eight.
    """
    admin = AdminClient(dict(properties))
    look_at_leaders(admin, islice(topics, 1), leader_try_s(time.monotonic() + timeout_s) + time.monotonic())
    return admin


def result_of(future: Future[Any], deadline: float) -> Any:
    """The future's result by `deadline` (monotonic seconds). Raises KafkaException, _TIMED_OUT if there is none."""
    try:
        # A little longer than the request's own timeout, so that its error is the visible one.
        return future.result(max(0.0, deadline - time.monotonic()) + 0.25)
    except FutureTimeout:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer in time")) from None


class Tail:
    """Reads `sources` from their starts, then follows them.

    sources       what to read whole: names of topics, or places (topic, partition); or a mapping {place: next offset},
                  where a negative offset is the start
    with_headers  False: none, because headers cost 0.3 µs a record; True: all; or the names of topics whose headers to read
    on_gap        on_gap(place, wanted, found): the log did not hold `wanted` any more (retention) or not yet (truncated);
                  reading continues at `found`
    on_error      receives the text of an error that the reader cannot recover from; it keeps trying
    log_starts    log_starts(places): the known first offsets of places whose position is not in the log; called again at
                  each poll. For a thread that must not wait; without it a poll queries the brokers
    """

    def __init__(
        self,
        settings: KafkaSettings,
        sources: Iterable[str | Place] | Mapping[Place, int],
        *,
        read_committed: bool = True,
        with_headers: bool | Collection[str] = False,
        timeout_s: float = 10.0,
        on_gap: Callable[[Place, int, int], None] | None = None,
        on_error: Callable[[str], None] | None = None,
        log_starts: Callable[[Collection[Place]], Mapping[Place, int]] | None = None,
    ) -> None:
        self._settings = settings
        self._read_committed = read_committed
        self._known_starts = log_starts
        # Topics whose records are returned with headers; None: all.
        self._headed = None if with_headers is True else () if with_headers is False else frozenset(with_headers)
        self._timeout_s = timeout_s
        self._on_gap = on_gap
        self._on_error = on_error
        self._admin: AdminClient | None = None
        self._positions: dict[Place, int] = {}
        self._lost: dict[Place, int] = {}  # places whose position is not in the log; poll finds where to continue
        self._topics: tuple[str, ...] = ()
        self._heard = Heard(settings.on_error, tell=on_error)
        self._paused: set[Place] = set()
        self._consumer = self._client()
        try:
            if isinstance(sources, Mapping):
                self._assign(sources)
            else:
                named = tuple(sources)
                self._topics = tuple(source for source in named if isinstance(source, str))
                self._assign({source: OFFSET_BEGINNING for source in named if not isinstance(source, str)})
                self.refresh()
        except BaseException:
            self.close()
            raise
        if log_starts is not None:
            self._admin = None  # the caller who knows them has its own client

    def _client(self) -> Consumer:
        return Consumer(self._settings.tail(read_committed=self._read_committed) | {"error_cb": self._heard})

    def renew(self) -> None:
        """Continue with a new client, at the same positions. Queries no broker. What the old one has fetched is fetched again.

        For a topic that was deleted and recreated: a client may keep the leaders of the old topic for as long as it lives
        (tests/contract/test_topics_made_anew.py).
        """
        old, self._consumer = self._consumer, self._client()
        in_background("close-tail", lambda: close(old))
        self._consumer.incremental_assign([TopicPartition(*place, offset) for place, offset in self._positions.items()])
        self.pause(self._paused)

    def refresh(self) -> list[Place]:
        """Also read partitions that were added to the whole topics since, from their start. Returns them.

        Raises Unreachable or TopicsMissing.
        """
        found: dict[Place, int] = {}
        try:
            # All at once: one request, whatever their number.
            known = self._consumer.list_topics(timeout=self._timeout_s).topics if self._topics else {}
        except KafkaException as error:
            raise self._failed("no broker of {} answered", error) from None
        refuse_absent(known, self._topics, self._admin_client() if self._topics else None)
        for topic in self._topics:
            for partition in known[topic].partitions:
                if (topic, partition) not in self._positions:
                    found[topic, partition] = OFFSET_BEGINNING
        self._assign(found)
        return list(found)

    def _assign(self, places: Mapping[Place, int]) -> None:
        if not places:
            return
        # Explicit starts: the client resolves a logical one partition by partition, and an empty log would leave it
        # unresolved in `positions`.
        unknown = [place for place, offset in places.items() if offset < 0]
        begin = self._log_starts(unknown) if unknown else {}
        starts = {place: begin.get(place, offset) for place, offset in places.items()}
        self._consumer.incremental_assign([TopicPartition(*place, offset) for place, offset in starts.items()])
        self._positions.update(starts)

    def add(self, starts: Mapping[Place, int]) -> None:
        """Also read these places from these offsets, none of them negative. Queries no broker."""
        assert all(offset >= 0 for offset in starts.values()), f"{starts}: explicit offsets"
        self._assign(starts)

    def drop(self, places: Iterable[Place]) -> None:
        """Stop reading these places."""
        gone = [place for place in places if place in self._positions]
        self._consumer.incremental_unassign([TopicPartition(*place) for place in gone])
        for place in gone:
            del self._positions[place]
            self._lost.pop(place, None)
            self._paused.discard(place)

    def pause(self, places: Collection[Place]) -> None:
        """Fetch nothing of these places until `resume`; records fetched before may still come."""
        self._paused.update(places)
        self._consumer.pause([TopicPartition(*place) for place in places])

    def resume(self, places: Collection[Place]) -> None:
        """Continue where `pause` stopped."""
        self._paused.difference_update(places)
        self._consumer.resume([TopicPartition(*place) for place in places])

    def _log_starts(self, places: list[Place]) -> dict[Place, int]:
        """Retries while a leader moves (or its topic is very new). Raises Unreachable."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                admin = self._admin_client({topic for topic, _ in places})
                return log_offsets(admin, places, earliest=True, timeout_s=self._timeout_s)
            except KafkaException as error:
                held = error_of(error)
                outdated = held is not None and held.code() == KafkaError._NOENT
                if held is None or not (outdated or held.code() in MOVING) or time.monotonic() >= deadline:
                    raise self._failed("no log starts from {}", error) from None
                if outdated:
                    # The partition was added after this client looked up its topic: by itself it looks again only after
                    # minutes.
                    self._admin = None
            time.sleep(MOVING_WAIT_S)

    def _failed(self, what: str, error: KafkaException) -> ClusterError:
        if self._admin is not None:
            self._admin.poll(0)  # serves error_cb
        elif not self._positions:  # nothing is assigned: no record is lost
            self._consumer.poll(0)
        return failed(what.format(self._settings.bootstrap), error, self._heard)

    def _admin_client(self, topics: Iterable[str] = ()) -> AdminClient:
        if self._admin is None:
            named = (*topics, *self._topics, *(topic for topic, _ in self._positions))
            self._admin = asking(self._settings.admin() | {"error_cb": self._heard}, named, self._timeout_s)
        admin = self._admin
        admin.poll(0)  # serves error_cb: nothing else does, and its errors would pile up
        return admin

    def poll(self, records_max: int, timeout_s: float, bytes_max: int | None = None) -> list[TailRecord]:
        """Records in the order of their partitions; [] if none came within timeout_s.

        bytes_max  approximate limit of their values: no more records are taken once it is reached
        """
        if self._lost:
            self._find_again()
        consumer = self._consumer
        # consume(n, t) returns only when n records are there or t is over, so wait for the first one alone.
        first = consumer.poll(timeout_s)
        if first is None:
            return []
        messages = [first]
        if records_max > 1:
            messages += (
                consumer.consume(records_max - 1, 0)
                if bytes_max is None
                else _within(consumer, records_max - 1, bytes_max, len(first.value() or b""))
            )
        positions, headed = self._positions, self._headed
        records: list[TailRecord] = []
        append = records.append
        for message in messages:
            if message.error() is not None:
                self._hear(message)
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None
            assert partition is not None
            assert offset is not None
            positions[topic, partition] = offset + 1
            headers = plain_headers(headers_of(message)) if headed is None or topic in headed else ()
            append(
                TailRecord(topic, partition, offset, message.timestamp()[1], message.key(), message.value(), headers)
            )
        return records

    def _hear(self, message: Any) -> None:
        """Handle an event in place of a record: the end of a partition, a lost position, an error."""
        error = message.error()
        place = (message.topic(), message.partition())
        if error.code() == KafkaError._PARTITION_EOF:
            # Its offset is the next one to fetch: past markers and compacted ends, which no record reports.
            if message.offset() > self._positions.get(place, 0):
                self._positions[place] = message.offset()
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if place in self._positions:
                self._lost[place] = self._positions[place]
        elif self._on_error is not None and error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:
            # Ignored: the client looks for a coordinator of the group that it is never a member of.
            self._on_error(f"{error.name()}: {error.str()}")

    def _find_again(self) -> None:
        """Continue where the log is: at its start if that has passed our position, or if the log ends before it (a topic
        restored or truncated: it now holds something other than what was read).
        """
        try:
            if self._known_starts is not None:
                begin: Mapping[Place, int] = self._known_starts(self._lost)
            else:
                begin = log_offsets(self._admin_client(), self._lost, earliest=True, timeout_s=self._timeout_s)
            for place, wanted in [(place, wanted) for place, wanted in self._lost.items() if place in begin]:
                # After this error the client neither seeks nor resumes (measured), so assign again.
                self._consumer.incremental_unassign([TopicPartition(*place)])
                self._consumer.incremental_assign([TopicPartition(*place, begin[place])])
                self._positions[place] = begin[place]
                del self._lost[place]
                if self._on_gap is not None:
                    self._on_gap(place, wanted, begin[place])
        except KafkaException as error:
            if self._on_error is not None:
                self._on_error(f"cannot find the log start: {error_of(error)}")

    def positions(self) -> dict[Place, int]:
        """{place: next offset to read}."""
        return dict(self._positions)

    def ends(self, *, read_committed: bool | None = None) -> dict[Place, int]:
        """{place: present end of the log}: the last stable offset if read_committed (default: as this Tail reads),
        otherwise the high watermark. Raises Unreachable.
        """
        level = self._read_committed if read_committed is None else read_committed
        try:
            return log_offsets(
                self._admin_client(), self.positions(), earliest=False, timeout_s=self._timeout_s, read_committed=level
            )
        except KafkaException as error:
            raise self._failed("no log ends from {}", error) from None

    def caught_up(self, ends: Mapping[Place, int]) -> bool:
        """True when everything below `ends` was read (or holds nothing)."""
        positions = self._positions
        return all(positions.get(place, -1) >= end for place, end in ends.items())

    def close(self) -> None:
        """Without a group there is none to leave, so this queries no broker."""
        self._consumer.close()
        self._admin = None

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _within(consumer: Consumer, records_max: int, bytes_max: int, held: int) -> list[Message]:
    """Take what is there, without waiting, until about bytes_max are taken, of which `held` were taken before."""
    messages: list[Message] = []
    while len(messages) < records_max and held < bytes_max:
        each = held // (len(messages) + 1) or 1
        wanted = min(records_max - len(messages), max(1, (bytes_max - held) // each), STEP_RECORDS)
        found = consumer.consume(wanted, 0)
        messages += found
        held += sum(len(message.value() or b"") for message in found)
        if len(found) < wanted:
            break
    return messages
