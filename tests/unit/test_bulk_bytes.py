"""The client's bulk path holds so many bytes, not only so many records; who fills it waits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from streamtask.client.sending import BULK_BYTES_MAX, BULK_LOAD_MAX, Sender
from streamtask.config.kafka import KafkaSettings
from streamtask.kafka.producer import BulkResult

pytestmark = pytest.mark.anyio
HEAVY = (b"k", bytes(900_000), None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class SlowProducer:
    """Takes a load once `go` is set; counts what it was given."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.sent = 0
        self.heaviest = 0

    def produce_bulk(self, _topic: str, records: Any) -> BulkResult:
        self.go.wait(10)
        held = list(records)
        self.sent += len(held)
        self.heaviest = max(self.heaviest, sum(len(value) for _, value, _ in held))
        return BulkResult(sent=len(held))

    def close(self) -> None:
        pass


async def test_heavy_requests_of_the_bulk_path_make_the_caller_wait_long_before_their_number_would() -> None:
    sender = Sender(KafkaSettings("127.0.0.1:1"))
    real, slow = sender._producer, SlowProducer()
    sender._producer = slow  # type: ignore[assignment]
    loaded = 0

    async def fill() -> None:
        nonlocal loaded
        for _ in range(200):
            light = sender.load("t", HEAVY)
            loaded += 1
            if not light:
                await sender.go()

    filling = asyncio.get_running_loop().create_task(fill(), name="fill")
    for _ in range(100):
        await asyncio.sleep(0)
    at_most = 2 * (BULK_BYTES_MAX // len(HEAVY[1]) + 1)  # one load is being sent, one waits
    assert 0 < loaded <= at_most < BULK_LOAD_MAX
    slow.go.set()
    await filling
    assert await sender.drain(10)
    assert slow.sent == 200
    assert slow.heaviest <= BULK_BYTES_MAX + len(HEAVY[1])
    await sender.close()
    await asyncio.to_thread(real.close)
