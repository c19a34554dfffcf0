"""An app that children load slowly: it waits while it is imported, or while its lifespan opens, for who writes into a FIFO."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from streamtask import App, Context

LOADS, OPENS = "STREAMTASK_TEST_LOADS", "STREAMTASK_TEST_OPENS"  # environment: directories with a FIFO


def wait(variable: str) -> None:
    if variable in os.environ:
        place = Path(os.environ[variable])
        (place / "waits").touch()
        (place / "fifo").read_text()


@asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, int]]:
    wait(OPENS)
    yield {"pid": os.getpid()}


wait(LOADS)
app = App("slow", lifespan=lifespan)


@app.task
async def where_async(ctx: Context) -> dict[str, Any]:
    return {"pid": os.getpid(), "state": ctx.state}
