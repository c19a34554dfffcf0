"""RQ on Redis: results in its own result streams. Workers that run jobs in themselves, without a fork for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jobs
from redis import Redis
from rq import Queue
from rq.job import Job

RUN = jobs.this_run()
connection = Redis.from_url(RUN.address)
queue = Queue(connection=connection)


def job(path: str, size: int, deep: bool, payload: str = "") -> dict[str, Any]:
    return jobs.perform(RUN.job, path, size)


def submit() -> None:
    for first in range(0, RUN.tasks, 500):
        part = range(first, min(first + 500, RUN.tasks))
        queue.enqueue_many(
            [
                Queue.prepare_data(
                    "rq_app.job", kwargs=jobs.parameters(RUN.job, i), job_id=jobs.task_id(i), result_ttl=3_600
                )
                for i in part
            ]
        )


def work() -> None:
    jobs.become(
        *("rq.cli", "worker-pool", "--num-workers", str(RUN.processes), "--url", RUN.address, "--quiet"),
        *("--worker-class", "rq.worker.SimpleWorker"),
    )


def results() -> Iterator[dict[str, Any]]:
    for number in range(RUN.tasks):
        found = Job(jobs.task_id(number), connection=connection).return_value()
        if found is not None:
            yield found


if __name__ == "__main__":
    jobs.asked(
        submit=submit,
        work=work,
        results=results,
        key=lambda number: f"rq:results:{jobs.task_id(number)}",
    )
