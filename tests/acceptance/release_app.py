"""The next release of the acceptance tests' app: it knows one task type more."""

from __future__ import annotations

from streamtask import Context
from tests.acceptance.apps import app, recorded


@app.task
async def new_in_this_release(ctx: Context, n: int = 0) -> int:
    with recorded(ctx):
        return n
