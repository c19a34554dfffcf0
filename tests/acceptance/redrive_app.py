"""A handler with a fault that is mended by a new release: an environment variable of its worker."""

from __future__ import annotations

import os

from streamtask import App, Context
from tests.acceptance.apps import recorded

app = App("acceptance-redrive")


@app.task
async def charge(ctx: Context, amount: int) -> int:
    with recorded(ctx):
        if "ACCEPTANCE_FIXED" not in os.environ:
            raise ValueError(f"the gateway refuses {amount}")
        return amount
