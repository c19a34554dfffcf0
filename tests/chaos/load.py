"""The load of a chaos run: requests of every kind through the client, and records of services that do not have it.

A thread of its own keeps at most BACKLOG requests open. What was acknowledged is kept under its origin, with what it may
end as; of what was not acknowledged nothing is known, and nothing is expected. The draws come from the run's seed; how many
there are depends on the machine.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import Producer

from streamtask.domain.identity import new_task_id
from streamtask.domain.model import TaskRequest, to_ms
from streamtask.errors import SubmitError, Unreachable
from tests.acceptance.harness import Bench
from tests.chaos.kinds import LONGEST, WEIGHS, Kind, kinds
from tests.chaos.payload import payload

BACKLOG = 160  # open at once, but for the longest ones
LONGEST_OPEN = 400  # of those
LABELS_SHARE, LABELS_MAX, LABEL_BYTES = 0.01, 31, 1_024  # of requests; they are in each event of their task
RATE = 25.0  # requests a second, where the backlog allows it
BATCH = 10
WAITS_S = 5.0  # until what waits for its cancel is cancelled, at most
KEYS = 8  # ordering keys
CLIENTS = ("streamtask-client", "chaos-foreign")  # client.id of its two producers
SMALL = 10_000  # bytes of an event that every topic takes at every time
GARBAGE = (b"", b"\x00", b"\xc3\x01not avro", b"{", b"[]", b'{"task_type": ""}', b'{"priority": 11, "task_type": "x"}')


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of an acknowledged record. ends: see Kind; None: it is no request at all. large: one of its events
    may be. result: what it returns, or how many characters of text."""

    task_id: str | None
    ends: frozenset[str] | None
    task_type: str = ""
    result: int | None = None
    key: tuple[int, str] | None = None  # band and ordering key
    not_before_ms: int | None = None
    expires_ms: int | None = None
    large: bool = False


