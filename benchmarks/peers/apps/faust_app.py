"""Faust-streaming: in each process an agent of many coroutines; its output sent without waiting for each (at least once)."""

from __future__ import annotations

import sys
from typing import Any

import faust
import jobs

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


@app.agent(requests, concurrency=RUN.concurrency)
async def handle(stream: faust.StreamT[Any]) -> None:
    async for key, request in stream.items():
        given = request["parameters"]
        result = await jobs.perform_async(RUN.job, given["path"], given["size"])
        await results.send(key=key, value=jobs.completed(request, result))  # buffered; its delivery is not awaited


def main() -> None:
    sys.argv[1:] = [
        "--loop",
        "uvloop",
        "worker",
        "--loglevel",
        "warn",
        "--without-web",
    ]  # two processes would want one port
    app.main()


if __name__ == "__main__":
    jobs.in_each_process(main)
