"""Handlers with spans of their own, in every kind of executor."""

from __future__ import annotations

import asyncio
import os
import time

from opentelemetry import trace

from streamtask import App, Context, Retry
from tests.acceptance.apps import recorded
from tests.acceptance.tracing_setup import install

install()
app = App("acceptance-tracing")
tracer = trace.get_tracer("handlers")


@app.task
async def on_the_loop(ctx: Context, path: str) -> str:
    with recorded(ctx), tracer.start_as_current_span("inside on_the_loop"):
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 the event comes from another process
            await asyncio.sleep(0.01)
        return path


@app.task
def in_a_thread(ctx: Context, path: str) -> str:
    with recorded(ctx), tracer.start_as_current_span("inside in_a_thread"):
        while not os.path.exists(path):
            ctx.check_cancelled()
            time.sleep(0.01)
        return path


@app.task(executor="process")
def in_a_child(ctx: Context, path: str) -> str:
    with recorded(ctx), tracer.start_as_current_span("inside in_a_child"):
        while not os.path.exists(path):
            time.sleep(0.01)
        return path


@app.task(executor="process")
async def on_the_loop_of_a_child(ctx: Context, path: str) -> str:
    with recorded(ctx), tracer.start_as_current_span("inside on_the_loop_of_a_child"):
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 the event comes from another process
            await asyncio.sleep(0.01)
        return path


@app.task(retry=Retry(attempts=3, backoff=0.05))
async def flaky(ctx: Context, failures: int) -> int:
    with recorded(ctx):
        if ctx.attempt <= failures:
            raise RuntimeError(f"attempt {ctx.attempt} fails")
        return ctx.attempt
