"""Handlers that do not end when they are told to; the same record of executions as that of apps.py."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from streamtask import App, Context, Retry
from tests.acceptance.apps import _write, recorded

app = App("stops")


@app.task(executor="process", timeout=3.0)
def inside_c(ctx: Context, kind: str, pids: str) -> object:
    """Starts a process that outlives it, then never comes back to Python."""
    started = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"], start_new_session=True)
    Path(pids, ctx.task_id).write_text(str(started.pid))
    _write(ctx, "start")
    if kind == "a regular expression":
        return re.match(r"(a+)+$", "a" * 60 + "b")
    if kind == "a hash":
        return hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    return sum(range(10**15))


@app.task(executor="process")
def child_noop(ctx: Context) -> None:
    with recorded(ctx):
        pass


@app.task(retry=Retry(attempts=3, backoff=0.0))
async def stubborn(ctx: Context) -> None:
    """Swallows every cancel."""
    _write(ctx, "start")
    while True:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            pass


@app.task
def deaf(ctx: Context, path: str) -> str:
    """Never looks whether it was told to stop."""
    with recorded(ctx):
        while not os.path.exists(path):
            time.sleep(0.01)
        return path


@app.task
def thread_noop(ctx: Context) -> None:
    with recorded(ctx):
        pass


@app.task
async def noop(ctx: Context) -> None:
    with recorded(ctx):
        pass
