"""Celery on Redis: acknowledged late, results in its own Redis backend. Modes: prefork, threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jobs
from celery import Celery

RUN = jobs.this_run()
app = Celery("celery_app", broker=RUN.address, backend=RUN.address)
app.conf.update(
    task_acks_late=True,
    task_track_started=False,
    worker_prefetch_multiplier=16,  # 4 is the default: with no-ops the pool would wait for the broker
    result_expires=3_600,
    broker_connection_retry_on_startup=True,
)


@app.task(name="job")
def job(path: str, size: int, deep: bool, payload: str = "") -> dict[str, Any]:
    return jobs.perform(RUN.job, path, size)


def submit() -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(RUN.tasks):
            given = jobs.parameters(RUN.job, number)
            job.apply_async(kwargs=given, task_id=jobs.task_id(number), producer=producer)


def worker(name: str, concurrency: int) -> None:
    jobs.become(
        *("celery", "-A", "celery_app", "worker", "--loglevel", "WARNING", "--pool", RUN.mode, "--hostname", name),
        *("--concurrency", str(concurrency), "--without-gossip", "--without-mingle", "--without-heartbeat"),
    )


def work() -> None:
    if RUN.mode == "prefork":
        worker("worker@%h", RUN.processes)
    jobs.in_each_process(lambda: worker(f"worker{os.environ.get(jobs.NUMBER, 0)}@%h", RUN.concurrency))


def results() -> Iterator[dict[str, Any]]:
    for number in range(RUN.tasks):
        if (found := app.backend.get_task_meta(jobs.task_id(number)))["status"] == "SUCCESS":
            yield found["result"]


if __name__ == "__main__":
    jobs.asked(
        submit=submit,
        work=work,
        results=results,
        key=lambda number: app.backend.get_key_for_task(jobs.task_id(number)),
    )
