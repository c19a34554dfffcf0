"""Tasks that sleep, and one that kills its process: the first two times when its test says so, from then on soon."""

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
    while ctx.attempt < 3 and not Path(gates, str(ctx.attempt)).exists():  # noqa: ASYNC110, ASYNC240 a file
        await asyncio.sleep(0.01)
    await asyncio.sleep(SOON_S)
    os._exit(7)
