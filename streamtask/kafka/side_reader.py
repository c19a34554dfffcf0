"""What a worker reads besides its requests, with one consumer: topics that it follows, and partitions that it reads once.

Made for the owner thread: nothing here waits for a broker. A partition is read from its first record as soon as a broker has
returned that offset. A Mark is reached when everything below the log ends that were queried after it was made has been handed
out. Always true:

- Log ends are high watermarks (uncommitted ends), queried after the Mark was made, never before.
- Records come in the order of their partition. Records of a dropped reading are never handed out to a later one.
- A followed partition that delivers nothing although its log grows, or whose log ends before our position, gets a new client:
  after its topic was recreated the old one may stay with brokers that lead nothing (silent_cells.py detects this after 10 to
  16 s).
- Memory: `settings.tail_kbytes` fetched ahead for all partitions together, and two slices of records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from streamtask.config.kafka import KafkaSettings
from streamtask.kafka.log_bounds import Asked, LogBounds
from streamtask.kafka.silent_cells import SilentCells, Standing
from streamtask.kafka.tail import Place, Tail, TailRecord
from streamtask.observability import event_log

SLICE_RECORDS = 2_000  # per poll
LOOK_S = 1.0  # between two checks that everything followed still delivers


class Mark:
    """Log ends to read up to; `SideReader.reached` says when that is done."""

    __slots__ = ("asked",)

    def __init__(self, asked: Asked) -> None:
        self.asked = asked


class SideReader:
    """One consumer and one admin client. Used by one thread.

    followed  topics that are read from their start and then followed

    Raises Unreachable or TopicsMissing; only the constructor waits for brokers.
    """

    def __init__(
        self, settings: KafkaSettings, followed: Iterable[str], *, on_error: Callable[[str], None] | None = None
    ) -> None:
        topics = tuple(followed)
        self._tail = Tail(settings, topics, on_error=on_error, log_starts=self._log_starts)
        self._bounds = LogBounds(settings, topics, on_error=on_error)
        self._begins: dict[Place, Asked] = {}  # places to read as soon as the start of their log is known
        self._lost: dict[Place, Asked] = {}  # places whose position is not in the log
        self._fetched: dict[str, list[TailRecord]] = {}  # by topic, for take()
        self._followed = topics
        self._silent: SilentCells[Place] = SilentCells()
        self._ends: Asked | None = None  # of quiet followed partitions
        self._look_s = 0.0

    def mark(self, topic: str) -> Mark:
        """A Mark at everything that a followed topic holds now."""
        return Mark(self._bounds.ask([place for place in self._tail.positions() if place[0] == topic], earliest=False))

    def read(self, place: Place) -> Mark:
        """Read a partition from its start until `drop`. The Mark is what it holds now."""
        assert place not in self._begins, f"{place} is being read"
        self._begins[place] = self._bounds.ask([place], earliest=True)
        return Mark(self._bounds.ask([place], earliest=False))

    def drop(self, place: Place) -> None:
        """Stop reading this place."""
        topic, partition = place
        if self._begins.pop(place, None) is None and place in self._tail.positions():
            self._tail.drop([place])
        if topic in self._fetched:
            self._fetched[topic] = [record for record in self._fetched[topic] if record.partition != partition]

    def pause(self, place: Place) -> None:
        """Fetch nothing of this place until `resume`; records fetched before are still handed out."""
        self._tail.pause([place])

    def resume(self, place: Place) -> None:
        self._tail.resume([place])

    def take(self, topic: str) -> list[TailRecord]:
        """The new records of this topic; [] if there are none."""
        self._begin()
        if (now_s := time.monotonic()) >= self._look_s:
            self._look(now_s)
        if sum(map(len, self._fetched.values())) < SLICE_RECORDS:
            for record in self._tail.poll(SLICE_RECORDS, 0.0):
                self._fetched.setdefault(record.topic, []).append(record)
        return self._fetched.pop(topic, [])

    def reached(self, mark: Mark) -> bool:
        """Whether everything below the mark was handed out. Call it right after `take`: what still waits counts as read."""
        return mark.asked.look() and self._tail.caught_up(mark.asked.known)

    def _begin(self) -> None:
        starts = {}
        for place, asked in list(self._begins.items()):
            if asked.look():
                starts[place] = asked.known[place]
                del self._begins[place]
        if starts:
            self._tail.add(starts)

    def _look(self, now_s: float) -> None:
        """Check that every followed partition still delivers what its log holds. Never waits for a broker."""
        self._look_s = now_s + LOOK_S
        positions = {place: at for place, at in self._tail.positions().items() if place[0] in self._followed}
        self._silent.look({place: Standing(at, at) for place, at in positions.items()}, now_s)
        if self._ends is not None and self._ends.look():
            ends, self._ends = self._ends.known, None
            self._silent.answered(ends, now_s)
        silent = self._silent.silent(now_s)
        if silent and (anew := self._silent.confirmed(silent, silent, now_s)):
            for topic, partition in anew:
                reported = {"position": positions[topic, partition], "log_end": silent[topic, partition]}
                event_log.emit("reader_renewed", {"topic": topic, "partition": partition, **reported})
            self._tail.renew()
        if self._ends is None and (quiet := self._silent.to_ask(now_s)):
            self._ends = self._bounds.ask(quiet, earliest=False)

    def _log_starts(self, places: Collection[Place]) -> Mapping[Place, int]:
        """The known log starts of places that lost their position; unknown ones are queried for a later call."""
        for place in places:
            if place not in self._lost:
                self._lost[place] = self._bounds.ask([place], earliest=True)
        found = {place: asked.known[place] for place, asked in self._lost.items() if asked.look()}
        for place in found:
            del self._lost[place]
        return found

    def close(self) -> None:
        """Close both clients without querying a broker."""
        self._tail.close()
        self._bounds.close()
