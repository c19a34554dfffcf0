"""Where the time of a task goes: microseconds of CPU in each room of the worker, without broker, network and threads.

Requests as bytes go through the rooms that they go through in a worker, in batches of the same size; whatever the broker
and the handler would do happens at once and is not timed. What is missing beside `throughput`'s figure is librdkafka
(produce, compress, send, fetch), the event loop, and what two threads take from each other.
"""

from __future__ import annotations

import gc
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.app import app, parameters
from streamtask.client.build import prepare
from streamtask.codec import RequestDecoder, status_headers, status_key
from streamtask.codec.formats import Encoder
from streamtask.config import EngineConfig, TopicNames
from streamtask.core import ownership, protocol, turn
from streamtask.core.engine import Engine
from streamtask.domain.model import HandlerKind, Outcome, RequestRecord
from streamtask.domain.ports import (
    Ask,
    CommitPlain,
    Committed,
    EndTransaction,
    Flush,
    ListOffsets,
    Now,
    Pause,
    Produce,
    ReadControl,
    ReadSettled,
    Resume,
    Seat,
    SendOffsets,
    Settled,
    Start,
)
from streamtask.execution.outcomes import returned
from streamtask.worker.process import tame_collector

_write_status = Encoder().status_writer("rooms", locale="en", worker="benchmark@localhost:12345")
ROOMS = ("decode", "take in", "admit, pick, build", "encode", "settle", "end")
RECORDS_MAX = 2_000  # of one poll, as in the worker


class _Rooms:
    """An engine that owns every shard, a log in memory before it, and a stop watch for each room."""

    def __init__(self, tasks: int, concurrency: int, partitions: int) -> None:
        self.names = TopicNames("rooms")
        self.cells = tuple((band, shard) for shard in range(partitions) for band in range(len(self.names.bands)))
        self.log: dict[tuple[int, int], list[tuple[bytes, bytes]]] = {cell: [] for cell in self.cells}
        for number in range(tasks):
            request = {"task_type": "noop", "parameters": parameters(number), "priority": number % 10 + 1}
            one = prepare(request, self.names)
            self.log[one.band, number % partitions].append((one.key, one.value))
        self.read = dict.fromkeys(self.cells, 0)
        self.paused: set[tuple[int, int]] = set()
        self.spent: Counter[str] = Counter()
        self.transactions = 0
        self.decode = RequestDecoder(self.names, "cluster").decode
        slots = {HandlerKind.ASYNC: concurrency, HandlerKind.THREAD: 16, HandlerKind.PROCESS: 0}
        config = EngineConfig(policies=app.registry.policies(), slots=slots)
        self.engine = Engine(config, "rooms.workers.0.abcdef", random.Random(1))

    def clock(self) -> Now:
        return Now(time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000)

    def timed(self, room: str, step: Callable[[], Any]) -> Any:
        began = time.thread_time_ns()
        answer = step()
        self.spent[room] += time.thread_time_ns() - began
        return answer

    def perform(self, ask: Ask) -> Any:
        if isinstance(ask, ListOffsets):
            return {cell: Committed() for cell in self.cells}
        if isinstance(ask, ReadSettled):
            return {cell: Settled(None, None, 0, 0) for cell in self.cells}
        assert isinstance(ask, (CommitPlain, Seat, Produce, Flush, SendOffsets, EndTransaction)), "nothing fails here"
        if isinstance(ask, Produce):
            self.transactions += 1
            self.timed("encode", lambda: self.encode(ask))
        return None

    @staticmethod
    def encode(ask: Produce) -> None:
        for event in ask.plan.events:
            _write_status(event)
            status_key(event)
            status_headers(event)

    def poll(self) -> list[RequestRecord]:
        records: list[RequestRecord] = []
        for cell in self.cells:
            band, shard = cell
            if cell in self.paused:
                continue
            at = self.read[cell]
            part = self.log[cell][at : at + RECORDS_MAX // len(self.cells) + 1]
            self.read[cell] = at + len(part)
            records += [
                self.decode(band, shard, at + i, 1_700_000_000_000, k, v, None) for i, (k, v) in enumerate(part)
            ]
        return records

    def turn(self) -> int:
        """One turn of the owner loop; returns how many tasks ended in it."""
        engine = self.engine
        records = self.timed("decode", self.poll)
        if records:
            self.timed("take in", lambda: engine.fetched(records))
        batch = self.timed("admit, pick, build", lambda: engine.build(self.clock()))
        if batch is None:
            return 0
        flow = protocol.commit(engine, batch, self.clock)
        encoded = self.spent["encode"]
        self.timed("settle", lambda: turn.drive(flow, self.perform))
        self.spent["settle"] -= self.spent["encode"] - encoded
        starts = []
        for effect in engine.take_effects():
            match effect:
                case Start():
                    starts.append(effect)
                case Pause(cells):
                    self.paused.update(cells)
                case Resume(cells):
                    self.paused.difference_update(cells)
        outcomes = [(start.token, returned({"path": "lib/module.py", "size": 1})) for start in starts]
        self.timed("end", lambda: self.end(outcomes))
        return len(starts)

    def end(self, outcomes: list[tuple[int, Outcome]]) -> None:
        now = self.clock()
        for token, outcome in outcomes:
            self.engine.ended(token, outcome, now)

    def run(self, tasks: int) -> None:
        turn.drive(
            protocol.assigned(self.engine, range(len(self.cells) // len(self.names.bands)), self.clock), self.perform
        )
        for effect in self.engine.take_effects():
            if isinstance(effect, ReadControl):
                ownership.control_read(self.engine, effect.shards)
        done = 0
        while done < tasks or self.engine.running or self.engine.urgent:
            done += self.turn()


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module."""
    assert not bootstrap, "no broker takes part"
    rooms = _Rooms(tasks, concurrency, partitions)
    collect_after = gc.get_threshold()
    tame_collector()
    try:
        rooms.run(tasks)
    finally:
        gc.set_threshold(*collect_after)
        gc.unfreeze()
    spent = {name: round(rooms.spent[name] / tasks / 1_000, 2) for name in ROOMS}
    return {
        "cpu_us_per_task": round(sum(rooms.spent.values()) / tasks / 1_000, 1),
        "rooms_us": spent,
        "transactions": rooms.transactions,
        "tasks": tasks,
        "partitions": partitions,
    }
