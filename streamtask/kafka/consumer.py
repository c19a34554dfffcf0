"""Membership through the lead topic, and the requests of the shards that are seated here.

The group is subscribed only to the lead topic (cooperative-sticky). Partition N of the other bands comes and goes with the
lead's partition N in the same callbacks, so a shard never belongs to two members. Always true:

- Nothing of a shard is fetched before it is seated at explicit positions, or returned after it was revoked.
- A record whose schema is still being fetched blocks only its own cell: no later record of that cell is returned before it.
- No record of an earlier assignment is returned after a later seat: the ledger would take the gap it leaves as done.
- `group_metadata()` was captured after the last poll or at the start of a callback, and is None whenever the client may not
  be a member: the broker accepts the metadata of a consumer that never joined.
- Callbacks never raise: poll() raises their exception later.

Only the owner thread calls it: confluent-kafka serialises a Consumer, and a second thread inside a callback deadlocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import RequestRecord
from streamtask.domain.ports import Cell, Expected
from streamtask.errors import SchemaPending
from streamtask.kafka.background_close import close, drop_later, in_background
from streamtask.kafka.connection_errors import Heard
from streamtask.kafka.faults import Call, fault
from streamtask.kafka.group_listener import GroupListener, Shards
from streamtask.kafka.headers import headers_of
from streamtask.kafka.lost_positions import positions_held
from streamtask.kafka.metadata_refresh import ask_for
from streamtask.kafka.silent_cells import Standing

# codec.RequestDecoder.decode: (band, partition, offset, timestamp_ms, key, value, headers)
Decode = Callable[[int, int, int, int, "bytes | None", "bytes | None", Any], RequestRecord]

HELD_MAX = 5_000  # records kept by serve() for the next poll; beyond that they are read again
CHUNK = 1_000
LEAVE_S = 1.0  # how long a client that was left may take to tell the group


class ShardConsumer:
    """One member of the workers' group.

    decode            makes a RequestRecord of one record; raises SchemaPending if that is too early
    listener  notified of what the group does with its shards
    """

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        *,
        decode: Decode,
        listener: GroupListener,
    ) -> None:
        self._settings, self._names, self._decode = settings, names, decode
        self._listener = listener
        self._topics, self._bands = names.requests, {topic: band for band, topic in enumerate(names.requests)}
        self._owned: set[int] = set()  # shards that the group gave us
        self._seated: dict[Cell, int] = {}  # cell: the offset it was last seated at
        self._held: list[Message] = []  # fetched by serve(), for the next fetch
        self._fetched: list[Message] = []  # for take(), bounded by records_max of a fetch
        self._moved: set[int] = set()  # shards seated or taken away since the last clear
        self._again: set[Cell] = set()  # cells that need a new seek before any record of them is returned
        self._waiting: dict[Cell, int] = {}  # cells whose assignment failed: retried at each poll
        self._astray: dict[Cell, int] = {}  # cells whose position is not in the log
        self._blocked: dict[Cell, Callable[[], bool]] = {}  # cells blocked by their next record, until this is True
        self._paused: set[Cell] = set()  # cells that pause() stopped: they stay paused when they are no longer blocked
        # An unassign outside a callback acknowledges a queued revoke that was not served yet. Until the queue was seen empty,
        # no metadata is handed out, and a revoke counts as lost.
        self._unsure = False
        self._depth = 0  # > 0: inside a callback
        self._asked: set[str] = set()  # topics to query once the callback has returned
        self._left = self._assign_called = self._rejoin_due = False
        self._failure: BaseException | None = None
        self._metadata: Any | None = None
        self._member_id = ""
        self._heard = {"error_cb": Heard(settings.on_error, tell=listener.kafka_error)}
        self._consumer = Consumer(settings.consumer(names.group) | self._heard)

    # --- membership ---------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Become a member; the callbacks come during poll()."""
        self._consumer.subscribe(
            [self._topics[0]], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._gone_lost
        )

    @property
    def handle(self) -> Consumer:
        """The client itself, for the broker calls of takeover.py. Owner thread only."""
        return self._consumer

    @property
    def in_callback(self) -> bool:
        return self._depth > 0

    @property
    def owned(self) -> frozenset[int]:
        """The shards that the group gave us, seated or not."""
        return frozenset(self._owned)

    def member_id(self) -> str:
        """The member id, "" while not a member."""
        return self._member_id

    def group_metadata(self) -> Any | None:
        return self._metadata

    def _capture(self) -> None:
        """Take the group metadata, if we are certainly a member: the id is the same before and after."""
        before = self._consumer.memberid() or ""
        metadata = self._consumer.consumer_group_metadata()
        after = self._consumer.memberid() or ""
        self._be(after, metadata if after and before == after and not self._unsure else None)

    def _be(self, member_id: str, metadata: Any | None) -> None:
        self._metadata = metadata
        if member_id != self._member_id:
            self._member_id = member_id
            self._listener.member_changed(member_id)

    def _guarded(self, step: Callable[[Shards], None], shards: Shards) -> None:
        self._depth += 1
        try:
            step(shards)
        except BaseException as failure:  # noqa: BLE001 raised by poll(): librdkafka must see its callback end
            self._failure = self._failure or failure
        finally:
            self._depth -= 1

    def _assigned(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        if consumer is not self._consumer:  # a client that was left
            consumer.incremental_assign([])
            return
        shards = tuple(sorted(part.partition for part in parts))
        self._owned.update(shards)
        self._assign_called = False
        self._capture()
        self._asked.update(self._topics)
        if shards:
            self._guarded(self._listener.shards_assigned, shards)
        if not self._assign_called:
            # Not assigning the lead partitions of unseated shards keeps their membership and fetches nothing. Without any
            # call the client would assign them all, without positions.
            consumer.incremental_assign([])

    def _revoked(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        if self._unsure:
            self._gone_lost(consumer, parts)
            return
        shards = self._leaving(consumer, parts)
        if shards:
            self._capture()
            self._asked.add(self._topics[0])
            self._guarded(self._listener.shards_revoked, shards)
        self._unseat(consumer, shards)

    def _gone_lost(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        shards = self._leaving(consumer, parts)
        if shards:
            self._be("", None)
            self._guarded(self._listener.shards_lost, shards)
        self._unseat(consumer, shards)

    def _leaving(self, consumer: Consumer, parts: list[TopicPartition]) -> Shards:
        if consumer is not self._consumer:
            return ()
        return tuple(sorted(part.partition for part in parts if part.partition in self._owned))

    def _unseat(self, consumer: Consumer, shards: Shards) -> None:
        gone = set(shards)
        cells = [cell for cell in self._seated if cell[1] in gone] if consumer is self._consumer else []
        for cell in cells:
            del self._seated[cell]
            self._paused.discard(cell)
        self._owned -= gone
        self._forget(gone)
        # This call is the acknowledgement, even if nothing of these shards was read. Never call it outside a callback: it
        # would acknowledge a revoke that was not served yet.
        consumer.incremental_unassign([TopicPartition(self._topics[band], shard) for band, shard in cells])

    def _forget(self, shards: set[int]) -> None:
        """Drop whatever was fetched of these shards: it belongs to an earlier assignment."""
        self._moved |= shards
        self._again = {cell for cell in self._again if cell[1] not in shards}
        self._astray = {cell: at for cell, at in self._astray.items() if cell[1] not in shards}
        self._waiting = {cell: at for cell, at in self._waiting.items() if cell[1] not in shards}
        for cell in [cell for cell in self._blocked if cell[1] in shards]:
            self._release(cell)
        self._held = [message for message in self._held if message.partition() not in shards]
        self._fetched = [message for message in self._fetched if message.partition() not in shards]

    def seat(self, positions: Mapping[Cell, int]) -> None:
        """From now on read these cells from these offsets. Shards that have gone meanwhile are left out. If the client
        refuses at the moment, the seat is retried at each poll, and no record is returned before.
        """
        own = {cell: offset for cell, offset in positions.items() if cell[1] in self._owned}
        self._forget({cell[1] for cell in own})
        for cell, offset in own.items():
            if cell in self._seated:
                self._seated[cell] = offset
                self._again.add(cell)
            else:
                self._waiting[cell] = offset
        self.resume([cell for cell in own if cell in self._paused])  # what asked for the pause is gone
        self._seat_waiting()
        self._seek_again()

    def _seat_waiting(self) -> None:
        if not self._waiting:
            return
        waiting = self._waiting
        parts = [TopicPartition(self._topics[band], shard, at) for (band, shard), at in waiting.items()]
        try:
            # A pause outlives the assignment. Resume first: if a resume and the start of an assignment meet, librdkafka may
            # drop either, and returns success for both.
            self._consumer.resume(parts)
            self._consumer.incremental_assign(parts)
            self._assign_called = True
            self._waiting = {}
            self._seated.update(waiting)
            self._paused.difference_update(waiting)
        except KafkaException as error:
            self._listener.kafka_error(fault(error, Call.SEAT).text)

    def rejoin(self) -> None:
        """Leave the group and join again with a new client. Inside a callback this happens after it has returned, within
        poll().

        A new client, because a plain commit that waits in the old one for its coordinator would be sent with whatever
        generation that has by then.
        """
        if self._depth:
            self._rejoin_due = True
            return
        self._rejoin_due = False
        self._leave(LEAVE_S)
        holder = [self._consumer]
        self._consumer = Consumer(self._settings.consumer(self._names.group) | self._heard)
        self.join()
        # Not closed: closing waits for that very commit. Dropping the last reference destroys it, after LeaveGroup had
        # time to be sent; the destruction itself may block.
        in_background("leave-group", lambda: drop_later(holder, LEAVE_S))
        self._raise_failure()

    def _leave(self, timeout_s: float) -> None:
        self._consumer.unsubscribe()
        deadline = time.monotonic() + timeout_s
        while self._owned and time.monotonic() < deadline:
            self._consumer.poll(0.05)  # whatever it fetched belongs to shards that are leaving
        self._be("", None)
        if self._owned:
            self._guarded(self._listener.shards_lost, tuple(sorted(self._owned)))
        kept: tuple[set[Any] | dict[Any, Any] | list[Any], ...] = (self._owned, self._seated, self._held, self._fetched)
        for one in (*kept, self._again, self._waiting, self._astray, self._blocked, self._paused):
            one.clear()

    def leave(self, timeout_s: float) -> None:
        """Leave the group and serve the revoke: shards_revoked hands everything over. Shards left at timeout_s are lost."""
        assert not self._depth, "leave() inside a callback"
        self._left = True
        self._leave(timeout_s)
        self._raise_failure()

    def close(self, timeout_s: float) -> None:
        """Leave, unless that was done, and close the client. Closing hangs when brokers are gone, so a thread does it, and
        this waits for it until timeout_s.
        """
        assert not self._depth, "close() inside a callback"
        deadline = time.monotonic() + timeout_s
        if not self._left:
            self._left = True
            self._leave(timeout_s)
        thread = in_background("close-consumer", lambda: close(self._consumer))
        thread.join(max(deadline - time.monotonic(), 0.05))
        self._raise_failure()

    # --- records ------------------------------------------------------------------------------------------------------

    def fetch(self, timeout_s: float, records_max: int) -> int:
        """Serve the group, then fetch up to records_max records for take(). Returns how many; 0 if none came within timeout_s.
        Raises what a callback raised.
        """
        assert not self._depth, "fetch() inside a callback"
        assert not self._fetched, "take() what was fetched before"
        self._fetched = self._fetch(timeout_s, records_max)
        self._settle_poll()
        return len(self._fetched)

    def take(self, bands: int | None = None) -> list[RequestRecord]:
        """The records that were fetched. bands: only those of the first so many; the rest come with the next call."""
        messages, self._fetched = self._fetched, []
        if bands is not None:
            first, fetched, messages = set(self._topics[:bands]), messages, []
            for message in fetched:
                (messages if message.topic() in first else self._fetched).append(message)
        decode, band_of, seated, again = self._decode, self._bands, self._seated, self._again
        records: list[RequestRecord] = []
        append = records.append
        for message in messages:
            shard: Any = message.partition()
            if message.error() is not None:
                self._hear(message)
                continue
            band = band_of[message.topic() or ""]
            if (band, shard) not in seated or (again and (band, shard) in again):
                continue
            offset: Any = message.offset()
            try:
                append(
                    decode(
                        band, shard, offset, message.timestamp()[1], message.key(), message.value(), headers_of(message)
                    )
                )
            except SchemaPending as pending:
                self._hold_back((band, shard), offset, pending.settled)
        return records

    def serve(self, timeout_s: float) -> None:
        """Serve the group once; records that arrive meanwhile are kept for the next fetch()."""
        assert not self._depth, "serve() inside a callback"
        # Rebalance events queue behind fetched records, so all of those must be taken.
        while True:
            before = len(self._held)
            self._held = self._fetch(timeout_s, before + CHUNK)
            timeout_s = 0
            if len(self._held) > HELD_MAX or sum(map(len, self._held)) > self._settings.held_bytes_max:
                self._read_again()
                break
            if len(self._held) - before < CHUNK:
                break
        self._settle_poll()

    def _fetch(self, timeout_s: float, records_max: int) -> list[Message]:
        """Return held and new records, without those that a callback made stale."""
        if self._waiting or self._astray or self._again:
            self._seat_waiting()
            self._find_again()
            self._seek_again()
        first = self._consumer.poll(0 if self._held else timeout_s)
        messages, self._held = self._held, []
        if first is None:
            self._unsure = False
            self._held = messages[records_max:]
            return messages[:records_max]
        messages.append(first)
        # Callbacks also run inside consume(), after `messages` were taken and between those that it takes itself.
        self._moved = set()
        room = records_max - len(messages)
        if room > 0:
            more = self._consumer.consume(room, 0)
            if len(more) < room:
                self._unsure = False
            messages += more
        if self._moved:
            moved = self._moved
            messages = [message for message in messages if message.partition() not in moved]
            self._again |= {cell for cell in self._seated if cell[1] in moved}
        self._held = messages[records_max:]
        return messages[:records_max]

    def _settle_poll(self) -> None:
        if self._rejoin_due:
            self.rejoin()
        ask_for(self._consumer, self._asked)
        self._capture()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _read_again(self) -> None:
        """Too many records are held: drop them and seek back to the first of each cell."""
        sought = frozenset(self._again)  # these return to their seated position anyway
        for message in reversed(self._held):
            shard, offset = message.partition(), message.offset()
            if shard is None or offset is None or message.error() is not None:
                continue
            cell = (self._bands.get(message.topic() or "", -1), shard)
            if cell in self._seated and cell not in sought:
                self._seated[cell] = offset
                self._again.add(cell)
        self._held = []
        self._seek_again()

    def _hold_back(self, cell: Cell, offset: int, settled: Callable[[], bool]) -> None:
        """Read nothing of this cell until `settled`, then read this record again."""
        self._seated[cell] = offset
        self._again.add(cell)
        self._blocked[cell] = settled
        self._each((cell,), self._consumer.pause)

    def _release(self, cell: Cell) -> None:
        del self._blocked[cell]
        if cell not in self._paused:
            self._each((cell,), self._consumer.resume)

    def _seek_again(self) -> None:
        for cell in [cell for cell, settled in self._blocked.items() if settled()]:
            self._release(cell)
        for cell in self._again - self._blocked.keys():
            try:
                self._consumer.seek(TopicPartition(self._topics[cell[0]], cell[1], self._seated[cell]))
            except KafkaException:
                continue  # its fetcher is not running yet: retried at the next poll, no record is returned before
            self._again.discard(cell)
            if self._held:  # records that serve() took meanwhile come after those read now
                place = (self._topics[cell[0]], cell[1])
                self._held = [message for message in self._held if (message.topic(), message.partition()) != place]

    def _find_again(self) -> None:
        """Continue where the log is: at its start if that has passed our position, or at its end if that is lower."""
        for cell, found in positions_held(
            self._consumer, self._topics, self._astray, self._listener.kafka_error
        ).items():
            band, shard = cell
            part = TopicPartition(self._topics[band], shard, found)
            try:
                # After this error the client neither seeks nor resumes (measured), so assign again.
                self._unsure = True
                self._consumer.incremental_unassign([part])
                self._consumer.incremental_assign([part])
            except KafkaException as error:
                self._listener.kafka_error(fault(error, Call.SEAT).text)
                continue  # retried at the next poll
            wanted = self._astray.pop(cell)
            self._again.discard(cell)
            if cell in self._blocked:
                self._release(cell)
            self._seated[cell] = found
            if found != wanted:
                self._listener.position_lost(band, shard, found)

    def _hear(self, message: Message) -> None:
        """Handle an event in place of a record."""
        error = message.error()
        assert error is not None
        code = error.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            band, shard = self._bands.get(message.topic() or "", -1), message.partition()
            if shard is not None and (band, shard) in self._seated:
                offset = message.offset()
                self._astray[band, shard] = self._seated[band, shard] if offset is None or offset < 0 else offset
        elif code != KafkaError._PARTITION_EOF:
            self._listener.kafka_error(f"{error.name()}: {error.str()}")

    def pause(self, cells: Iterable[Cell]) -> None:
        """Stop fetching. Prefetched records are thrown away and fetched again after the resume."""
        cells = tuple(cells)
        self._paused.update(cell for cell in cells if cell in self._seated)
        self._each(cells, self._consumer.pause)

    def resume(self, cells: Iterable[Cell]) -> None:
        cells = tuple(cells)
        self._paused.difference_update(cells)
        self._each([cell for cell in cells if cell not in self._blocked], self._consumer.resume)

    def reseat(self, positions: Mapping[Cell, int]) -> None:
        """Assign these cells again, at these offsets: the client has lost a resume or a start of theirs."""
        self._unsure = True
        self._each(positions, self._consumer.incremental_unassign)
        for cell in positions:
            del self._seated[cell]
        self._waiting.update(positions)
        self._seat_waiting()

    def standings(self, expected: Mapping[Cell, Expected]) -> dict[Cell, Standing]:
        """How those of these cells stand that are seated. Queries no broker."""
        held = dict.fromkeys(self._again, "seek") | dict.fromkeys(self._astray, "astray")
        held |= dict.fromkeys(self._blocked, "schema")
        cells = [cell for cell in self._seated if cell in expected]
        parts = self._consumer.position([TopicPartition(self._topics[band], shard) for band, shard in cells])
        return {
            cell: Standing.of(expected[cell], part.offset, held.get(cell, ""), paused=cell in self._paused)
            for cell, part in zip(cells, parts, strict=True)
        }

    def _each(self, cells: Iterable[Cell], step: Callable[[list[TopicPartition]], None]) -> None:
        parts = [TopicPartition(self._topics[cell[0]], cell[1]) for cell in cells if cell in self._seated]
        if not parts:
            return
        try:
            step(parts)
        except KafkaException as error:
            self._listener.kafka_error(fault(error, Call.SEAT).text)
