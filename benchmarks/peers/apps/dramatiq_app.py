"""Dramatiq on Redis: acknowledged after the actor, results in its own Redis backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import jobs
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from dramatiq.results.errors import ResultMissing

RUN = jobs.this_run()
backend = RedisBackend(url=RUN.address)
broker = RedisBroker(url=RUN.address)
broker.add_middleware(Results(backend=backend))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True, result_ttl=3_600_000)
def job(path: str, size: int, deep: bool, payload: str = "") -> dict[str, Any]:
    return jobs.perform(RUN.job, path, size)


def message(number: int, given: dict[str, Any]) -> dramatiq.Message[Any]:
    return job.message(**given).copy(message_id=jobs.task_id(number))


def submit() -> None:
    for number in range(RUN.tasks):
        broker.enqueue(message(number, jobs.parameters(RUN.job, number)))


def work() -> None:
    counts = ("--processes", str(RUN.processes), "--threads", str(RUN.concurrency))
    jobs.become("dramatiq", "dramatiq_app", *counts)


def results() -> Iterator[dict[str, Any]]:
    for number in range(RUN.tasks):
        try:
            yield backend.get_result(message(number, {}))
        except ResultMissing:
            continue


if __name__ == "__main__":
    jobs.asked(
        submit=submit,
        work=work,
        results=results,
        key=lambda number: backend.build_message_key(message(number, {})),
    )
