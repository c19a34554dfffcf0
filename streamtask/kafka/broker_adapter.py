"""The broker adapter of a worker: consumer, transactional producer and reader behind domain/ports.py.

`perform(ask)` performs one ask and answers it; the core decides the order. Invariants: no call exceeds its deadline by much
(see Deadlines), operating errors are answered as Fault and never raised, and a producer that is over answers FENCED until
RenewProducer. One owner thread makes all calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import RequestRecord
from streamtask.domain.ports import (
    AbortTransaction,
    Answer,
    Ask,
    Cell,
    CommitPlain,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    Flush,
    ListOffsets,
    Poll,
    Produce,
    ReadSettled,
    Rejoin,
    RenewProducer,
    Seat,
    SendOffsets,
)
from streamtask.errors import NotAllowed, Unreachable
from streamtask.kafka import takeover
from streamtask.kafka.acls import Role, acls_command, transactional_ids
from streamtask.kafka.background_close import in_background
from streamtask.kafka.consumer import Decode, ShardConsumer
from streamtask.kafka.faults import Call, fault
from streamtask.kafka.fencing import fence_ids
from streamtask.kafka.group_listener import GroupListener
from streamtask.kafka.probe import Probes
from streamtask.kafka.reseating import Reseating
from streamtask.kafka.takeover_times import ClaimTimes
from streamtask.kafka.transaction import EncodeDead, EncodeEvent, StatusTransaction, new_transactional_id

UNLISTED_MAX = 3  # consecutive unanswered queries after which the reader is replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that one ask may take. All keep their limit except send_offsets, which is abandoned, with its producer, half a
    second after it.
    """

    list_s: float = 3.0
    fence_s: float = 5.0
    settled_s: float = 3.0
    plain_s: float = 3.0
    produce_s: float = 5.0
    offsets_s: float = 2.0  # takes milliseconds while the coordinator lives
    commit_s: float = 5.0  # below the socket timeout: no copy of EndTxn is sent before
    abort_s: float = 5.0
    renew_s: float = 8.0  # out of the watchdog's 20
    serve_s: float = 0.02
    close_s: float = 5.0


