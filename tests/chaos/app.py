"""The handlers of a chaos run: well-behaved ones of each kind and length, and those that misbehave in every way we know.

Each execution writes its start and, unless it dies, its end into the record of the harness (ACCEPTANCE_RECORD), as
tests/acceptance/apps.py does. The prefix of a task type says how it runs: async_, thread_ or process_.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from typing import Any

from streamtask import App, Context, Retry
from tests.acceptance.apps import _write, recorded
from tests.chaos.payload import payload

app = App("chaos")
WAITS_MS = 90_000


# --- Well-behaved -----------------------------------------------------------------------------------------------------


@app.task
async def async_nap(ctx: Context, ms: int) -> int:
    with recorded(ctx):
        await asyncio.sleep(ms / 1_000)
        return ms


@app.task
def thread_nap(ctx: Context, ms: int) -> int:
    """Looks at ctx.cancelled, as a plain function must."""
    with recorded(ctx):
        _nap(ctx, ms)
        return ms


@app.task("process_nap", executor="process")
def process_nap(ctx: Context, ms: int) -> int:
    with recorded(ctx):
        _nap(ctx, ms)
        return ms


def _nap(ctx: Context, ms: int) -> None:
    until = time.monotonic() + ms / 1_000
    while (left := until - time.monotonic()) > 0:
        ctx.check_cancelled()
        time.sleep(min(left, 0.02))


@app.task
async def async_counts(ctx: Context, ms: int) -> int:
    """Says how far it is at every step."""
    with recorded(ctx):
        for step in range(5):
            ctx.progress((step + 1) / 5, f"step {step + 1}")
            await asyncio.sleep(ms / 5_000)
        return ms


@app.task
async def async_long(ctx: Context, ms: int) -> int:
    """A minute, ten minutes: whatever dies meanwhile begins again."""
    with recorded(ctx):
        await asyncio.sleep(ms / 1_000)
        return ms


@app.task
async def async_weighs(ctx: Context, size: int, text: str, salt: int) -> str:
    """Heavy where it comes in, heavy where it goes out."""
    with recorded(ctx):
        assert text == payload(len(text), salt), "what came in is not what was sent"
        return payload(size, salt)


# They last far longer than it takes a cancel to reach them, and are always cancelled.


@app.task
async def async_waits(ctx: Context) -> None:
    with recorded(ctx):
        await asyncio.sleep(WAITS_MS / 1_000)


@app.task
def thread_waits(ctx: Context) -> None:
    with recorded(ctx):
        _nap(ctx, WAITS_MS)


@app.task("process_waits", executor="process")
def process_waits(ctx: Context) -> None:
    with recorded(ctx):
        _nap(ctx, WAITS_MS)


@app.task
async def async_large(ctx: Context, size: int) -> str:
    with recorded(ctx):
        return "x" * size


# --- Failing ----------------------------------------------------------------------------------------------------------

# The failures are those of this execution's number: a task that lost workers meanwhile is past them, and completes too.


@app.task("async_flaky", retry=Retry(attempts=4, backoff=0.2))
async def async_flaky(ctx: Context, failures: int) -> int:
    with recorded(ctx):
        if ctx.attempt <= failures:
            raise RuntimeError(f"attempt {ctx.attempt} fails")
        return ctx.attempt


@app.task("thread_flaky", retry=Retry(attempts=4, backoff=0.2))
def thread_flaky(ctx: Context, failures: int) -> int:
    with recorded(ctx):
        if ctx.attempt <= failures:
            raise RuntimeError(f"attempt {ctx.attempt} fails")
        return ctx.attempt


@app.task("process_flaky", executor="process", retry=Retry(attempts=4, backoff=0.2))
def process_flaky(ctx: Context, failures: int) -> int:
    with recorded(ctx):
        if ctx.attempt <= failures:
            raise RuntimeError(f"attempt {ctx.attempt} fails")
        return ctx.attempt


@app.task
async def async_raises(ctx: Context) -> None:
    with recorded(ctx):
        raise ValueError("never any good")


@app.task
async def async_garbage(ctx: Context) -> Any:
    with recorded(ctx):
        return threading.Lock()


# --- Misbehaving ------------------------------------------------------------------------------------------------------


@app.task("async_hangs", timeout=1.0)
async def async_hangs(ctx: Context) -> None:
    with recorded(ctx):
        await asyncio.Event().wait()


@app.task("thread_hangs", timeout=1.0)
def thread_hangs(ctx: Context) -> None:
    """For two seconds beyond its timeout, whatever it is told."""
    with recorded(ctx):
        time.sleep(3.0)


@app.task("process_hangs", executor="process", timeout=1.0)
def process_hangs(ctx: Context) -> int:
    """In C: no Python code of this process runs any more, and no signal handler."""
    _write(ctx, "start")
    return sum(range(10**15))


@app.task("async_ignores", timeout=0.5)
async def async_ignores(ctx: Context) -> None:
    """Goes on for two seconds after it was cancelled."""
    with recorded(ctx):
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                continue


@app.task
async def async_blocks(ctx: Context, ms: int) -> int:
    """The whole event loop of its worker."""
    with recorded(ctx):
        time.sleep(ms / 1_000)  # noqa: ASYNC251
        return ms


@app.task
async def async_exits(ctx: Context) -> None:
    """Kills its worker, until it is isolated."""
    _write(ctx, "start")
    os._exit(3)


@app.task("process_segfaults", executor="process", retry=Retry(backoff=0.0))
def process_segfaults(ctx: Context) -> None:
    _write(ctx, "start")
    ctypes.string_at(0)


@app.task("process_exits", executor="process", retry=Retry(backoff=0.0))
def process_exits(ctx: Context) -> None:
    _write(ctx, "start")
    os._exit(0)


@app.task("process_eats", executor="process", memory_mb=64)
def process_eats(ctx: Context) -> int:
    with recorded(ctx):
        return len([bytearray(1 << 20) for _ in range(200)])


@app.task("process_forks", executor="process")
def process_forks(ctx: Context) -> str:
    """Both copies come back from here; the worker hears of one."""
    _write(ctx, "start")
    if os.fork() == 0:
        return "the copy"
    os.wait()
    _write(ctx, "end")
    return "the first"


@app.task("process_prints", executor="process")
def process_prints(ctx: Context) -> str:
    with recorded(ctx):
        os.write(1, (b"o" * 127 + b"\n") * 8_192)
        os.write(2, (b"e" * 127 + b"\n") * 8_192)
        return "2 MB"
