"""The countdown of examples/quickstart, with its executions recorded."""

from __future__ import annotations

from examples.quickstart import app as quickstart
from streamtask import App, Context
from tests.acceptance.apps import recorded

app = App("acceptance-languages")


@app.task
async def countdown(ctx: Context, steps: int) -> str:
    with recorded(ctx):
        return await quickstart.countdown(ctx, steps)
