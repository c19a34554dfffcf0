"""The long inference of examples/live/app.py, held at 65 % until its test makes a file: whoever follows it has seen that."""

from __future__ import annotations

import asyncio
import os

from streamtask import App, Context

SECONDS = 1.0
STEPS = 20
HELD_AT = 13

app = App("inference")


@app.task("long_inference")
async def long_inference(ctx: Context, prompt: str, max_tokens: int = 4096, temperature: float = 0.8) -> dict[str, str]:
    for step in range(1, STEPS):
        await asyncio.sleep(SECONDS / STEPS)
        ctx.progress(step / STEPS)
        while step == HELD_AT and not os.path.exists(os.environ["ACCEPTANCE_GATE"]):  # noqa: ASYNC110, ASYNC240 a file
            await asyncio.sleep(0.01)
    return {"analysis": "...", "prediction": "..."}
