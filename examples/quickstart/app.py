"""Counts down, a second a step. Run it: streamtask worker app:app"""

import asyncio

from streamtask import App, Context

app = App("quickstart")


@app.task
async def countdown(ctx: Context, steps: int) -> str:
    for done in range(steps):
        ctx.progress(done / steps, f"{steps - done} to go")
        await asyncio.sleep(1)
    return "lift-off"