class BrokerAdapter:
    """The clients of one worker process. The producer exists from the start; join() joins the group.

    slot            identifies the process within the group's transactional ids: `<group>.<slot>.<random>`
    decode          codec.RequestDecoder.decode
    encode_event    returns the value of a status event; encode_dead: (key, value, headers) of a dead letter
    listener        notified of what the group does with its shards

    Raises Unreachable if no producer could be initialised, NotAllowed if its ACLs forbid it.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        *,
        slot: str | int,
        decode: Decode,
        encode_event: EncodeEvent,
        encode_dead: EncodeDead,
        listener: GroupListener,
        deadlines: Deadlines | None = None,
    ) -> None:
        self._settings, self._names, self._slot = settings, names, slot
        self._encode_event, self._encode_dead = encode_event, encode_dead
        self._on_error = listener.kafka_error
        self._deadlines = deadlines or Deadlines()
        self._perform: dict[type, Callable[[Any], Answer]] = {
            ListOffsets: self._list_offsets,
            FenceIds: self._fence_ids,
            ReadSettled: self._read_settled,
            CommitPlain: self._commit_plain,
            Seat: self._seat,
            Produce: self._produce,
            Flush: self._flush,
            SendOffsets: self._send_offsets,
            EndTransaction: self._end_transaction,
            AbortTransaction: self._abort_transaction,
            RenewProducer: self._renew_producer,
            Poll: self._poll_group,
            Rejoin: self._rejoin,
        }
        self._reader = takeover.reader(settings, names.group)
        self._claim_times = ClaimTimes()
        self._unlisted = 0  # consecutive queries without an answer
        self._leaderless = False  # whether a request partition had no leader when the log bounds were last read
        self._transaction: StatusTransaction | None = None
        self.probes = Probes(settings, names, slot)
        self.consumer = ShardConsumer(
            settings,
            names,
            decode=decode,
            listener=listener,
        )
        self.reseating = Reseating(self.consumer, lambda: self._reader, names)
        answer = self._renew_producer(RenewProducer())
        if isinstance(answer, Fault):
            if "TRANSACTIONAL_ID_AUTHORIZATION_FAILED" in answer.text:
                raise NotAllowed(
                    f"Kafka does not let this client use a transactional id: a worker needs WRITE on all that begin with "
                    f"{transactional_ids(names)}. Print the commands that allow it: {acls_command(Role.WORKER, names)}"
                )
            raise Unreachable(f"No transactional producer on {settings.bootstrap}: {answer.text}")

    def join(self) -> None:
        """Become a member of the group; the callbacks come during fetch() and Poll."""
        self.consumer.join()

    def leave(self) -> None:
        """Leave the group; shards_revoked hands everything over during this call."""
        self.consumer.leave(self._deadlines.close_s)

    # --- called by the owner loop -------------------------------------------------------------------------------------

    def fetch(self, timeout_s: float, records_max: int) -> int:
        """Serve the group, then fetch up to records_max requests of seated shards. Raises what a callback raised."""
        return self.consumer.fetch(timeout_s, records_max)

    def take(self, bands: int | None = None) -> list[RequestRecord]:
        """The fetched records, decoded; bands: only those of the first so many bands, the rest with the next call."""
        return self.consumer.take(bands)

    def perform(self, ask: Ask) -> Answer:
        """Return the answer that the docstring of the ask names, or a Fault."""
        step = self._perform.get(type(ask))
        assert step is not None, f"{type(ask).__name__} is not one of the adapter's asks"
        began_s = time.monotonic()
        answer = step(ask)
        self._claim_times.performed(ask, time.monotonic() - began_s)
        return answer

    def pause(self, cells: Iterable[Cell]) -> None:
        self.consumer.pause(cells)

    def resume(self, cells: Iterable[Cell]) -> None:
        self.consumer.resume(cells)

    @property
    def member_id(self) -> str:
        """The member id, "" while not a member of the group."""
        return self.consumer.member_id()

    @property
    def transactional_id(self) -> str:
        """The id in use, "" after a failed RenewProducer."""
        return self._transaction.transactional_id if self._transaction is not None else ""

    @property
    def throttled_s(self) -> float:
        """How long a broker delays our records because of a quota."""
        return self._transaction.throttled_s if self._transaction is not None else 0.0

    def partition_counts(self, timeout_s: float = 3.0) -> dict[str, int] | Fault:
        """{topic: partitions} of the prefix's existing topics: a shard is claimed only if all its partitions exist."""
        try:
            topics = self._reader.list_topics(timeout=timeout_s).topics
        except KafkaException as error:
            return fault(error, Call.LIST_OFFSETS)
        return {name: len(topics[name].partitions) for name in self._names.all if name in topics}

    def close(self) -> None:
        """Leave the group (the revoke is served here) and close all clients, within close_s."""
        try:
            self.consumer.close(self._deadlines.close_s)
        finally:
            if self._transaction is not None:
                self._transaction.discard()
            # A daemon: closing a client may hang when brokers are gone.
            threading.Thread(target=self._reader.close, name="close-reader", daemon=True).start()

    # --- claim --------------------------------------------------------------------------------------------------------

    def _list_offsets(self, ask: ListOffsets) -> Answer:
        answer = takeover.list_offsets(self._reader, self._names, ask.shards, timeout_s=self._deadlines.list_s)
        self._unlisted = self._unlisted + 1 if isinstance(answer, Fault) else 0
        if self._unlisted >= UNLISTED_MAX:
            self._renew_reader()
        return answer

    def _renew_reader(self) -> None:
        """Replace a reader that got no answer, because it may never get one again.

        Seen after a freeze of all brokers, in which it lost its coordinator: the member next to it was served, and every claim
        timed out.
        """
        self._unlisted = 0
        holder = [self._reader]
        self._reader = takeover.reader(self._settings, self._names.group)
        in_background("renew-reader", holder.clear)

    def _fence_ids(self, ask: FenceIds) -> Answer:
        return fence_ids(self._settings, ask.ids, timeout_s=self._deadlines.fence_s, on_refused=self._on_error)

    def _read_settled(self, ask: ReadSettled) -> Answer:
        found = takeover.read_settled(
            self.consumer.handle,
            self._reader,
            self._names,
            ask.shards,
            timeout_s=self._deadlines.settled_s,
            looks=self._leaderless,
        )
        if not isinstance(found, Fault):
            self._leaderless = not all(settled.led for settled in found.values())
        return found

    def _commit_plain(self, ask: CommitPlain) -> Answer:
        return takeover.commit_plain(
            self.consumer.handle, self._reader, self._names, ask.offsets, timeout_s=self._deadlines.plain_s
        )

    def _seat(self, ask: Seat) -> Answer:
        self.consumer.seat(ask.positions)
        return None

    # --- transaction --------------------------------------------------------------------------------------------------

    def _live(self) -> StatusTransaction | Fault:
        return self._transaction or Fault(FaultKind.FENCED, "there is no transactional producer yet")

    def _produce(self, ask: Produce) -> Answer:
        live = self._live()
        return live if isinstance(live, Fault) else live.produce(ask.plan, self._deadlines.produce_s)

    def _flush(self, ask: Flush) -> Answer:
        live = self._live()
        return live if isinstance(live, Fault) else live.flush(ask.wait_ms / 1_000, last=ask.last)

    def _send_offsets(self, ask: SendOffsets) -> Answer:
        live = self._live()
        if isinstance(live, Fault):
            return live
        owned = self.consumer.owned
        foreign = sorted({item.shard for item in ask.plan.offsets} - owned)
        # Kafka fences members, not partitions: it would accept offsets for a shard that belongs to another member.
        metadata = None if foreign else self.consumer.group_metadata()
        answer = live.send_offsets(ask.plan, metadata, self._deadlines.offsets_s)
        if foreign and answer is not None and answer.kind is FaultKind.STALE:
            return Fault(FaultKind.STALE, f"send offsets: shards {foreign} are not assigned here")
        return answer

    def _end_transaction(self, ask: EndTransaction) -> Answer:
        live = self._live()
        return live if isinstance(live, Fault) else live.commit(self._deadlines.commit_s)

    def _abort_transaction(self, ask: AbortTransaction) -> Answer:
        live = self._live()
        return live if isinstance(live, Fault) else live.abort(self._deadlines.abort_s)

    def _renew_producer(self, ask: RenewProducer) -> Answer:
        if self._transaction is not None:
            self._transaction.discard()
            self._transaction = None
        made = self._new_transaction(patient=ask.patient)
        if isinstance(made, Fault) and ask.patient and "INVALID_TRANSACTION_TIMEOUT" in made.text:
            made = self._new_transaction(patient=False)  # the broker's transaction.max.timeout.ms is lower
        if isinstance(made, Fault):
            return made
        self._transaction = made
        return made.transactional_id

    def _new_transaction(self, *, patient: bool) -> StatusTransaction | Fault:
        transactional_id = new_transactional_id(self._names.group, self._slot)
        encode = (self._encode_event, self._encode_dead)
        fresh = StatusTransaction(self._settings, self._names, transactional_id, *encode, patient=patient)
        failed = fresh.init(self._deadlines.renew_s)
        if failed is not None:
            fresh.discard()
            return failed
        return fresh

    # --- group --------------------------------------------------------------------------------------------------------

    def _poll_group(self, ask: Poll) -> Answer:
        if not self.consumer.in_callback:  # inside a callback the group is being served already
            self.consumer.serve(self._deadlines.serve_s)
        return None

    def _rejoin(self, ask: Rejoin) -> Answer:
        self.consumer.rejoin()
        return None
