"""Handlers of each kind that run until somebody makes a file, and one that lets no thread of its process run."""

from __future__ import annotations

import asyncio
import os
import time

from streamtask import App, Context
from tests.acceptance.apps import recorded

app = App("long")


@app.task
async def long_async(ctx: Context, path: str) -> str:
    with recorded(ctx):
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 the event comes from another process
            await asyncio.sleep(0.01)
        return path


@app.task
def long_thread(ctx: Context, path: str) -> str:
    with recorded(ctx):
        while not os.path.exists(path):
            ctx.check_cancelled()
            time.sleep(0.01)
        return path


@app.task(executor="process")
def long_process(ctx: Context, path: str) -> str:
    with recorded(ctx):
        while not os.path.exists(path):
            time.sleep(0.01)
        return path


@app.task
async def noop(ctx: Context) -> int:
    with recorded(ctx):
        return ctx.attempt


@app.task
async def keeps_the_interpreter_at_first(ctx: Context) -> int:
    """A loop in C: no thread of this process runs any Python any more, and Kafka's own threads go on."""
    with recorded(ctx):
        return ctx.attempt if ctx.attempt > 1 else sum(range(10**15))
