"""Pyrallel-Consumer, which has no output of its own: the handler produces the result. Modes: async or process engine,
-awaited (until the broker has it) or -forgotten (handed to the producer, and the request counts as done)."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import cache
from typing import Any

import jobs
from confluent_kafka import Producer
from pyrallel_consumer import ExecutionMode, KafkaConfig, OrderingMode, PyrallelConsumer, WorkItem

RUN = jobs.this_run()
ENGINE, _, OUTPUT = RUN.mode.partition("-")
LINGER_MS = 5
AWAITED = OUTPUT == "awaited"


@cache
def producer() -> Producer:
    """One of each process that runs handlers; made there at the first result."""
    flushed = AWAITED and ENGINE == "process"  # which serves the reports by itself, and has nobody to wait for
    made = Producer(
        {"bootstrap.servers": RUN.address, "compression.type": "lz4", "linger.ms": 0 if flushed else LINGER_MS}
    )

    def serve() -> None:
        while True:
            made.poll(0.1)

    if not flushed:
        threading.Thread(target=serve, daemon=True).start()
    return made


def answer(request: dict[str, Any], result: dict[str, Any], **more: Any) -> None:
    value = json.dumps(jobs.completed(request, result)).encode()
    producer().produce(RUN.results, value, request["task_id"].encode(), **more)


async def handle_async(item: WorkItem) -> None:
    request = json.loads(item.payload)
    given = request["parameters"]
    result = await jobs.perform_async(RUN.job, given["path"], given["size"])
    if not AWAITED:
        answer(request, result)
        return
    loop = asyncio.get_running_loop()
    delivered: asyncio.Future[None] = loop.create_future()
    answer(request, result, on_delivery=lambda _error, _message: loop.call_soon_threadsafe(delivered.set_result, None))
    await delivered


def handle(item: WorkItem) -> None:
    request = json.loads(item.payload)
    given = request["parameters"]
    answer(request, jobs.perform(RUN.job, given["path"], given["size"]))
    if AWAITED:
        producer().flush()


async def main() -> None:
    config = KafkaConfig()
    config.BOOTSTRAP_SERVERS = [RUN.address]
    config.CONSUMER_GROUP = RUN.group
    config.dlq_enabled = False
    parallel = config.parallel_consumer
    parallel.ordering_mode = OrderingMode.UNORDERED
    # Its default polls 1,000 at once. When more than max_in_flight are there, it pauses the consumer, which drops what was
    # fetched and fetches it again: with 500 in flight that happened at each poll (4,000 tasks/s; 10,000 to 15,000 with 2,000).
    parallel.execution.max_in_flight = RUN.concurrency
    parallel.queue_max_messages = 2 * RUN.concurrency
    parallel.execution.mode = ExecutionMode(ENGINE)
    parallel.execution.process_config.process_count = RUN.processes
    parallel.execution.process_config.msgpack_max_bytes = 16_000_000  # a batch above it is lost: 64 requests of 20 KB
    worker: Any = handle_async if ENGINE == "async" else handle
    consumer = PyrallelConsumer(config=config, worker=worker, topic=RUN.requests)
    await consumer.start()
    try:
        await consumer.wait_closed()
    finally:
        await consumer.stop()


if __name__ == "__main__":
    if ENGINE == "async":
        jobs.in_each_process(lambda: asyncio.run(main()))
    else:
        asyncio.run(main())
