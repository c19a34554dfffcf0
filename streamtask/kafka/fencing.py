"""Step 2 of a claim: abort what dead or frozen owners have open, by calling `init_transactions` once with each of their ids.

A fresh client waits 500 ms before it retries, whatever its settings say, if it asks for its id before anything is
connected, or before the markers of the transaction that it has just aborted are written (librdkafka; on an idle broker one
in thirty, one in seven if it has connected before; always after an open transaction). That was half of a take-over. So a
second client sends the same request HEDGE_S later: the id belongs to no live process, its epoch may rise any number of
times, and the first answer proves that nothing of it is open any more.

An id that answers CONCURRENT_TRANSACTIONS for DECIDED_S counts as fenced. The outcome of its transaction is decided, and only
the markers of a partition that accepts none at the moment are missing: to wait for them would keep every shard of the claim
from its owner (decision 0014). Offsets that are still pending delay the next step (takeover.read_settled); nothing else
matters here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Producer

from streamtask.config.kafka import KafkaSettings
from streamtask.domain.ports import Fault, FaultKind
from streamtask.kafka.faults import Call, error_of, fault

FENCES_AT_ONCE = 32  # threads; more ids wait for a free one
HEDGE_S = 0.06  # an answer takes 15 ms; the delay doubles each time
RETRY_S = 0.02
DECIDED_S = 0.7  # to abort an open transaction, or complete a decided one, takes less if its markers can be written
TRIES_MAX = 4  # clients that ask for one id: at 0, 60, 180 and 420 ms


@dataclass(slots=True)
class _Fence:
    transactional_id: str
    tries: int = 0
    failed: int = 0
    again_s: float = 0.0  # when the next client asks, monotonic
    error: KafkaException | None = None
    done: bool = False  # another client has fenced this id


def fence_ids(
    settings: KafkaSettings, ids: Sequence[str], *, timeout_s: float, on_refused: Callable[[str], None] | None = None
) -> Fault | None:
    """Fence these ids in parallel. Answer: None, or a Fault if not all of them were fenced in time.

    on_refused  called for an id that the ACLs do not let us use: the claim then waits for its transaction to end instead
    """
    deadline = time.monotonic() + timeout_s
    answers: queue.SimpleQueue[tuple[_Fence, KafkaException | None]] = queue.SimpleQueue()  # bounded by the tries
    waiting = {name: _Fence(name) for name in dict.fromkeys(ids)}
    running = 0

    def ask(fence: _Fence) -> None:
        # Closing the producer may block when brokers are gone, so only this thread holds it.
        error: KafkaException | None = KafkaException(KafkaError(KafkaError._TIMED_OUT, "not asked in time"))
        decided = time.monotonic() + DECIDED_S
        try:
            producer = Producer(settings.transactional(fence.transactional_id))
            while (left_s := deadline - time.monotonic()) > 0 and not fence.done:
                try:
                    producer.init_transactions(min(left_s, DECIDED_S))
                    error = None
                    break
                except KafkaException as raised:
                    error, held = raised, error_of(raised)
                    if held is None or not held.retriable():
                        break
                    if held.code() == KafkaError.CONCURRENT_TRANSACTIONS and time.monotonic() >= decided:
                        error = None
                        break
                time.sleep(RETRY_S)  # the markers of the open transaction are being written
        except KafkaException as raised:
            error = raised
        answers.put((fence, error))

    while waiting and (now := time.monotonic()) < deadline:
        for fence in sorted(waiting.values(), key=lambda one: one.tries):
            if running < FENCES_AT_ONCE and fence.tries < TRIES_MAX and fence.again_s <= now:
                fence.again_s = now + HEDGE_S * 2**fence.tries
                fence.tries += 1
                running += 1
                threading.Thread(target=ask, args=(fence,), name="fence", daemon=True).start()
        due_s = min((one.again_s for one in waiting.values() if one.tries < TRIES_MAX), default=deadline)
        if running >= FENCES_AT_ONCE:
            due_s = deadline  # the next client starts when another one has its answer
        try:
            fence, error = answers.get(timeout=max(min(due_s, deadline) - time.monotonic(), 0.001))
        except queue.Empty:
            continue
        running -= 1
        if error is None or _refused(error):
            fence.done = True
            if waiting.pop(fence.transactional_id, None) is not None and error is not None and on_refused is not None:
                on_refused(
                    f"no WRITE on transactional id {fence.transactional_id}: its open transaction has to time out"
                )
            continue
        fence.failed += 1
        fence.error = fence.error or error
        if fence.failed == fence.tries and fence.transactional_id in waiting:
            return fault(error, Call.FENCE)
    for fence in waiting.values():
        if fence.error is not None:
            return fault(fence.error, Call.FENCE)
    if waiting:
        return Fault(FaultKind.RETRY, f"fence: {len(waiting)} of {len(ids)} ids not answered in {timeout_s} s")
    return None


def _refused(error: KafkaException) -> bool:
    held = error_of(error)
    return held is not None and held.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
