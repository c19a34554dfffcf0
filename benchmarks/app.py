"""The jobs of the benchmarks, in each kind of handler: a no-op with three parameters, whose result is stored, those that
are measured on peers as well (benchmarks/peers), some that wait, and one that runs until it is cancelled."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from benchmarks.peers.apps import jobs
from streamtask import App, Context

app = App("benchmark")
ROW_BYTES = 57  # of one row as JSON, about


@app.task("noop")
async def noop(path: str, size: int, deep: bool) -> dict[str, Any]:
    return {"path": path, "size": size}


@app.task("stamp")
async def stamp(path: str, size: int, deep: bool) -> dict[str, float]:
    """When the handler began, ms on the wall clock: `started_at` is when its start was written ahead, not yet committed."""
    return {"began_ms": time.time() * 1_000}


@app.task("noop_thread")
def noop_thread(path: str, size: int, deep: bool) -> dict[str, Any]:
    return {"path": path, "size": size}


@app.task("noop_process", executor="process")
def noop_process(path: str, size: int, deep: bool) -> dict[str, Any]:
    return {"path": path, "size": size}


TASK_TYPES = {"async": "noop", "thread": "noop_thread", "process": "noop_process"}


@app.task("sleep_1ms")
async def sleep_1ms(path: str, size: int, deep: bool) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    return {"path": path, "size": size}


@app.task("sleep_5ms")
async def sleep_5ms(path: str, size: int, deep: bool) -> dict[str, Any]:
    await asyncio.sleep(0.005)
    return {"path": path, "size": size}


@app.task("sleep_20ms")
async def sleep_20ms(path: str, size: int, deep: bool) -> dict[str, Any]:
    await asyncio.sleep(0.02)
    return {"path": path, "size": size}


@app.task("held")
async def held(path: str, size: int, deep: bool) -> None:
    await asyncio.get_running_loop().create_future()


@app.task("cpu_1ms", executor="process")
def cpu_1ms(path: str, size: int, deep: bool) -> dict[str, Any]:
    jobs.burn(0.001)
    return {"path": path, "size": size}


@app.task("payload_20k")
async def payload_20k(path: str, size: int, deep: bool, payload: str) -> dict[str, Any]:
    return {"path": path, "size": size}


def parameters(number: int, task_type: str = "noop") -> dict[str, Any]:
    """The parameters of the request with this number: three fields, and the payload where that is the job."""
    return jobs.parameters(task_type, number)


@app.task("until_cancelled")
async def until_cancelled(ctx: Context, marks: str) -> None:
    _mark(ctx, marks, "began")
    try:
        await asyncio.sleep(3_600)
    except asyncio.CancelledError:
        _mark(ctx, marks, "cancelled")
        raise


@app.task("until_cancelled_thread")
def until_cancelled_thread(ctx: Context, marks: str) -> None:
    _mark(ctx, marks, "began")
    while not ctx.cancelled:
        time.sleep(0.001)
    _mark(ctx, marks, "cancelled")
    ctx.check_cancelled()  # who returns may have completed: it is a race


@app.task("until_cancelled_process", executor="process")
def until_cancelled_process(ctx: Context, marks: str) -> None:
    _mark(ctx, marks, "began")
    try:
        time.sleep(3_600)
    except asyncio.CancelledError:
        _mark(ctx, marks, "cancelled")
        raise


UNTIL_CANCELLED = {
    "async": "until_cancelled",
    "thread": "until_cancelled_thread",
    "process": "until_cancelled_process",
}


def _mark(ctx: Context, marks: str, what: str) -> None:
    """A line of its own, whoever writes beside it."""
    at_ms = time.time() * 1_000
    place = os.open(marks, os.O_WRONLY | os.O_APPEND)
    os.write(place, f"{ctx.task_id} {what} {at_ms:.3f}\n".encode())
    os.close(place)


@app.task("rows")
async def rows(rows: list[dict[str, Any]]) -> int:
    return len(rows)


def rows_of(size: int) -> list[dict[str, Any]]:
    """Small rows that take about so many bytes as JSON."""
    rows = [{"id": n, "name": f"the name of {n}", "value": n / 2, "on": True} for n in range(max(1, size // ROW_BYTES))]
    while len(json.dumps(rows, separators=(",", ":"))) > size and len(rows) > 1:
        del rows[-max(1, len(rows) // 50) :]
    return rows


_ROWS: dict[int, list[dict[str, Any]]] = {}


@app.task("give_rows")
async def give_rows(size: int) -> list[dict[str, Any]]:
    if size not in _ROWS:
        _ROWS[size] = rows_of(size)
    return _ROWS[size]
