"""Faust-streaming: output sent without waiting for each. Modes: each (coroutines of one agent), batch."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import faust
import jobs

WITHIN_S = 0.02  # so long it waits for a batch to fill
RUN = jobs.this_run()
app = faust.App(
    RUN.group,
    broker=f"kafka://{RUN.address}",
    datadir=".",  # of this run; forgotten with it
    topic_disable_leader=True,
    topic_allow_declare=False,
    consumer_auto_offset_reset="earliest",
    producer_linger=0.005,  # s
)
requests = app.topic(RUN.requests, value_serializer="json", key_serializer="raw", key_type=bytes)
results = app.topic(RUN.results, value_serializer="json", key_serializer="raw", key_type=bytes)


async def perform(request: dict[str, Any]) -> dict[str, Any]:
    given = request["parameters"]
    return jobs.completed(request, await jobs.perform_async(RUN.job, given["path"], given["size"]))


async def handle_each(stream: faust.StreamT[Any]) -> None:
    async for key, request in stream.items():
        await results.send(key=key, value=await perform(request))  # buffered; its delivery is not awaited


async def handle_batch(stream: faust.StreamT[Any]) -> None:
    async for events in stream.take_events(RUN.concurrency, within=WITHIN_S):
        for event, result in zip(events, await asyncio.gather(*(perform(one.value) for one in events)), strict=True):
            await results.send(key=event.key, value=result)


if RUN.mode == "batch":
    app.agent(requests)(handle_batch)
else:
    app.agent(requests, concurrency=RUN.concurrency)(handle_each)


def main() -> None:
    # Without the web server: two processes would want one port.
    sys.argv[1:] = ["--loop", "uvloop", "worker", "--loglevel", "warn", "--without-web"]
    app.main()


if __name__ == "__main__":
    jobs.in_each_process(main)
