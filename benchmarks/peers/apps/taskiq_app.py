"""Taskiq on a Redis stream: acknowledged once the result is saved, results in its own Redis backend."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import jobs
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

RUN = jobs.this_run()
backend = RedisAsyncResultBackend(RUN.address, result_ex_time=3_600)
broker = RedisStreamBroker(RUN.address, consumer_id="0").with_result_backend(backend)  # "0": what lies there already


@broker.task(task_name="job")
async def job(path: str, size: int, deep: bool, payload: str = "") -> dict[str, Any]:
    return await jobs.perform_async(RUN.job, path, size)


async def _submit() -> None:
    await broker.startup()
    for first in range(0, RUN.tasks, 200):
        part = range(first, min(first + 200, RUN.tasks))
        kicks = (job.kicker().with_task_id(jobs.task_id(i)).kiq(**jobs.parameters(RUN.job, i)) for i in part)
        await asyncio.gather(*kicks)
    await broker.shutdown()


def work() -> None:
    jobs.become(
        *("taskiq", "worker", "taskiq_app:broker", "--workers", str(RUN.processes)),
        *(
            "--max-async-tasks",
            str(RUN.concurrency),
            "--max-prefetch",
            "100",
            "--ack-type",
            "when_saved",
            "--log-level",
            "WARNING",
        ),
    )


async def _results() -> list[dict[str, Any]]:
    found = []
    for number in range(RUN.tasks):
        if await backend.is_result_ready(jobs.task_id(number)):
            held = await backend.get_result(jobs.task_id(number))
            found += [held.return_value] if not held.is_err else []
    return found


def results() -> Iterator[dict[str, Any]]:
    return iter(asyncio.run(_results()))


if __name__ == "__main__":
    jobs.asked(submit=lambda: asyncio.run(_submit()), work=work, results=results, key=jobs.task_id)