class Load:
    """start(), stop(). `acked`: by origin; `cancelled`: task_ids for which a cancel was sent, acknowledged or not; `sent`: how
    often each task_id was sent, likewise; `heard`: when a cancel of it was acknowledged."""

    def __init__(
        self, bench: Bench, seed: int, long_s: float, longest_s: float, minutes: float, rate: float = RATE
    ) -> None:
        self.bench = bench
        self.rate = rate
        self.acked: dict[str, Expected] = {}
        self.cancelled: set[str] = set()
        self.sent: Counter[str] = Counter()
        self.heard: dict[str, int] = {}
        self.unacknowledged = self.cancels = 0
        self.failure: BaseException | None = None
        self._rng = random.Random(f"load {seed}")
        self._kinds = kinds(long_s, longest_s)
        self._longest: set[str] = set()  # origins of the longest ones
        self._allowed = {
            i: max(kind.per_minute * minutes, 1.0) for i, kind in enumerate(self._kinds) if kind.per_minute
        }
        self._began = time.monotonic()
        self._seconds = max(minutes * 60, 1.0)
        self._used: dict[int, int] = {}
        self._cancel_at: deque[tuple[float, str]] = deque()
        self._again: deque[tuple[float, TaskRequest, Kind]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._raw = Producer(
            {
                "bootstrap.servers": bench.kafka.bootstrap,
                "client.id": CLIENTS[1],
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "message.timeout.ms": 30_000,
                "linger.ms": 0,
                "log_level": 0,
                "topic.metadata.refresh.interval.ms": 5_000,
            }
        )

    def start(self) -> None:
        self._began = time.monotonic()
        self._thread.start()

    def stop(self, timeout_s: float = 90.0) -> None:
        """No more of it; returns when everything that was sent is acknowledged or given up."""
        self._stop.set()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the load does not end: the broker does not answer"
        self._raw.flush(timeout_s)
        self.check()

    def check(self) -> None:
        """Raises what ended the load."""
        if self.failure is not None:
            raise self.failure

    @property
    def open(self) -> int:
        """Acknowledged and not ended yet."""
        return len(self.acked) - len(self.bench.ended & self.acked.keys())

    def _run(self) -> None:
        try:
            while not self._stop.wait(BATCH / self.rate):
                if self.open - len(self._longest - self.bench.ended) < BACKLOG:
                    self._submit(BATCH)
                    if self._rng.random() < 0.5:
                        self._foreign()
                self._due()
            self._due(everything=True)
        except BaseException as failure:  # noqa: BLE001 told by stop()
            self.failure = failure

    # --- Through the client -------------------------------------------------------------------------------------------

    def _kind(self) -> tuple[int, Kind]:
        """By weight; kinds with a budget are spread over the run."""
        share = min((time.monotonic() - self._began) / self._seconds + 0.05, 1.0)
        too_many = len(self._longest - self.bench.ended) >= LONGEST_OPEN
        while True:
            index = self._rng.choices(range(len(self._kinds)), [kind.weight for kind in self._kinds])[0]
            allowed = self._allowed.get(index)
            if too_many and self._kinds[index].task_type == LONGEST:
                continue
            if allowed is None or self._used.get(index, 0) < allowed * share:
                self._used[index] = self._used.get(index, 0) + 1
                return index, self._kinds[index]

    def _submit(self, count: int) -> None:
        made = [self._request() for _ in range(count)]
        self._send(made)

    def _request(self) -> tuple[TaskRequest, Kind]:
        rng = self._rng
        _, kind = self._kind()
        fields: dict[str, Any] = {
            "task_id": new_task_id(),
            "task_type": kind.task_type,
            "parameters": kind.draw(rng),
            "priority": rng.randint(1, 10),
            "labels": {"chaos": kind.task_type},
        }
        if rng.random() < LABELS_SHARE:
            for number in range(rng.randint(1, LABELS_MAX)):
                fields["labels"][f"heavy-{number}"] = payload(LABEL_BYTES, rng.randrange(1 << 30))
        special = rng.random()
        if kind.task_type == "async_nap" and special < 0.15:
            fields["ordering_key"] = f"key-{rng.randrange(KEYS)}"
        elif special < 0.18:
            fields["expires_at"] = datetime.now(UTC) + timedelta(seconds=rng.uniform(0.1, 3.0))
        elif special < 0.21:
            fields["not_before"] = datetime.now(UTC) + timedelta(seconds=rng.uniform(0.5, 4.0))
        request = TaskRequest(**fields)
        wish = rng.random()
        if kind.task_type.endswith("_waits"):  # it ends by its cancel alone
            self._cancel_at.append((time.monotonic() + rng.uniform(0.0, WAITS_S), fields["task_id"]))
        elif wish < 0.02:
            self._cancel(fields["task_id"])  # before it is there
        elif wish < 0.06:
            self._cancel_at.append((time.monotonic() + rng.uniform(0.0, 3.0), fields["task_id"]))
        if rng.random() < 0.03:
            self._again.append((time.monotonic() + rng.uniform(0.0, 4.0), request, kind))
        return request, kind

    def _send(self, made: list[tuple[TaskRequest, Kind]]) -> None:
        for request, _ in made:
            assert request.task_id is not None
            self.sent[request.task_id] += 1
        try:
            receipts = self.bench.client.submit_many([request for request, _ in made])
        except (SubmitError, Unreachable):
            self.unacknowledged += len(made)  # some may be there: the audit looks at every record
            return
        bands = self.bench.names
        for (request, kind), receipt in zip(made, receipts, strict=True):
            band = bands.band_named(receipt.band)
            parameters = request.parameters or {}
            self.acked[receipt.origin] = Expected(
                receipt.task_id,
                kind.ends,
                kind.task_type,
                _result(kind, parameters),
                (band, request.ordering_key) if band is not None and request.ordering_key else None,
                to_ms(request.not_before) if request.not_before is not None else None,
                to_ms(request.expires_at) if request.expires_at is not None else None,
                _large(request),
            )
            if kind.task_type == LONGEST:
                self._longest.add(receipt.origin)

    def _cancel(self, task_id: str) -> None:
        self.cancelled.add(task_id)
        self.cancels += 1
        try:
            self.bench.client.cancel(task_id, "chaos")
        except (SubmitError, Unreachable):
            return
        self.heard.setdefault(task_id, time.time_ns() // 1_000_000)

    def cancel_longest(self) -> int:
        """Those that have not ended: what they are for is over, and nobody waits ten minutes for them. Returns how many."""
        left = sorted(self._longest - self.bench.ended)
        for origin in left:
            task_id = self.acked[origin].task_id
            assert task_id is not None
            self._cancel(task_id)
        return len(left)

    def _due(self, *, everything: bool = False) -> None:
        now = time.monotonic()
        for _ in range(len(self._cancel_at)):
            at, task_id = self._cancel_at.popleft()
            if everything or at <= now:
                self._cancel(task_id)
            else:
                self._cancel_at.append((at, task_id))
        again = []
        for _ in range(len(self._again)):
            at, request, kind = self._again.popleft()
            if everything or at <= now:
                again.append((request, kind))
            else:
                self._again.append((at, request, kind))
        if again:
            self._send(again)

    # --- Of others ----------------------------------------------------------------------------------------------------

    def _foreign(self) -> None:
        """One record as a service writes it that knows the topic and nothing else."""
        rng = self._rng
        choice = rng.random()
        band = rng.randrange(len(self.bench.names.requests))
        if choice < 0.25:
            self._produce(band, rng.choice((*GARBAGE, rng.randbytes(64))), None, [], Expected(None, None))
            return
        ms = rng.randint(1, 60)
        kind = rng.choice(("async_nap", "thread_nap", "process_nap"))
        body: dict[str, Any] = {"task_type": kind, "parameters": {"ms": ms}, "unknown": [None]}
        task_id, key, headers = new_task_id(), None, []
        if choice < 0.45:
            body["task_id"] = task_id
        elif choice < 0.6:
            headers = [("task_id", task_id.encode())]
        elif choice < 0.75:
            key = task_id.encode()
        elif choice < 0.8:
            body["task_id"] = "not-a-uuid"
            self._produce(band, json.dumps(body).encode(), b"somebody", [], Expected(None, None))
            return
        else:
            task_id = ""
        expected = Expected(task_id or None, frozenset({"completed"}), kind, ms)
        self._produce(band, json.dumps(body, ensure_ascii=False).encode(), key, headers, expected)

    def _produce(
        self, band: int, value: bytes, key: bytes | None, headers: list[tuple[str, Any]], expected: Expected
    ) -> None:
        self._raw.produce(
            self.bench.names.requests[band],
            value,
            key,
            headers=headers,
            on_delivery=self._told(band, expected),
        )
        self._raw.poll(0)

    def _told(self, band: int, expected: Expected) -> Callable[[Any, Any], None]:
        def told(error: Any, message: Any) -> None:
            if error is not None:
                self.unacknowledged += 1
                return
            name = self.bench.names.bands[band].name
            self.acked[f"{name}-{message.partition()}@{message.offset()}"] = expected

        return told


def _result(kind: Kind, parameters: dict[str, Any]) -> int | None:
    if kind.task_type == WEIGHS:
        return int(parameters["size"])
    return parameters.get("ms") if kind.task_type.endswith("_nap") or kind.task_type == LONGEST else None


def _large(request: TaskRequest) -> bool:
    """One of its events may be more than a narrowed status topic takes."""
    labels = sum(map(len, (request.labels or {}).values()))
    return int((request.parameters or {}).get("size", 0)) + labels >= SMALL
