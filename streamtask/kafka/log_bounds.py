"""Where logs begin and end, queried without waiting, for an owner thread that must not block.

`ask` sends a query and returns. `Asked.look` collects the answers that have arrived, each partition's separately, and resends
what failed. Always true: no call here waits for a broker, so frozen brokers cost the caller nothing; a partition without a
leader delays only its own answer. One AdminClient makes all queries of a process, and connects before the first one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamtask.config.kafka import KafkaSettings
from streamtask.kafka.background_close import in_background
from streamtask.kafka.connection_errors import Heard
from streamtask.kafka.faults import error_of
from streamtask.kafka.tail import LEADER_ELSEWHERE, MOVING, Place, look_at_leaders, offset_of

QUESTION_S = 3.0  # per request; an answer takes milliseconds
OVERDUE_S = QUESTION_S + 2.0  # a future that is not done by then is given up: librdkafka's timeout is overdue
RECHECK_S = 0.05  # before a failed query is sent again
LEADERS_S = 3.0  # for one look-up of leaders, in its own thread
# The partition was added after the client had looked at its topic. Without another look, the answer is "No leaders found" for
# as long as the metadata is kept: five minutes.
UNHEARD_OF = (KafkaError._NOENT, KafkaError._UNKNOWN_PARTITION)


class LogBounds:
    """Queries first offsets and log ends of any partition. Used by one thread.

    topics    the client contacts the leaders of these first: a client that has not connected yet fails to answer for 3 s, one
              time in eight
    on_error  receives the text of an error that the client cannot recover from by itself
    """

    def __init__(
        self, settings: KafkaSettings, topics: Collection[str], *, on_error: Callable[[str], None] | None = None
    ) -> None:
        self._admin: AdminClient | None = AdminClient(
            settings.admin() | {"error_cb": Heard(settings.on_error, tell=on_error)}
        )
        self._looking: threading.Thread | None = None
        self.look_at_leaders(topics)

    def ask(self, places: Collection[Place], *, earliest: bool, read_committed: bool = False) -> Asked:
        """Send the query for the first offset held (earliest), or else for the end of each log: the high watermark, or the
        last stable offset (read_committed).
        """
        return Asked(self, places, earliest, read_committed)

    def look_at_leaders(self, topics: Collection[str]) -> None:
        """Have the client learn the leaders of these topics; queries made meanwhile are sent afterwards."""
        if self._admin is None or (self._looking is not None and self._looking.is_alive()):
            return
        admin, wanted = self._admin, tuple(topics)
        self._looking = in_background(
            "look-at-leaders", lambda: look_at_leaders(admin, wanted, time.monotonic() + LEADERS_S)
        )

    def send(self, places: Collection[Place], earliest: bool, read_committed: bool) -> dict[Place, Future[Any]]:
        """Send one request per leader; {} while the client looks up the leaders."""
        if self._admin is None or (self._looking is not None and self._looking.is_alive()):
            return {}
        self._admin.poll(0)  # serves error_cb, whose errors would pile up otherwise
        spec = OffsetSpec.earliest() if earliest else OffsetSpec.latest()  # type: ignore[no-untyped-call]
        level = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED
        wanted = {TopicPartition(*place): spec for place in places}
        sent = self._admin.list_offsets(wanted, isolation_level=level, request_timeout=QUESTION_S)
        return {(part.topic, part.partition): future for part, future in sent.items()}

    def close(self) -> None:
        """Close the client in the background, because closing may wait for brokers that are gone."""
        holder, self._admin = [self._admin], None
        in_background("close-log-bounds", holder.clear)


class Asked:
    """One query for some places.

    known  {place: offset} of the answers so far
    """

    def __init__(self, bounds: LogBounds, places: Collection[Place], earliest: bool, read_committed: bool) -> None:
        self._bounds = bounds
        self._earliest, self._read_committed = earliest, read_committed
        self._unsent = set(places)
        self._open: dict[Place, Future[Any]] = {}
        self._sent_s = 0.0
        self._again_s = 0.0
        self.known: dict[Place, int] = {}
        self.look()

    def look(self) -> bool:
        """Take new answers and resend what failed. True when every place is known. Never waits."""
        now = time.monotonic()
        overdue = now > self._sent_s + OVERDUE_S
        moved: set[str] = set()
        for place, future in list(self._open.items()):
            if not future.done() and not overdue:
                continue
            del self._open[place]
            held = None
            try:
                if future.done():
                    self.known[place] = offset_of(future.result())
                    continue
            except KafkaException as error:
                held = error_of(error)
            self._unsent.add(place)
            self._again_s = now + RECHECK_S
            if held is None or held.code() in LEADER_ELSEWHERE or held.code() in MOVING or held.code() in UNHEARD_OF:
                moved.add(place[0])
        if moved:
            self._bounds.look_at_leaders(moved)
        if self._unsent and now >= self._again_s:
            sent = self._bounds.send(self._unsent, self._earliest, self._read_committed)
            if sent:
                self._unsent, self._sent_s = set(), now
                self._open.update(sent)
        return not self._unsent and not self._open
