"""Every librdkafka property that streamtask sets, with its reason. Dicts in, dicts out.

One method per kind of client. Always true: each property on which a guarantee depends (isolation, idempotence, timeouts,
who commits) is spelled out here even where it equals librdkafka's default, because a default may change between
versions. `extra` (the user's raw settings: security, tuning) is applied last and wins.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from streamtask.errors import ConfigError

Scalar = str | int | float | bool
Properties = dict[str, Any]
ClientRole = Literal["client", "cli", "demo", "dev", "reader", "redrive", "supervisor", "test", "view", "worker"]

CLIENT_ID_PREFIX = "streamtask-"  # of every client.id: `streamtask doctor` recognises members of a group by it

# A frozen broker keeps its connections open: with librdkafka's default of 60 s the worker would stop for 61 s.
SOCKET_TIMEOUT_MS = 6_000
# The next owner of its shards aborts a dead owner's transaction; without one it blocks readers for this long.
TRANSACTION_TIMEOUT_MS = 10_000
# For a worker with a slow connection: the longest flush (core/batch_size.py, 30 s), the offsets and the commit.
TRANSACTION_TIMEOUT_PATIENT_MS = 45_000
# A member learns that another one has died, left or joined from the answer to its next heartbeat, and no shard moves until
# every member knows. With 1 s that was the longest part of a take-over. 250 ms cost a broker 4 small requests a second.
HEARTBEAT_INTERVAL_MS = 250
SESSION_TIMEOUT_MIN_MS = 3_000
FETCH_BYTES_MIN, FETCH_BYTES_MAX = 64 << 10, 1 << 20  # of one partition in one answer, compressed
# Above what any topic accepts, so that the topic decides (max.message.bytes, even if it is changed later), and below the
# largest request that a broker reads (socket.request.max.bytes, 100 MiB): beyond that it closes the connection. It does
# not bound a batch: batch.size does that, and a larger record travels in a batch of its own.
MESSAGE_BYTES_MAX = 64 << 20
DELIVERY_TIMEOUT_MS = 30_000  # for client and control records: after this time the submit fails


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Settings of all clients of one process.

    client_id              prefix of client.id; names the process in broker logs and quotas
    extra                  the user's raw librdkafka settings; they are applied last. oauth_cb may be given as the name of a
                           function, `module:function`, because settings are text
    batch_bytes            largest record batch; less than half of the topics' max.message.bytes (1 MiB unless changed):
                           that limit applies to the batch, librdkafka does not split one, and a refused batch would
                           abort the same transaction for ever
    message_bytes_max      largest single record that the producers hand to the broker, which applies its topic's limit
    fetch_kbytes           how much a worker prefetches, over all partitions
    tail_kbytes            how much a tail prefetches, over all partitions
    on_error               called with client-level errors (KafkaError), for information: the next call raises a fatal one
    """

    bootstrap: str
    client_id: str = "streamtask"
    extra: Mapping[str, Scalar] = field(default_factory=dict)
    session_timeout_ms: int = 6_000  # the minimum that brokers allow by default
    max_poll_interval_ms: int = 60_000
    batch_bytes: int = 400_000
    message_bytes_max: int = MESSAGE_BYTES_MAX
    fetch_kbytes: int = 10_922
    tail_kbytes: int = 65_536
    on_error: Callable[[Any], None] | None = field(default=None, compare=False)

    @property
    def held_bytes_max(self) -> int:
        """Bytes that a worker's consumer keeps back while it serves the group."""
        return self.fetch_kbytes * 1_024

    def __post_init__(self) -> None:
        if not self.bootstrap:
            raise ConfigError("bootstrap is empty. Name the brokers as HOST:PORT[,HOST:PORT].")
        if self.session_timeout_ms < SESSION_TIMEOUT_MIN_MS:
            raise ConfigError(
                f"session_timeout_ms={self.session_timeout_ms} is too short: use {SESSION_TIMEOUT_MIN_MS} or more; a host "
                "that pauses for that long would lose its shards."
            )
        if self.max_poll_interval_ms < self.session_timeout_ms:
            raise ConfigError(
                f"max_poll_interval_ms={self.max_poll_interval_ms} is below session_timeout_ms="
                f"{self.session_timeout_ms}: librdkafka refuses that. Raise it."
            )
        self._callbacks()
        if not 1 <= self.batch_bytes <= self.message_bytes_max:
            raise ConfigError(f"batch_bytes={self.batch_bytes}: use 1..message_bytes_max={self.message_bytes_max}.")

    def _common(self) -> Properties:
        properties: Properties = {
            "bootstrap.servers": self.bootstrap,
            "client.id": self.client_id,
            "socket.timeout.ms": SOCKET_TIMEOUT_MS,
            "socket.connection.setup.timeout.ms": 5_000,  # default 30 s; must be below the socket timeout
            "socket.nagle.disable": True,  # lower latency when idle
            "socket.keepalive.enable": True,  # detects a NAT that dropped the connection
            "reconnect.backoff.ms": 20,  # a broker that returns is used at once ...
            "reconnect.backoff.max.ms": 1_000,  # ... and not 10 s later (default)
            # AddOffsetsToTxn retries at this interval while the previous transaction's markers are written: the default of
            # 100 ms makes every transaction take 100 ms.
            "retry.backoff.ms": 1,
            "retry.backoff.max.ms": 10,
            "enable.metrics.push": False,  # KIP-714: not needed; 2.5.0 crashed on it
            "log_level": 0,  # librdkafka prints every refused connection to stderr; on_error gets what matters
            "log.connection.close": False,
        }
        if self.on_error is not None:
            properties["error_cb"] = self.on_error
        return properties

    def _with_extra(self, properties: Properties, bound: Mapping[str, Scalar] | None = None) -> Properties:
        """`extra` overrides everything but `bound`: the properties that define this kind of client."""
        return {**properties, **self.extra, **self._callbacks(), **(bound or {})}

    def _callbacks(self) -> Properties:
        """The callback functions that settings name. Raises ConfigError."""
        named = self.extra.get("oauth_cb")
        return {"oauth_cb": named_function("kafka.oauth_cb", named)} if isinstance(named, str) else {}

    def consumer(self, group: str) -> Properties:
        """The member of the workers' group, which reads requests and owns shards."""
        properties = self._common() | {
            "group.protocol": "classic",  # faster fail-over than KIP-848, and supported by every broker
            "session.timeout.ms": self.session_timeout_ms,  # after it, a dead host's shards move
            "heartbeat.interval.ms": HEARTBEAT_INTERVAL_MS,
            "max.poll.interval.ms": self.max_poll_interval_ms,  # an owner thread that hangs longer loses its shards
            "fetch.min.bytes": 1,
            # Data is answered at once in any case. It bounds how long a seek or a resume waits for the fetch in flight, and
            # costs an idle worker 20 requests a second.
            "fetch.wait.max.ms": 50,
            "fetch.error.backoff.ms": 50,  # default 500
            "fetch.queue.backoff.ms": 10,  # default 1000: a gap of a second whenever the prefetch was full
            # Over all partitions, because their queues are forwarded to that of the consumer. The backlog stays in Kafka.
            "queued.min.messages": 1_000,
            "queued.max.messages.kbytes": self.fetch_kbytes,  # over all partitions
            # Both limits apply only before a fetch, and a fetch counts compressed bytes: with librdkafka's 1 MiB, a backlog of
            # small requests in 36 partitions took 290 MB of a worker; with 64 KiB, 30 MB. A larger batch still comes, alone.
            "max.partition.fetch.bytes": FETCH_BYTES_MIN,
            "allow.auto.create.topics": False,  # a missing topic is an error; do not create it with one partition
        }
        made = self._with_extra(
            properties,
            {
                "group.id": group,
                # Whole shards: members subscribe to the lead topic, and shards move one at a time.
                "partition.assignment.strategy": "cooperative-sticky",
                "auto.offset.reset": "error",  # positions are set explicitly; a reset would skip or repeat a whole log
                "enable.auto.commit": False,  # offsets are committed only within transactions
                "enable.auto.offset.store": False,
                "enable.partition.eof": False,
                "isolation.level": "read_committed",  # foreign producers may use transactions
            },
        )
        poll, session = str(made["max.poll.interval.ms"]), str(made["session.timeout.ms"])
        if poll.isdigit() and session.isdigit() and int(poll) < int(session):  # otherwise librdkafka says what is wrong
            raise ConfigError(
                f"kafka: max.poll.interval.ms={poll} is below session.timeout.ms={session}: "
                "librdkafka refuses that. Raise it, or lower session_timeout_ms."
            )
        return made

    def _producer(self) -> Properties:
        return self._common() | {
            "acks": "all",
            "max.in.flight.requests.per.connection": 5,  # the maximum that idempotence allows
            "partitioner": "murmur2_random",  # as in Java clients; librdkafka's default places the same key elsewhere
            "compression.type": "lz4",  # a third fewer bytes for 0.2 µs a record
            "batch.size": self.batch_bytes,
            "message.max.bytes": self.message_bytes_max,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 200_000,  # more than two batches; then produce() applies back-pressure
            "queue.buffering.max.kbytes": 131_072,
            "request.timeout.ms": 5_000,  # default 30 s: how long the broker waits for its replicas
        }

    def transactional(self, transactional_id: str, *, patient: bool = False) -> Properties:
        """The producer of one worker: status events, dead letters and offsets in transactions.

        patient  a single record may take longer than the usual timeout
        """
        timeout_ms = TRANSACTION_TIMEOUT_PATIENT_MS if patient else TRANSACTION_TIMEOUT_MS
        properties = self._producer() | {
            "transaction.timeout.ms": timeout_ms,
            # At most the transaction's: librdkafka refuses more, and a record would outlive its transaction.
            "message.timeout.ms": timeout_ms,
            "linger.ms": 0,  # one burst, then a flush
            "delivery.report.only.error": True,  # identifies refused records, without a callback for each delivered one
        }
        return self._with_extra(properties, {"transactional.id": transactional_id, "enable.idempotence": True})

    def idempotent(self, *, reports: bool = True, linger_ms: int = 5) -> Properties:
        """The producer of clients, for requests and control messages.

        reports    False: only failures are reported (bulk)
        linger_ms  longest wait of a single submit, so that several share a batch; flush() does not wait for it
        """
        properties = self._producer() | {
            "linger.ms": linger_ms,
            "message.timeout.ms": DELIVERY_TIMEOUT_MS,
        }
        return self._with_extra(properties, {"enable.idempotence": True, "delivery.report.only.error": not reports})

    def tail(self, *, read_committed: bool = True) -> Properties:
        """A reader without a group: it reads whole topics, then follows them."""
        properties = self._common() | {
            # librdkafka requires a name; nothing is joined, committed or looked up under it.
            "group.id": f"{self.client_id}.tail",
            "fetch.min.bytes": 1,
            "fetch.wait.max.ms": 50,  # default 500: the wait at the end of each partition would dominate a restore
            "fetch.error.backoff.ms": 50,
            "fetch.queue.backoff.ms": 10,
            "queued.min.messages": 100_000,
            "queued.max.messages.kbytes": self.tail_kbytes,
            # In proportion to the prefetch, for the reason above; librdkafka's own value from 64 MB on.
            "max.partition.fetch.bytes": max(FETCH_BYTES_MIN, min(FETCH_BYTES_MAX, self.tail_kbytes * 16)),
            "allow.auto.create.topics": False,
        }
        return self._with_extra(
            properties,
            {
                "auto.offset.reset": "error",  # the reader decides where to continue, and reports it
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,  # positions pass over markers and compacted ends
                # It joins no group; but a max.poll.interval.ms set for the workers, if it is below librdkafka's own session
                # timeout of 45 s, would be refused.
                "session.timeout.ms": SESSION_TIMEOUT_MIN_MS,
                "isolation.level": "read_committed" if read_committed else "read_uncommitted",
            },
        )

    def admin(self) -> Properties:
        """For topics, listings and log ends."""
        return self._with_extra(self._common())


def client_id(role: ClientRole, process: str | None = None) -> str:
    """The client.id of a role, `streamtask-cli`; for a process with a name, `streamtask-census@host-17`."""
    return CLIENT_ID_PREFIX + (process or role)


def named_function(setting: str, path: str) -> Callable[..., Any]:
    """The function that `module:function` names. Raises ConfigError."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name) if module and name else None
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{setting}={path!r} cannot be loaded: {error}.") from None
    if not callable(found):
        raise ConfigError(f"{setting}={path!r}: write it as module:function.")
    return found  # type: ignore[no-any-return]
