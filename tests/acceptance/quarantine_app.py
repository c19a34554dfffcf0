"""Tasks that sleep, and one that kills its process: when its test opens the gate of its attempt, or all of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from streamtask import App, Context
from tests.acceptance.apps import _write, recorded

app = App("quarantine")
SOON_S = 0.5


@app.task
async def sleeps(ctx: Context, s: float) -> float:
    with recorded(ctx):
        await asyncio.sleep(s)
        return s


@app.task
async def kills(ctx: Context, gates: str) -> None:
    _write(ctx, "start")
    gate, every = Path(gates, str(ctx.attempt)), Path(gates, "open")
    while not (gate.exists() or every.exists()):  # noqa: ASYNC110, ASYNC240 files
        await asyncio.sleep(0.01)
    await asyncio.sleep(SOON_S)
    os._exit(7)
