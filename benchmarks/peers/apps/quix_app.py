"""Quix Streams: each process one thread, record after record. Modes: exactly-once, at-least-once."""

from __future__ import annotations

from typing import Any

import jobs
from quixstreams import Application

RUN = jobs.this_run()


def handle(request: dict[str, Any]) -> dict[str, Any]:
    given = request["parameters"]
    return jobs.completed(request, jobs.perform(RUN.job, given["path"], given["size"]))


def main() -> None:
    app = Application(
        broker_address=RUN.address,
        consumer_group=RUN.group,
        auto_offset_reset="earliest",
        processing_guarantee=RUN.mode,
        commit_interval=0.5,  # 5 s is the default
        commit_every=1_000,
        auto_create_topics=False,
        use_changelog_topics=False,
        state_dir=".",  # of this run; forgotten with it
        producer_extra_config={"compression.type": "lz4"},
        loglevel="WARNING",
    )
    requests = app.topic(RUN.requests, key_deserializer="bytes", value_deserializer="json")
    results = app.topic(RUN.results, key_serializer="bytes", value_serializer="json")
    app.dataframe(requests).apply(handle).to_topic(results)
    app.run()


if __name__ == "__main__":
    jobs.in_each_process(main)
