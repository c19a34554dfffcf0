"""FastStream on confluent-kafka. Modes: each (coroutines, the consumer commits by itself), batch (acknowledged after)."""

from __future__ import annotations

import asyncio
from typing import Any

import jobs
import uvloop
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker

RUN = jobs.this_run()
# Without a logger, as in its own benchmarks: by default it writes two lines for each message.
broker = KafkaBroker(RUN.address, compression_type="lz4", linger_ms=5, logger=None)
app = FastStream(broker)
common: dict[str, Any] = {
    "group_id": RUN.group,
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",  # the backlog is a transaction
}


async def perform(request: dict[str, Any]) -> dict[str, Any]:
    given = request["parameters"]
    return jobs.completed(request, await jobs.perform_async(RUN.job, given["path"], given["size"]))


if RUN.mode == "each":

    @broker.subscriber(RUN.requests, max_workers=RUN.concurrency, ack_policy=AckPolicy.ACK_FIRST, **common)
    @broker.publisher(RUN.results)
    async def handle(request: dict[str, Any]) -> dict[str, Any]:
        return await perform(request)

else:

    @broker.subscriber(RUN.requests, batch=True, max_records=RUN.concurrency, ack_policy=AckPolicy.ACK, **common)
    @broker.publisher(RUN.results, batch=True)
    async def handle_batch(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(perform, requests)))


def main() -> None:
    """As a process of `faststream run --workers N`, which takes uvloop where it is installed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.run())


if __name__ == "__main__":
    jobs.in_each_process(main)
