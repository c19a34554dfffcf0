"""What waits inside librdkafka, by its own statistics: one line of JSON for every client and interval, into one file.

The product sets no statistics callback. Here `watch` puts one into the settings of those clients that are polled (a client
that nobody polls would keep every document until its end, which would be growth of our own making): the member of the
group, the transactional producer, the producers of clients, and tails that read committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from streamtask.config.kafka import KafkaSettings

PLACE = "SOAK_QUEUES"  # environment: the file; unset: nothing is watched
EVERY_MS = "SOAK_QUEUES_MS"


class Queues(NamedTuple):
    """What one client held at one moment. messages: to be sent; fetched: to be read; replies: to be served."""

    pid: int
    client: str
    at_s: float  # wall clock
    messages: int
    fetched: int
    replies: int


def watch_if_wanted() -> None:
    """Call it before the first client is made."""
    place = os.environ.get(PLACE)
    if place:
        watch(Path(place), int(os.environ[EVERY_MS]))


def watch(place: Path, every_ms: int) -> None:
    """From now on every such client of this process tells into that file."""
    out = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def tell(text: str) -> None:
        os.write(out, orjson.dumps(tuple(_held(text))) + b"\n")

    wanted = {"statistics.interval.ms": every_ms, "stats_cb": tell}

    def with_statistics(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def made(self: KafkaSettings, *arguments: Any, **named: Any) -> dict[str, Any]:
            unpolled = named.get("read_committed") is False  # kafka/takeover.py's, which only asks
            return make(self, *arguments, **named) | ({} if unpolled else wanted)

        return made

    for name in ("consumer", "transactional", "idempotent", "tail"):
        setattr(KafkaSettings, name, with_statistics(getattr(KafkaSettings, name)))


def _held(text: str) -> Queues:
    told = orjson.loads(text)
    parts = [part for topic in told["topics"].values() for part in topic["partitions"].values()]
    fetched = max(
        (part["fetchq_cnt"] for part in parts), default=0
    )  # all of them are one queue, and each tells its length
    return Queues(os.getpid(), told["name"], told["time"], told["msg_cnt"], fetched, told["replyq"])


def read(place: Path) -> Iterator[Queues]:
    """Everything that was told so far; a line that is being written is left out."""
    with place.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield Queues(*orjson.loads(line))
