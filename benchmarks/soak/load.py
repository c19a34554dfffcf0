"""The load of the soak, a process of its own: `python -m benchmarks.soak.load BOOTSTRAP PREFIX URL RATE`, until SIGTERM.

Requests of every kind go through the library's client at a steady rate. One of each batch is waited for by the client
(it follows the status topic), some are looked up over HTTP, one is waited for there, the list and the counts are read, and
one stream of all failures is followed. The last line on stdout says how many were acknowledged, and how many answers did not
come in time: a view that is behind says 503 to who names a request that it has not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import deque
from typing import Any

import httpx

from benchmarks.soak import queues
from streamtask.client import AsyncClient, Receipt

TICK_S = 0.2
LOOKS_S = 0.05  # one look-up over HTTP in this time
LISTS_S = 5.0
WAIT_S = 300.0
RECENT = 500  # requests among which is looked up
TYPES = ("nap", "steps", "flaky", "squeeze", "weigh")
WEIGHTS = (60, 5, 5, 18, 12)


def draw(rng: random.Random) -> dict[str, Any]:
    """One request."""
    task_type = rng.choices(TYPES, WEIGHTS)[0]
    drawn: dict[str, dict[str, Any]] = {
        "nap": {"ms": rng.choice((1, 5, 20, 200)), "text": "t" * rng.randint(0, 600)},
        "steps": {"count": rng.randint(2, 4)},
        "flaky": {"fails": rng.random() < 0.1},
        "squeeze": {"ms": rng.choice((0, 2, 10)), "size": rng.randint(1, 500)},
        "weigh": {"ms": rng.choice((0, 2, 10)), "size": rng.randint(1, 2_000)},
    }
    return {"task_type": task_type, "parameters": drawn[task_type], "priority": rng.randint(1, 10)}


class Load:
    """run() until stop is set; `submitted` and `done` are counts."""

    def __init__(self, client: AsyncClient, http: httpx.AsyncClient, rate: float) -> None:
        self.client, self.http, self.rate = client, http, rate
        self.submitted = self.waited = self.looked = self.late = self.heard = 0
        self.stop = asyncio.Event()
        self._rng = random.Random(1)
        self._recent: deque[Receipt] = deque(maxlen=RECENT)
        self._awaited: deque[Receipt] = deque(maxlen=100)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            others = [self._wait(), self._look(), self._list(), self._listen()]
            kept = [group.create_task(one, name=f"load-{number}") for number, one in enumerate(others)]
            await self._submit()
            for task in kept:
                task.cancel()

    async def _submit(self) -> None:
        """Steady: what a slow moment left undone is not made up for."""
        loop, due, owed = asyncio.get_running_loop(), asyncio.get_running_loop().time(), 0.0
        while not self.stop.is_set():
            owed += self.rate * TICK_S
            receipts = await self.client.submit_many([draw(self._rng) for _ in range(int(owed))])
            owed -= int(owed)
            self.submitted += len(receipts)
            self._recent.extend(receipts[1:3])
            self._awaited.extend(receipts[:1])
            due = max(due + TICK_S, loop.time() - TICK_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due - loop.time(), 0.0)):
                    await self.stop.wait()

    async def _wait(self) -> None:
        while True:
            while self._awaited:
                await self._awaited.popleft().wait(WAIT_S)
                self.waited += 1
            await asyncio.sleep(TICK_S)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOKS_S)
            if self._recent:
                one = self._rng.choice(self._recent)
                await self._get(f"/tasks/{one.task_id}", one)
                self.looked += 1

    async def _list(self) -> None:
        while True:
            await asyncio.sleep(LISTS_S)
            for path in ("/tasks?status=failed&limit=50", "/tasks?task_type=weigh&limit=50", "/stats", "/metrics"):
                await self._get(path)
            if self._recent:
                one = self._recent[-1]
                await self._get(f"/tasks/{one.task_id}?wait=5&after_version=0", one)

    async def _get(self, path: str, of: Receipt | None = None) -> None:
        try:
            answer = await self.http.get(path, headers={} if of is None else {"Consistency-Token": of.origin})
        except httpx.TimeoutException:
            self.late += 1
            return
        if of is not None and answer.status_code == 503:
            self.late += 1
        else:
            answer.raise_for_status()

    async def _listen(self) -> None:
        async with self.http.stream("GET", "/events?status=failed", timeout=None) as answer:
            async for line in answer.aiter_lines():
                self.heard += line.startswith("data:")


async def main(bootstrap: str, prefix: str, url: str, rate: float) -> None:
    """See the module."""
    async with AsyncClient(bootstrap, prefix=prefix) as client, httpx.AsyncClient(base_url=url, timeout=60) as http:
        load = Load(client, http, rate)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, load.stop.set)
        print("started", flush=True)
        await load.run()
    counts = {name: getattr(load, name) for name in ("submitted", "waited", "looked", "late", "heard")}
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    queues.watch_if_wanted()
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
