"""Fetches the facts of a live cluster for the judge, in rounds, in an order that makes each round consistent.

Tasks continue to run while the facts are read, so the order carries the proof. A round reads
  1. the committed offsets, then the ends of status and bands
  2. the bands to these ends, then the status events: the end of every request that the offsets have passed was committed
     in the same transaction or earlier, so it is below the status end, which was asked for later
  3. the dead letters, to their current end: the letter of a FAILED event that was read is committed together with it
  4. the bands again, to their current end: the request of every event and letter that was read is below it
and then the judge concludes. The ends are high watermarks: an open transaction holds the reader back until it is decided.
A whole audit is one round; an audit that follows a system repeats rounds.

The first round reads the dead letters also at its start, so that few FAILED tasks have to be remembered until theirs comes.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from streamtask.audit.judge import CLOCKS_MS, Judge
from streamtask.audit.report import Report, Violation
from streamtask.codec import RequestDecoder, decode_dead
from streamtask.codec.reader import PLAIN, Reader
from streamtask.codec.wire import time_text
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import DecodeError, Unreachable
from streamtask.kafka import admin
from streamtask.kafka.offset_queries import group_offsets, log_starts, offsets_at, topic_ends
from streamtask.kafka.tail import Place, Tail, TailRecord

TIMEOUT_S = 120.0
TAIL_KBYTES = 16_384  # prefetched by each of the three readers: part of the audit's memory
_RECORDS_MAX = 2_000
_WAIT_S = 0.2
_PATIENCE_S = 10.0
STOP_S = 5.0  # an audit that was stopped reads on for this long, to end with a whole round
_BEGINNING = -1  # for a Tail: the beginning of the log

T = TypeVar("T")


def run_audit(
    settings: KafkaSettings,
    names: TopicNames,
    *,
    timeout_s: float = TIMEOUT_S,
    reader: Reader = PLAIN,
    since_ms: int | None = None,
    on_violation: Callable[[Violation], None] | None = None,
) -> Report:
    """Read everything the prefix has on this cluster and judge it.

    timeout_s     gives up when nothing arrives for this long; `Report.unread` names what was not read then, and
                  nothing is concluded from missing records
    reader        of other formats than JSON; it must insist, because what cannot be read proves nothing
    since_ms      only records from then on
    on_violation  called for each violation as soon as it is found, also for those that the report only counts

    Raises Unreachable and TopicsMissing. Changes nothing: it joins no group and commits no offset.
    """
    judge = Judge(names, reader, since_ms=since_ms, on_violation=on_violation)
    waiting = Waiting(timeout_s)
    with Rounds(settings, names, judge, waiting, reader=reader, since_ms=since_ms) as rounds:
        rounds.round()
    report = judge.report()
    report.since = None if since_ms is None else time_text(since_ms)
    return report


class Waiting:
    """How long reading may get nothing. Calls `tick` while reading, a few times a second; waits little after `stop`."""

    def __init__(
        self, timeout_s: float, *, tick: Callable[[], None] | None = None, stop: threading.Event | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._tick = tick
        self._stop = stop
        self._last = time.monotonic()
        self._stopped_at: float | None = None

    @property
    def stopping(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def begin(self) -> None:
        self._last = time.monotonic()

    def goes_on(self, *, came: bool) -> bool:
        """False when it is time to give up."""
        if self._tick is not None:
            self._tick()
        now = time.monotonic()
        if came:
            self._last = now
        if self.stopping:
            self._stopped_at = self._stopped_at or now
            if now - self._stopped_at >= STOP_S:
                return False
        return now - self._last < self._timeout_s


class Rounds:
    """Reads one prefix for a judge, round after round. One thread owns it."""

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        judge: Judge,
        waiting: Waiting,
        *,
        reader: Reader = PLAIN,
        since_ms: int | None = None,
    ) -> None:
        self._settings = dataclasses.replace(settings, tail_kbytes=TAIL_KBYTES)
        self._names = names
        self._judge = judge
        self._waiting = waiting
        self._bands = {topic: band for band, topic in enumerate(names.requests)}
        self._begin: dict[Place, int] = {}
        self._committed: dict[Place, int | None] = {}  # of the last whole round
        self._status_ends: dict[Place, int] = {}
        self.whole = False  # the last round was read to its end, so that conclusions may be drawn
        self._tails: dict[str, Tail] = {}  # by what they read, a key of _topics
        self._topics = {"dead": (names.dead,), "bands": names.requests, "status": (names.status,)}
        self._decoder = RequestDecoder(names, self._ask(lambda: admin.cluster_id(settings)), reader)
        try:
            self._open(self._beginnings(since_ms))
        except BaseException:
            self.close()
            raise

    def round(self) -> None:
        """Read what there is now, then conclude. Raises Unreachable; the next round continues where this one stopped."""
        names = self._names
        places = self._ask(lambda: topic_ends(self._settings, names.requests))
        committed = self._ask(lambda: group_offsets(self._settings, names.group, places))
        ends = self._ends((names.status, *names.requests, names.dead))
        self._status_ends = {place: end for place, end in ends.items() if place[0] == names.status}
        first, self.whole = not self._committed, False
        self._tell_bounds(ends)
        if first:
            self._read("dead", ends)
        self._read("bands", ends)
        self._tell_bounds(ends)
        self._read("status", ends)
        self._read("dead", self._ends([names.dead]))
        ends |= self._ends(names.requests)
        self._read("bands", ends)
        self._committed = dict.fromkeys(places) | committed
        self._tell_bounds(ends)
        self._judge.conclude()
        self.whole = True

    def behind(self) -> int:
        """Number of unread offsets of the status topic, as of the start of this round."""
        positions = self._tails["status"].positions()
        return sum(max(0, end - positions[place]) for place, end in self._status_ends.items())

    # --- Where to begin -----------------------------------------------------------------------------------------------

    def _beginnings(self, since_ms: int | None) -> dict[Place, int]:
        """Where reading begins. Dead letters begin a little before `since`: a letter may be older than its event."""
        if since_ms is None:
            return dict.fromkeys(self._ask(lambda: topic_ends(self._settings, self._all())), _BEGINNING)
        others = (self._names.status, *self._names.requests)
        found = self._ask(lambda: offsets_at(self._settings, others, since_ms))
        earlier_ms = max(0, since_ms - CLOCKS_MS)
        return found | self._ask(lambda: offsets_at(self._settings, [self._names.dead], earlier_ms))

    def _all(self) -> tuple[str, ...]:
        return tuple(topic for topics in self._topics.values() for topic in topics)

    def _open(self, begin: Mapping[Place, int]) -> None:
        """Read from these places, too; reports to the judge what it will not see."""
        for what, topics in self._topics.items():
            known = self._tails[what].positions() if what in self._tails else {}
            tail = self._anew(what, {place: offset for place, offset in begin.items() if place[0] in topics})
            self._begin |= {place: offset for place, offset in tail.positions().items() if place not in known}
        dead = [place for place in self._begin if place[0] == self._names.dead]
        starts = self._ask(lambda: log_starts(self._settings, dead))
        cut = {place[1]: start for place, start in starts.items() if start == self._begin[place]}
        self._judge.starts(status=self._of(self._names.status), dead=cut)

    def _anew(self, what: str, more: Mapping[Place, int]) -> Tail:
        """A new reader that continues where the present one is, and begins at `more`."""
        held = self._tails.get(what)
        places = dict(more) if held is None else {**more, **held.positions()}
        tail = self._ask(partial(Tail, self._settings, places, with_headers=what != "status", on_gap=self._gap))
        self._tails[what] = tail
        if held is not None:
            held.close()
        return tail

    def _ends(self, topics: Iterable[str]) -> dict[Place, int]:
        """The current ends. Partitions that were added since the last call are read from now on, in this round: their events
        may be there before their requests are looked for."""
        ends = self._ask(lambda: topic_ends(self._settings, topics))
        self._grow(ends)
        return ends

    def _grow(self, places: Iterable[Place]) -> None:
        """Start to read partitions that were added."""
        if added := [place for place in places if place not in self._begin]:
            self._open(dict.fromkeys(added, _BEGINNING))

    def _gap(self, place: Place, wanted: int, found: int) -> None:
        topic, partition = place
        if found > wanted == self._begin[place]:
            self._begin[place] = found  # retention removed records before the first one was read
            if topic == self._names.status:
                self._judge.starts(status={partition: found}, dead={})
            elif topic == self._names.dead:
                self._judge.starts(status={}, dead={partition: found})
            return
        what = "removed before it was read" if found > wanted else "recreated or truncated"
        self._judge.unread(
            f"{topic} [{partition}]: offsets from {min(wanted, found)} were {what}. Run the audit again."
        )

    def _of(self, topic: str) -> dict[int, int]:
        return {partition: offset for (name, partition), offset in self._begin.items() if name == topic}

    # --- Reading ------------------------------------------------------------------------------------------------------

    def _read(self, what: str, ends: Mapping[Place, int]) -> None:
        """Feed the judge until the ends are reached; later records may be fed too."""
        tail = self._tails[what]
        mine = {place: end for place, end in ends.items() if place[0] in self._topics[what]}
        feed = {"dead": self._letter, "bands": self._request, "status": self._event}[what]
        self._waiting.begin()
        came = True
        while not tail.caught_up(mine) and self._waiting.goes_on(came=came):
            records = tail.poll(_RECORDS_MAX, _WAIT_S)
            came = bool(records)
            for record in records:
                feed(record)
        positions = tail.positions()
        for (topic, partition), end in sorted(mine.items()):
            position = positions.get((topic, partition), 0)
            if position < end:
                self._judge.unread(
                    f"{topic} [{partition}] was read up to {position} of {end}: the timeout was too short, or an open "
                    "transaction hides the rest. Run the audit again."
                )

    def _event(self, record: TailRecord) -> None:
        _, partition, offset, timestamp_ms, key, value, _ = record
        self._judge.status(partition, offset, timestamp_ms, key, value)

    def _letter(self, record: TailRecord) -> None:
        _, partition, offset, timestamp_ms, key, value, headers = record
        try:
            self._judge.dead(decode_dead(partition, offset, timestamp_ms, key, value, headers))
        except DecodeError as error:
            self._judge.unreadable_letter(partition, offset, str(error))

    def _request(self, record: TailRecord) -> None:
        self._judge.request(self._decoder.decode(self._bands[record.topic], *record[1:]))

    def _tell_bounds(self, ends: Mapping[Place, int]) -> None:
        mine = {place: end for place, end in ends.items() if place[0] in self._bands}
        starts = self._ask(lambda: log_starts(self._settings, mine))
        positions = self._tails["bands"].positions()
        for place, end in mine.items():
            self._judge.bounds(
                self._bands[place[0]],
                place[1],
                self._committed.get(place),
                log_start=min(starts[place], end),
                log_end=end,
                begin=self._begin[place],
                read_to=positions[place],
            )

    def _ask(self, ask: Callable[[], T]) -> T:
        """Repeat the call while no leader answers: one that has just moved, or a new topic, refuses for a moment."""
        last = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ask()
            except Unreachable:
                if time.monotonic() >= last or self._waiting.stopping:
                    raise
            time.sleep(_WAIT_S)

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
