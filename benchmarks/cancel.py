"""How long a cancel takes to reach a handler that runs: from the call that produces it to the moment the handler sees it.

Two worker processes share the partitions, so the tasks run on either. Each round submits one task of each kind (coroutine,
thread, child), waits until all three handlers have begun, and cancels one after the other. A handler writes the wall clock
of this machine into a file when it begins and when it sees its cancel: the coroutine and the child at their
`CancelledError`, the thread at `ctx.cancelled`, which it reads each millisecond. One half of the rounds has nothing beside
it; beside the other half, BESIDE no-ops a second run on the same two workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.app import UNTIL_CANCELLED, parameters
from benchmarks.latency import quantile
from benchmarks.stand import Failed, topics, worker
from streamtask.client import AsyncClient
from streamtask.domain.model import TaskStatus

WARM_UP = 3  # rounds
WAIT_S = 60.0
BESIDE = 500  # no-ops a second
TURN_S = 0.1
LOOK_S = 0.002

Took = dict[str, list[float]]  # {kind: ms of each cancel}


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module. tasks: cancels of each kind."""
    with topics(bootstrap, "bench", partitions) as names, tempfile.TemporaryDirectory() as directory:
        marks = Path(directory) / "marks"
        marks.touch()
        with (
            worker(bootstrap, names.prefix, concurrency) as first,
            worker(bootstrap, names.prefix, concurrency) as second,
        ):
            try:
                alone, beside = asyncio.run(_rounds(bootstrap, names.prefix, tasks, marks))
            finally:
                first.check()
                second.check()
    every = [ms for held in alone.values() for ms in held]
    return {
        "p50_ms": round(quantile(every, 0.5), 1),
        "p99_ms": round(quantile(every, 0.99), 1),
        "kinds_p50_ms": _each(alone, 0.5),
        "kinds_p99_ms": _each(alone, 0.99),
        "loaded_p50_ms": _each(beside, 0.5),
        "loaded_p99_ms": _each(beside, 0.99),
        "beside_per_s": BESIDE,
        "tasks": len(every) // len(alone),
        "loaded_tasks": min(map(len, beside.values())),
        "partitions": partitions,
    }


def _each(took: Took, share: float) -> dict[str, float]:
    return {kind: round(quantile(held, share), 1) for kind, held in took.items()}


async def _rounds(bootstrap: str, prefix: str, tasks: int, marks: Path) -> tuple[Took, Took]:
    """(alone, beside no-ops)."""
    async with AsyncClient(bootstrap, prefix=prefix) as client:
        for _ in range(WARM_UP):
            await _round(client, marks)
        alone: Took = {kind: [] for kind in UNTIL_CANCELLED}
        beside: Took = {kind: [] for kind in UNTIL_CANCELLED}
        for _ in range(-(-tasks // 2)):
            _add(alone, await _round(client, marks))
        async with _no_ops(client):
            for _ in range(max(1, tasks // 2)):
                _add(beside, await _round(client, marks))
    return alone, beside


def _add(took: Took, found: Mapping[str, float]) -> None:
    for kind, ms in found.items():
        took[kind].append(ms)


async def _round(client: AsyncClient, marks: Path) -> dict[str, float]:
    """{kind: ms} of one cancel each."""
    receipts = {
        kind: await client.submit(task_type, {"marks": str(marks)}) for kind, task_type in UNTIL_CANCELLED.items()
    }
    for receipt in receipts.values():
        await _mark(marks, receipt.task_id, "began")
    took = {}
    for kind, receipt in receipts.items():
        asked_ms = time.time() * 1_000
        await client.cancel(receipt.task_id)
        took[kind] = await _mark(marks, receipt.task_id, "cancelled") - asked_ms
    for receipt in receipts.values():
        ended = await receipt.wait(WAIT_S)
        if ended.status is not TaskStatus.CANCELLED:
            raise Failed(f"Task {receipt.task_id} ended as {ended.status}: {ended.error}")
    marks.write_text("")  # noqa: ASYNC240 the same
    return took


async def _mark(marks: Path, task_id: str, what: str) -> float:
    """When the handler says that it did this, in ms; looked for every two, which the figure does not contain."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for line in marks.read_text().splitlines():  # noqa: ASYNC240 a few lines of this machine
            who, did, at_ms = line.split()
            if (who, did) == (task_id, what):
                return float(at_ms)
        await asyncio.sleep(LOOK_S)
    raise Failed(f"Task {task_id} has not {what} within {WAIT_S:g} s")


@contextlib.asynccontextmanager
async def _no_ops(client: AsyncClient) -> AsyncIterator[None]:
    """A steady load while the block runs."""

    async def submit() -> None:
        due_s = time.monotonic()
        while True:
            await client.submit_many(
                [{"task_type": "noop", "parameters": parameters(number)} for number in range(int(BESIDE * TURN_S))]
            )
            due_s += TURN_S
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async with asyncio.TaskGroup() as group:
        load = group.create_task(submit(), name="no-ops")
        yield
        load.cancel()
