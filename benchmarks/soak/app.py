"""The jobs of the soak: short ones of every kind, with progress, results, failures and retries."""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from typing import Any

from benchmarks.soak import queues
from streamtask import App, Context, Retry

app = App("soak")
queues.watch_if_wanted()  # this module is the first thing of ours that a worker process loads

LEAK = "SOAK_LEAK_BYTES"  # a coroutine keeps so many bytes for ever: shows that the soak would see it
_leak_bytes = int(os.environ.get(LEAK, "0"))
_kept: list[bytes] = []


@app.task("nap")
async def nap(ms: int, text: str) -> dict[str, Any]:
    if _leak_bytes:
        _kept.append(os.urandom(_leak_bytes))
    await asyncio.sleep(ms / 1_000)
    return {"text": text, "ms": ms}


@app.task("steps")
async def steps(ctx: Context, count: int) -> int:
    for step in range(count):
        ctx.progress((step + 1) / count, f"step {step + 1}")
        await asyncio.sleep(0.12)  # a little more than one progress event is told in
    return count


@app.task("flaky", retry=Retry(attempts=2, backoff=0.05))
async def flaky(ctx: Context, fails: bool) -> int:
    if fails or ctx.attempt == 1:
        raise RuntimeError(f"attempt {ctx.attempt} fails")
    return ctx.attempt


@app.task("squeeze")
def squeeze(ms: int, size: int) -> int:
    """In a thread."""
    time.sleep(ms / 1_000)
    return len(zlib.compress(b"streamtask" * size, 1))


@app.task("weigh", executor="process")
def weigh(ms: int, size: int) -> str:
    """In a child; its result is `size` characters long."""
    time.sleep(ms / 1_000)
    return "x" * size
