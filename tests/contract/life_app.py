"""The tasks that tests/contract/test_client_life.py submits. Handlers run in the process of the test, so that it can hold
them at a gate; `child` alone may run elsewhere, as a handler of the module-level `app`."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from streamtask import App, Context, GiveUp, PlainTask, Retry, RetryLater

GATE_S = 30.0  # a test that forgets to open a gate fails by this


@dataclass
class Life:
    """An App, its typed task, and what its handlers saw.

    gates   by name: `held` and `single` wait there
    begun   names in the order in which their handlers began
    """

    app: App
    double: PlainTask[[int], int]
    gates: dict[str, threading.Event] = field(default_factory=lambda: defaultdict(threading.Event))
    begun: list[str] = field(default_factory=list)


@asynccontextmanager
async def lifespan() -> AsyncIterator[str]:
    yield "opened"


def build(name: str) -> Life:
    """A new App with the same tasks."""
    app = App(name, lifespan=lifespan)

    @app.task
    def double(n: int) -> int:
        return 2 * n

    @app.task(executor="process")
    def child(n: int) -> int:
        return 2 * n

    life = Life(app, double)
    _add_outcomes(app)
    _add_held(app, life)
    return life


def _add_outcomes(app: App) -> None:
    @app.task
    async def fail(text: str) -> None:
        raise OSError(text)

    @app.task(retry=Retry(attempts=3, backoff=0.05))
    async def third(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ValueError(f"attempt {ctx.attempt}")
        return ctx.attempt

    @app.task(retry=Retry(attempts=3, backoff=0.05))
    def hopeless(ctx: Context) -> None:
        if ctx.attempt == 2:
            raise GiveUp("no use")
        raise RetryLater("later", after=0.01)

    @app.task
    def large() -> str:
        return "x" * 2_000_000

    @app.task
    def strange() -> Any:
        return object()

    @app.task
    async def describe(ctx: Context) -> dict[str, Any]:
        labels = ctx.request.labels
        return {"state": ctx.state, "labels": labels, "header": ctx.headers["x"].decode(), "priority": ctx.priority}

    @app.task
    async def parent(n: int) -> int:
        receipt = await app.async_client().submit("double", {"n": n})
        return int(await receipt.result()) + 1


def _add_held(app: App, life: Life) -> None:
    @app.task
    async def sleeper() -> None:
        await asyncio.sleep(3_600)

    @app.task
    def looper(ctx: Context) -> None:
        while True:
            ctx.check_cancelled()
            threading.Event().wait(0.005)

    @app.task
    def held(ctx: Context, gate: str) -> str:
        life.begun.append(gate)
        ctx.progress(0.5, "half of it")
        assert life.gates[gate].wait(GATE_S), f"{gate} stays shut"
        return gate

    @app.task(concurrency=1)
    def single(name: str) -> str:
        life.begun.append(name)
        assert life.gates[name].wait(GATE_S), f"{name} stays shut"
        return name


LIFE = build("life")
app = LIFE.app  # by whose name children load it
