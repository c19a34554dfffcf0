"""The handlers of the acceptance tests. Every execution writes its start and its end into one file, a line each.

The file (ACCEPTANCE_RECORD) is opened with O_APPEND, so lines of many processes do not mix, and what was written stands
there however the process dies: the tests prove with it what ran, when, and under which attempt.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from streamtask import App, Context, GiveUp, Retry, RetryLater

app = App("acceptance")
_record = os.open(os.environ.get("ACCEPTANCE_RECORD", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _write(ctx: Context, what: str) -> None:
    line = {
        "id": ctx.task_id,
        "origin": ctx.origin,
        "attempt": ctx.attempt,
        "what": what,
        "pid": os.getpid(),
        "type": ctx.request.task_type,
        "ms": time.time_ns() // 1_000_000,
        "parent": os.getppid(),
    }
    os.write(_record, json.dumps(line).encode() + b"\n")


@contextmanager
def recorded(ctx: Context) -> Iterator[None]:
    """The first and the last thing of an execution."""
    _write(ctx, "start")
    try:
        yield
    finally:
        _write(ctx, "end")


@app.task
async def noop(ctx: Context, n: int = 0) -> int:
    with recorded(ctx):
        return n


@app.task
def plain(ctx: Context, n: int = 0) -> int:
    with recorded(ctx):
        return n


@app.task
async def nap(ctx: Context, ms: int) -> int:
    with recorded(ctx):
        await asyncio.sleep(ms / 1_000)
        return ms


@app.task
def sleep(ctx: Context, ms: int) -> int:
    """A plain function that ends only by itself."""
    with recorded(ctx):
        time.sleep(ms / 1_000)
        return ms


@app.task("one_at_a_time", concurrency=1)
async def one_at_a_time(ctx: Context, ms: int = 0, path: str = "") -> int:
    """Runs for `ms`, and then, if there is a path, until the file exists."""
    with recorded(ctx):
        await asyncio.sleep(ms / 1_000)
        while path and not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 the event comes from another process
            await asyncio.sleep(0.01)
        return ms


@app.task
async def wait_for(ctx: Context, path: str) -> str:
    """Runs until somebody makes the file, or stops it."""
    with recorded(ctx):
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 the event comes from another process
            await asyncio.sleep(0.01)
        return path


@app.task
def block(ctx: Context, path: str) -> str:
    """The same in a thread; it looks at ctx.cancelled, as a plain function must."""
    with recorded(ctx):
        while not os.path.exists(path):
            ctx.check_cancelled()
            time.sleep(0.01)
        return path


@app.task
async def counts(ctx: Context, steps: int, ms: int) -> int:
    """Says how far it is at every step."""
    with recorded(ctx):
        for step in range(steps):
            ctx.progress((step + 1) / steps, f"step {step + 1}")
            await asyncio.sleep(ms / 1_000)
        return steps


@app.task("flaky", retry=Retry(attempts=3, backoff=0.2))
async def flaky(ctx: Context, failures: int) -> int:
    with recorded(ctx):
        if ctx.attempt <= failures:
            raise RuntimeError(f"attempt {ctx.attempt} fails")
        return ctx.attempt


@app.task("later", retry=Retry(attempts=2, backoff=60.0))
async def later(ctx: Context, after: float) -> int:
    with recorded(ctx):
        if ctx.attempt == 1:
            raise RetryLater(after=after)
        return ctx.attempt


@app.task("hopeless", retry=Retry(attempts=5, backoff=0.0))
async def hopeless(ctx: Context) -> None:
    with recorded(ctx):
        raise GiveUp("no use")


@app.task
async def dies(ctx: Context) -> None:
    _write(ctx, "start")
    os._exit(1)


@app.task(timeout=5.0)
async def keeps_the_interpreter(ctx: Context) -> int:
    """A loop in C: no thread of this process runs any Python any more, and Kafka's own threads go on."""
    _write(ctx, "start")
    return sum(range(10**15))


@app.task
async def large(ctx: Context, size: int) -> str:
    with recorded(ctx):
        return "x" * size


@app.task
async def noise(ctx: Context, size: int) -> str:
    """A result that no compression makes smaller than three quarters of it."""
    with recorded(ctx):
        return base64.b64encode(os.urandom(size * 3 // 4)).decode()


@app.task
async def odd(ctx: Context) -> Any:
    with recorded(ctx):
        return threading.Lock()


class Point(BaseModel):
    x: int
    y: int = 0


@app.task
async def typed(ctx: Context, params: Point) -> int:
    with recorded(ctx):
        return params.x + params.y


@app.task
async def long_inference(ctx: Context, prompt: str, max_tokens: int, temperature: float) -> dict[str, str]:
    with recorded(ctx):
        assert prompt
        assert max_tokens > 0
        assert temperature > 0
        ctx.progress(0.65)
        await asyncio.sleep(0.3)
        return {"analysis": "...", "prediction": "..."}
