"""The long inference of the docs: three minutes of work that says how far it is. Run it: streamtask worker app:app"""

import asyncio
import os

from streamtask import App, Context

SECONDS = float(os.environ.get("LONG_INFERENCE_SECONDS", "180"))
STEPS = 20

app = App("inference")


@app.task("long_inference")
async def long_inference(ctx: Context, prompt: str, max_tokens: int = 4096, temperature: float = 0.8) -> dict[str, str]:
    for step in range(1, STEPS):
        await asyncio.sleep(SECONDS / STEPS)
        ctx.progress(step / STEPS)  # 0.05, 0.10, ..., 0.65, ..., 0.95
    return {"analysis": "...", "prediction": "..."}
