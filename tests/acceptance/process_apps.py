"""Process handlers of the acceptance tests; they keep the same record of executions as those of apps.py."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psutil

from streamtask import App, Context, Retry
from tests.acceptance.apps import _write, recorded

app = App("processes")


@app.task(executor="process")
def noop(ctx: Context, n: int = 0) -> int:
    with recorded(ctx):
        return n


@app.task(executor="process")
def hold(ctx: Context, path: str) -> str:
    """Runs until the file exists. It first starts a process that it never ends, before it records its own start."""
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"], start_new_session=True)
    with recorded(ctx):
        ctx.progress(0.5, "half")
        while not os.path.exists(path):
            time.sleep(0.01)
        return path


@app.task(executor="process", timeout=1.0)
def spins(ctx: Context) -> int:
    """A loop in C: no Python code of this process runs any more, and no signal handler."""
    _write(ctx, "start")
    return sum(range(10**15))


@app.task(executor="process")
def dies(ctx: Context) -> None:
    _write(ctx, "start")
    os.abort()


@app.task(executor="process", memory_mb=64)
def eats(ctx: Context, mb: int) -> int:
    with recorded(ctx):
        return len([bytearray(1024 * 1024) for _ in range(mb)])


@app.task(executor="process", timeout=1.0)
def ignores_term(ctx: Context) -> None:
    _write(ctx, "start")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


@app.task(executor="process", retry=Retry(backoff=0.0))
def misbehaves(ctx: Context, kind: str) -> Any:
    """What a handler may do to the child that it runs in."""
    _write(ctx, "start")
    channel = int(sys.argv[2])  # the child's end of its pipe, which is none of a handler's business
    if kind == "returns garbage":
        return threading.Lock()
    if kind == "prints 10 MB":
        sys.stdout.write("o" * 10_000_000 + "\n")
        sys.stdout.flush()
        sys.stderr.write("e" * 10_000_000 + "\n")
        return kind
    if kind == "forks":
        if os.fork() == 0:
            return "the copy"  # both copies come back from here
        os.wait()
        return kind
    if kind == "segfaults":
        ctypes.string_at(0)
    if kind == "closes its pipe":
        os.close(channel)
    if kind == "writes into its pipe":
        os.write(channel, b"this is no frame of ours, whatever it says\n")
    if kind == "exits":
        os._exit(0)
    time.sleep(3600)
    return None


@app.task
async def neighbour(ctx: Context, path: str) -> str:
    """In the worker itself."""
    with recorded(ctx):
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 the event comes from another process
            await asyncio.sleep(0.01)
        return path


@app.task
async def says(ctx: Context) -> None:
    with recorded(ctx):
        ctx.log.info("said", where="on the loop")


@app.task
def says_in_a_thread(ctx: Context) -> None:
    with recorded(ctx):
        ctx.log.info("said", where="in a thread")


@app.task(executor="process")
def says_in_a_child(ctx: Context) -> None:
    with recorded(ctx):
        ctx.log.info("said", where="in a child")


_long_ones_running: list[int] = []  # their attempts


@app.task
async def kills_its_worker(ctx: Context) -> None:
    """Wherever it runs: isolation does not hold this one.

    Its first two attempts wait for ten neighbours to kill, the second also for one that the first has killed before. Later
    ones are trials, in which it may be alone: they kill after a second.
    """
    _write(ctx, "start")
    deadline = time.monotonic() + (60 if ctx.attempt <= 2 else 1)

    def has_neighbours() -> bool:
        return len(_long_ones_running) >= 10 and max(_long_ones_running) >= min(ctx.attempt, 2)

    while not has_neighbours() and time.monotonic() < deadline:  # noqa: ASYNC110 a kill of its process ends it, too
        await asyncio.sleep(0.01)
    for parent in (psutil.Process(), *psutil.Process().parents()):
        if "streamtask.worker.process" in parent.cmdline():
            parent.kill()
            break
    await asyncio.Event().wait()


@app.task
async def dies_in_the_worker(ctx: Context) -> None:
    _write(ctx, "start")
    os._exit(3)


@app.task
async def long(ctx: Context, ms: int) -> int:
    with recorded(ctx):
        _long_ones_running.append(ctx.attempt)
        try:
            await asyncio.sleep(ms / 1_000)
        finally:
            _long_ones_running.remove(ctx.attempt)
        return os.getpid()
