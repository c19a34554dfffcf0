"""Handlers that kill the process that they run in, one of each kind and way, and their harmless neighbours.

They keep the same record of executions as those of apps.py. What has to wait for its test waits for a file.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from pathlib import Path

from streamtask import App, Context, Retry
from tests.acceptance.apps import _write, recorded

app = App("poison")
AGAIN = Retry(backoff=0.0)
_beside: set[str] = set()  # handlers of `beside` that run in this process


def _die(how: str) -> None:
    if how == "exits":
        os._exit(7)
    if how == "segfaults":
        ctypes.string_at(0)
    if how == "aborts":
        os.abort()
    if how == "killed":  # as the kernel does where memory runs out
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory":  # as native code does that cannot do without
        try:
            held = [bytearray(1024 * 1024) for _ in range(4_000)]
        except MemoryError:
            os.abort()
        raise AssertionError(f"{len(held)} MB are no limit")
    raise AssertionError(f"{how!r} is no way to die")


def gate(gates: str, ctx: Context) -> Path:
    """What a handler that tells progress first waits for, in each attempt of its own."""
    return Path(gates) / f"{ctx.task_id}.{ctx.attempt}"


@app.task(retry=AGAIN)
async def poison(ctx: Context, how: str, gates: str = "") -> None:
    _write(ctx, "start")
    if gates:
        ctx.progress(0.5, "half")
        while not gate(gates, ctx).exists():  # noqa: ASYNC110 the event comes from another process
            await asyncio.sleep(0.01)
    _die(how)


def _plainly(ctx: Context, how: str, gates: str) -> None:
    _write(ctx, "start")
    if gates:
        ctx.progress(0.5, "half")
        while not gate(gates, ctx).exists():
            time.sleep(0.01)
    _die(how)


@app.task(retry=AGAIN)
def poison_thread(ctx: Context, how: str, gates: str = "") -> None:
    _plainly(ctx, how, gates)


@app.task(executor="process", retry=AGAIN)
def poison_process(ctx: Context, how: str, gates: str = "") -> None:
    _plainly(ctx, how, gates)


@app.task(executor="process", memory_mb=64, retry=AGAIN)
def poison_hungry(ctx: Context, how: str) -> None:
    _plainly(ctx, how, "")


@app.task(retry=AGAIN)
async def eats(ctx: Context, mb: int) -> int:
    """Really takes the memory, in the process that it runs in."""
    _write(ctx, "start")
    held = bytearray()
    for _ in range(mb):
        held += b"x" * 1024 * 1024
        await asyncio.sleep(0)
    return len(held)


@app.task
async def beside(ctx: Context, path: str) -> str:
    """Runs until somebody makes the file."""
    with recorded(ctx):
        _beside.add(ctx.task_id)
        try:
            while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 the event comes from another process
                await asyncio.sleep(0.01)
        finally:
            _beside.discard(ctx.task_id)
        return path


@app.task
def beside_thread(ctx: Context, path: str) -> str:
    with recorded(ctx):
        while not os.path.exists(path):
            ctx.check_cancelled()
            time.sleep(0.01)
        return path


@app.task(executor="process")
def beside_process(ctx: Context, path: str) -> str:
    with recorded(ctx):
        while not os.path.exists(path):
            time.sleep(0.01)
        return path


@app.task(retry=AGAIN)
async def jealous(ctx: Context, path: str) -> str:
    """Kills its process where `beside` runs in it too; alone it is harmless."""
    _write(ctx, "start")
    while not os.path.exists(path):  # noqa: ASYNC240 the event comes from another process
        if _beside:
            os._exit(8)
        await asyncio.sleep(0.01)
    _write(ctx, "end")
    return path


@app.task
async def noop(ctx: Context, n: int = 0) -> int:
    with recorded(ctx):
        return n
