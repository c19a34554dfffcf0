"""arq on Redis: a job leaves its queue when it is done, results in Redis. Its worker processes are started here."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jobs
from arq import create_pool
from arq.connections import RedisSettings
from arq.jobs import Job

RUN = jobs.this_run()
SETTINGS = RedisSettings.from_dsn(RUN.address)


async def job(ctx: dict[Any, Any], path: str, size: int, deep: bool, payload: str = "") -> dict[str, Any]:
    return await jobs.perform_async(RUN.job, path, size)


class WorkerSettings:
    functions = (job,)
    redis_settings = SETTINGS
    max_jobs = RUN.concurrency
    poll_delay = 0.01  # 0.5 is the default: it would be what is measured
    log_results = False


# By default it writes two lines for each job, which cost as much as the job.
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"arq": {"level": "WARNING"}}}


async def _submit() -> None:
    pool = await create_pool(SETTINGS)
    for first in range(0, RUN.tasks, 200):
        part = range(first, min(first + 200, RUN.tasks))
        await asyncio.gather(
            *(pool.enqueue_job("job", _job_id=jobs.task_id(i), **jobs.parameters(RUN.job, i)) for i in part)
        )
    await pool.aclose()


def work() -> None:
    command = [sys.executable, "-m", "arq", "arq_app.WorkerSettings", "--custom-log-dict", "arq_app.LOGGING"]
    # Its command line starts one process; several share the queue.
    workers = [subprocess.Popen(command) for _ in range(RUN.processes)]
    try:
        sys.exit(max(worker.wait() for worker in workers))
    finally:
        for worker in workers:
            worker.terminate()


async def _results() -> list[dict[str, Any]]:
    pool = await create_pool(SETTINGS)
    found = []
    for number in range(RUN.tasks):
        held = await Job(jobs.task_id(number), pool).result_info()
        found += [held.result] if held is not None and held.success else []
    await pool.aclose()
    return found


def results() -> Iterator[dict[str, Any]]:
    return iter(asyncio.run(_results()))


if __name__ == "__main__":
    jobs.asked(
        submit=lambda: asyncio.run(_submit()),
        work=work,
        results=results,
        key=lambda number: f"arq:result:{jobs.task_id(number)}",
    )
