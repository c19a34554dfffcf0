"""One transactional id: produce a batch, send its offsets last, commit or abort.

Invariants: a transaction is never open while the caller waits for anything else; no record without the offset of its shard's
lead cell (the fence rule: nothing fences a transaction without offsets); an illegal call makes the object unusable: after
one, and after FENCED or DOUBT, only `discard` is allowed. A transactional id is used by one object, once.

Every call is bounded and returns a Fault instead of raising; only a caller that breaks a rule gets an AssertionError.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
import zlib
from collections.abc import Callable
from enum import Enum
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from streamtask.codec import status_headers, status_key
from streamtask.config import TopicNames
from streamtask.config.kafka import SOCKET_TIMEOUT_MS, KafkaSettings
from streamtask.domain.model import DeadLetter, StatusEvent
from streamtask.domain.ports import DEAD, LETTERS, STATUS, CommitPlan, Fault, FaultKind, Place, Waiting
from streamtask.kafka.faults import NO_ANSWER_CODES, Call, classify, error_of, fault, is_lost

# If a coordinator has died, librdkafka stays inside the call whatever timeout was given: for the socket timeout (6.1 s) or
# for ever. Waiting for that made a broker's death cost 11 s, although the next coordinator was there after 4.
_OFFSETS_SPARE_S = 0.5
_ABORTED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # reports of records that an abort threw away
_PURGE_S = 0.2  # for the reports of abandoned records
_THROTTLE_MAX_S = 10.0  # per answer under a quota; brokers use a window of 11 s
# A partition could not be added to the transaction: librdkafka gives up all its records, and names none.
_NO_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED})


# Value of a status event; (key, value, headers) of a dead letter.
EncodeEvent = Callable[[StatusEvent], bytes]
EncodeDead = Callable[[DeadLetter], "tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]"]


def new_transactional_id(group: str, slot: str | int) -> str:
    """`<group>.<slot>.<random>`: never reused, so FENCED always means that another owner took a shard over."""
    return f"{group}.{slot}.{secrets.token_hex(6)}"


class _State(Enum):
    NEW = "new"
    READY = "ready"
    OPEN = "open"  #: begun; records produced
    FLUSHED = "flushed"  #: the broker has them
    SENT = "sent"  #: it contains the offsets
    OVER = "over"  #: fenced, in doubt, or after an illegal call


class StatusTransaction:
    """The transactional producer of one worker process under one id."""

    def __init__(
        self,
        settings: KafkaSettings,
        names: TopicNames,
        transactional_id: str,
        encode_event: EncodeEvent,
        encode_dead: EncodeDead,
        *,
        patient: bool = False,
    ) -> None:
        self.transactional_id = transactional_id
        self._names = names
        self._encode_event, self._encode_dead = encode_event, encode_dead
        self._state = _State.NEW
        self._why = ""
        self._refused: list[tuple[KafkaError, Place]] = []
        self._silent: set[Place] | None = None  # the places of abandoned records, while they are being given up
        self._produced = 0
        self._at_letters = False  # a dead letter is being handed over
        self._letters = False  # the open transaction has dead letters
        self._throttled_until = 0.0  # monotonic: a quota of the broker
        self._flush_by = 0.0  # monotonic
        self._abort_began: float | None = None  # monotonic; survives a RETRY
        self._aside = _Aside()
        # Reports only failures (settings): one callback for each record would cost as much as producing it.
        self._producer: Producer | None = Producer(
            settings.transactional(transactional_id, patient=patient)
            | {"on_delivery": self._on_delivery, "throttle_cb": self._on_throttle}
        )

    def _on_delivery(self, error: KafkaError | None, message: Any) -> None:
        if error is None:
            return
        if error.code() not in _ABORTED:
            if len(self._refused) < 100:
                self._refused.append((error, self._place(message)))
        elif self._silent is not None:
            self._silent.add(self._place(message))

    def _place(self, message: Any) -> Place:
        """The place of a record. A record whose partition was never chosen has partition -1: its topic does not exist."""
        letter, number = message.topic() == self._names.dead, message.partition()
        return (LETTERS if letter else STATUS, -1 if number is None else number)

    def _on_throttle(self, event: Any) -> None:
        if event.throttle_time > 0:
            until = time.monotonic() + min(event.throttle_time, _THROTTLE_MAX_S)
            self._throttled_until = max(self._throttled_until, until)

    @property
    def throttled_s(self) -> float:
        """How long a broker delays our records because of a quota; 0 = not at all."""
        return max(0.0, self._throttled_until - time.monotonic())

    @property
    def usable(self) -> bool:
        """False before init, and after FENCED, DOUBT or an illegal call."""
        return self._state not in (_State.NEW, _State.OVER)

    # --- moves --------------------------------------------------------------------------------------------------------

    def _move(self, move: str, *allowed: _State) -> Producer:
        if self._state not in allowed or self._producer is None:
            state, self._state = self._state, _State.OVER
            raise AssertionError(f"{move} in state {state.value} ({self._why}): the producer is poisoned")
        return self._producer

    def _over(self, answer: Fault) -> Fault:
        if answer.kind in (FaultKind.FENCED, FaultKind.DOUBT):
            self._state, self._why = _State.OVER, answer.text
        return answer

    def _ended(self) -> Fault | None:
        """The answer to a call after an earlier Fault ended the object: the flow may call it once more."""
        if self._state is _State.OVER:
            return Fault(FaultKind.FENCED, f"the producer is over: {self._why}")
        return None

    def init(self, timeout_s: float) -> Fault | None:
        """init_transactions. Answer: None or Fault(RETRY): then create another object with a new id."""
        producer = self._move("init", _State.NEW)
        try:
            producer.init_transactions(timeout_s)
        except KafkaException as error:
            answer = fault(error, Call.RENEW)
            self._state, self._why = _State.OVER, answer.text
            return answer
        self._state = _State.READY
        return None

    def produce(self, plan: CommitPlan, timeout_s: float) -> Fault | None:
        """Begin and hand everything over; `flush` has what remains of timeout_s. Answer: None; Fault(ABORT | RECORD):
        abort; or Fault(FENCED).
        """
        if over := self._ended():
            return over
        producer = self._move("produce", _State.READY)
        self._check(plan)
        self._flush_by = deadline = time.monotonic() + timeout_s
        self._refused.clear()
        self._produced, self._letters = len(plan.events) + len(plan.dead), bool(plan.dead)
        self._at_letters = False
        try:
            places = self._letter_places(producer, plan, deadline)
            if places is not None and not places:
                producer.begin_transaction()
                self._state = _State.OPEN  # an abort follows
                return Fault(
                    FaultKind.ABORT, f"produce: no partition of {self._names.dead} accepts records", frozenset({DEAD})
                )
            producer.begin_transaction()
            self._state = _State.OPEN
            self._enqueue(producer, plan, deadline, places)
        except (KafkaException, SystemError) as error:
            return self._unproduced(producer, error)
        except BufferError:
            return Fault(FaultKind.ABORT, f"produce: the queue was full for {timeout_s} s")
        return None

    def flush(self, wait_s: float = 5.0, *, last: bool = True) -> Waiting | Fault | None:
        """Wait until the broker has the records. Answer: None; Fault(ABORT | RECORD): abort; or Fault(FENCED).

        last  False: Waiting if not all is acknowledged after wait_s. True: give up what is not acknowledged, and with it this
              producer: Fault(FENCED) with the places of those records
        """
        if over := self._ended():
            return over
        producer = self._move("flush", _State.OPEN)
        try:
            left = producer.flush(max(wait_s, 0.05))
        except (KafkaException, SystemError) as error:
            return self._unproduced(producer, error)
        if self._refused:
            return self._over(self._worst(Call.PRODUCE))
        if left and not last:
            return Waiting(left, self._produced)
        if left:
            # Not aborted: an abort waits for its markers, which a partition that accepts nothing does not accept either. And
            # if a leader has died, the producer remembers a dead coordinator: its next offsets could not be delivered
            # (#5456), and would wait. A new producer looks up the brokers: 7 s instead of 10 for a broker's death.
            text = f"produce: {left} records not acknowledged in time"
            return self._over(Fault(FaultKind.FENCED, text, self._give_up(producer)))
        self._state = _State.FLUSHED
        return None

    def _give_up(self, producer: Producer) -> frozenset[Place]:
        """Give up everything that is not acknowledged, and return its places. None of it is sent any more."""
        self._silent = set()
        producer.purge(in_queue=True, in_flight=True, blocking=False)
        try:
            producer.flush(_PURGE_S)
        except (KafkaException, SystemError):
            pass  # a fatal error of a producer that is over
        return frozenset(self._silent)

    def _unproduced(self, producer: Producer, error: Exception) -> Fault:
        if is_lost(error):  # a fatal one: no other error comes out of a flush
            return self._over(Fault(FaultKind.FENCED, f"produce: {error}"))
        found = error_of(error)
        if found is None:
            raise error  # a SystemError that is not Kafka's
        if found.code() == KafkaError._UNKNOWN_PARTITION:
            self._look_again(producer, self._flush_by)
        answer = fault(error, Call.PRODUCE)
        if self._at_letters and answer.kind is FaultKind.ABORT:
            answer = Fault(answer.kind, answer.text, frozenset({DEAD}))
        return self._over(answer)

    def _look_again(self, producer: Producer, deadline: float) -> None:
        """Make the producer notice partitions that were added since it last looked.

        By itself it looks every five minutes, and until then every batch with a record for a new partition would be aborted,
        with all that it holds for other shards.
        """
        try:
            producer.list_topics(self._names.status, timeout=max(deadline - time.monotonic(), 0.05))
        except KafkaException:
            pass  # the next batch tries again

    def _check(self, plan: CommitPlan) -> None:
        """Check the fence rule."""
        led = {item.shard for item in plan.offsets if item.band == 0}
        touched = {event.partition for event in plan.events}
        touched.update(letter.record.partition for letter in plan.dead)
        if not touched <= led:
            self._state, self._why = _State.OVER, "fence rule"
            raise AssertionError(f"fence rule: shards {sorted(touched - led)} have records but no lead offset")

    def _worst(self, call: Call) -> Fault:
        """The worst of the refused records: one that ends the producer, else one that would fail again, else any."""
        order = (FaultKind.FENCED, FaultKind.RECORD)
        worst = min(
            self._refused,
            key=lambda one: next((i for i, kind in enumerate(order) if classify(one[0], call) is kind), len(order)),
        )[0]
        found = fault(worst, call)
        text = f"{found.text} ({len(self._refused)} records refused)"
        if worst.code() in NO_ANSWER_CODES:  # not refused: no broker answered, as when a flush is given up
            return Fault(FaultKind.FENCED, text, frozenset(place for _, place in self._refused))
        places = {place for _, place in self._refused} if found.kind is FaultKind.ABORT else set()
        return Fault(found.kind, text, frozenset(places))

    def _letter_places(self, producer: Producer, plan: CommitPlan, deadline: float) -> list[int] | None:
        """Partitions of tasks.dead that may take letters; None: each goes by its key. Raises KafkaException."""
        if not plan.dead or not plan.avoid:
            return None
        found = producer.list_topics(self._names.dead, timeout=max(deadline - time.monotonic(), 0.05))
        topic = found.topics.get(self._names.dead)
        return sorted(set(topic.partitions) - plan.avoid) if topic is not None else []

    def _enqueue(self, producer: Producer, plan: CommitPlan, deadline: float, places: list[int] | None) -> None:
        """Raises KafkaException, or BufferError if the queue stays full until the deadline."""
        encode, topic, dead = self._encode_event, self._names.status, self._names.dead
        produce: Callable[..., None] = producer.produce
        for event in plan.events:
            value, key = encode(event), status_key(event)
            headers = status_headers(event) if event.headers else None
            try:
                produce(topic, value, key, event.partition, headers=headers)
            except BufferError:
                self._when_room(producer, deadline, topic, value, key, event.partition, headers=headers)
        self._at_letters = True
        for letter in plan.dead:
            # Partitioned by key, not by the request's partition: tasks.dead belongs to no shard, and may have fewer
            # partitions than the bands after these have grown.
            dead_key, dead_value, dead_headers = self._encode_dead(letter)
            at = () if places is None else (places[zlib.crc32(dead_key or b"") % len(places)],)
            try:
                produce(dead, dead_value, dead_key, *at, headers=dead_headers)
            except BufferError:
                self._when_room(producer, deadline, dead, dead_value, dead_key, *at, headers=dead_headers)
        self._at_letters = False

    @staticmethod
    def _when_room(producer: Producer, deadline: float, *record: Any, **more: Any) -> None:
        while True:
            producer.flush(0.05)
            try:
                producer.produce(*record, **more)
                return
            except BufferError:
                if time.monotonic() >= deadline:
                    raise

    def send_offsets(self, plan: CommitPlan, group_metadata: Any | None, timeout_s: float) -> Fault | None:
        """Send the plan's offsets, as the last step before the commit.

        group_metadata  taken after the last poll; None: not a member of the group, and the broker would accept any offsets

        Answer: None; Fault(STALE | ABORT | RECORD): abort; or Fault(FENCED).
        """
        if over := self._ended():
            return over
        producer = self._move("send_offsets", _State.FLUSHED)
        assert plan.offsets, "a transaction without offsets is fenced by nobody"
        if group_metadata is None:
            return Fault(FaultKind.STALE, "send offsets: not a member of the group")
        topics = self._names.requests
        parts = [TopicPartition(topics[item.band], item.shard, item.offset, item.text) for item in plan.offsets]

        def send() -> None:
            producer.send_offsets_to_transaction(parts, group_metadata, timeout_s)

        timeout_s += self.throttled_s  # the answer comes on the connection that the broker delays
        limit_s = timeout_s + _OFFSETS_SPARE_S
        try:
            failure = self._aside.call(send, limit_s)
        except TimeoutError:
            # The producer is inside the call: it can neither abort nor be used again.
            return self._over(Fault(FaultKind.FENCED, f"send offsets: no answer after {limit_s:.1f} s"))
        if failure is not None:
            found, error = fault(failure, Call.SEND_OFFSETS), error_of(failure)
            if self._letters and error is not None and error.code() in _NO_TOPIC:
                # The error does not name tasks.status either, but if that is the reason, the next batch fails without
                # letters too.
                found = Fault(found.kind, found.text, frozenset({DEAD}))
            return self._over(found)
        if self._refused:
            return self._over(self._worst(Call.SEND_OFFSETS))
        self._state = _State.SENT
        return None

    def commit(self, timeout_s: float) -> Fault | None:
        """Commit. Answer: None; Fault(DOUBT), even if it succeeded but took longer than the socket timeout, because a copy
        of its EndTxn may still arrive and would end the next transaction early; otherwise as for the other calls.
        """
        if over := self._ended():
            return over
        producer = self._move("commit", _State.SENT)
        began = time.monotonic()
        try:
            producer.commit_transaction(timeout_s)
        except KafkaException as error:
            return self._over(fault(error, Call.COMMIT))
        took_ms = (time.monotonic() - began) * 1_000
        if took_ms >= SOCKET_TIMEOUT_MS:
            return self._over(Fault(FaultKind.DOUBT, f"commit: took {took_ms:.0f} ms"))
        self._state = _State.READY
        return None

    def abort(self, timeout_s: float) -> Fault | None:
        """Abort. Answer: None; Fault(RETRY): call again; or Fault(FENCED)."""
        if over := self._ended():
            return over
        if self._state is _State.READY:
            return None  # `produce` failed before it had begun: the partitions of tasks.dead could not be asked for
        producer = self._move("abort", _State.OPEN, _State.FLUSHED, _State.SENT)
        if self._abort_began is None:
            self._abort_began = time.monotonic()
        try:
            producer.abort_transaction(timeout_s)
        except KafkaException as error:
            return self._over(fault(error, Call.ABORT))
        took_ms, self._abort_began = (time.monotonic() - self._abort_began) * 1_000, None
        if took_ms >= SOCKET_TIMEOUT_MS:
            # A late copy of this EndTxn(abort) could throw the next batch away after it was flushed.
            return self._over(Fault(FaultKind.FENCED, f"abort: took {took_ms:.0f} ms"))
        self._refused.clear()
        self._state = _State.READY
        return None

    def discard(self) -> None:
        """Throw the producer away without waiting: closing it may block as long as brokers are gone. What it left open is
        fenced by the next claim of its shards, or ends with the transaction timeout.
        """
        producer, self._producer = self._producer, None
        self._state = _State.OVER
        self._aside.end()
        if producer is None:
            return
        holder = [producer]
        del producer
        threading.Thread(target=holder.clear, name="discard-producer", daemon=True).start()


class _Aside:
    """Runs a call that may ignore its own timeout in a thread that can be left behind: librdkafka #5456, when the group's
    coordinator dies inside send_offsets_to_transaction. One thread for all calls, started by the first.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # bounded by one call at a time
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()  # bounded by the calls
        self._started = False

    def call(self, call: Callable[[], None], limit_s: float) -> KafkaException | None:
        """None: it succeeded. Raises TimeoutError if it may never end: then nothing may be called here again."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="send-offsets", daemon=True).start()
        self._calls.put(call)
        try:
            error = self._answers.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError from None
        if error is None or isinstance(error, KafkaException):
            return error
        raise error

    def end(self) -> None:
        """Make the thread end after its last call."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            error: BaseException | None = None
            try:
                call()
            except BaseException as raised:  # noqa: BLE001 raised in the caller
                error = raised
            del call  # it holds the producer
            self._answers.put(error)
