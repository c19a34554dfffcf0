"""A service that shares no code with the handlers: it asks for a task by its name, follows it, and takes its result.

    STREAMTASK_BOOTSTRAP_SERVERS=127.0.0.1:9092 python examples/submit.py 3

The worker of examples/quickstart answers.
"""

from __future__ import annotations

import asyncio
import sys

from streamtask import AsyncClient, TaskFailed


async def main(steps: int) -> None:
    async with AsyncClient() as client:
        task = await client.submit("countdown", {"steps": steps}, priority=8, labels={"from": "submit.py"})
        print(task.task_id, task.origin, flush=True)
        async for event in task.events():
            print(f"{event.status.value:<10} {event.progress or 0:4.0%}  {event.message}", flush=True)
        try:
            print(await task.result(timeout=60))
        except TaskFailed as failure:
            print(failure)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
