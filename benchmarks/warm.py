"""Work for a broker that has just started, before anything of it is timed in milliseconds.

For its first minute under load it compiles its own code beside it: half a core of the two (its C2 threads, by /proc), and the
same no-ops take twice as long as later. A broker that has been up for a minute is what people have.
"""

from __future__ import annotations

import asyncio

from benchmarks.app import TASK_TYPES
from benchmarks.stand import PARTITIONS, topics, worker
from benchmarks.throughput import follow, submit

TASKS = 250_000  # 20 to 30 s
CONCURRENCY = 1_000


def warm(bootstrap: str, tasks: int = TASKS) -> None:
    """Submit so many no-ops, and work them off."""
    with topics(bootstrap, "warm", PARTITIONS) as names:
        asyncio.run(submit(bootstrap, names, tasks, TASK_TYPES["async"]))
        with worker(bootstrap, names.prefix, CONCURRENCY) as process:
            follow(bootstrap, names, process, tasks)
