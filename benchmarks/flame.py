"""Where a real worker's time goes: a flame graph of one worker process under the load of `throughput`.

A backlog lies there and a worker owns its shards; from then on py-spy looks at the stacks of its threads from outside, HERTZ
times a second, for SECONDS or until the backlog is done. A look counts the thread that holds the interpreter, if one does:
neither who waits for the broker, for events or for the interpreter, nor what librdkafka does in threads of its own.
`--out FILE.svg` keeps the graph (docs/worker-flame.svg is one), `--out FILE.txt` the stacks, one a line with their counts, as
other flame graph programs read them.

Needs the extra `bench` (py-spy), and the right to look into a process: root, or where its parent may.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.app import TASK_TYPES
from benchmarks.drawing import Stack, folded, svg, unfolded
from benchmarks.scaling import own_all
from benchmarks.stand import Failed, OtherProcess, check_histories, status_counts, topics, worker
from benchmarks.throughput import follow, submit
from streamtask.errors import ConfigError

SECONDS, HERTZ = 5, 250
WAIT_S = 30.0
SHOWN = 12
THREAD = re.compile(r"thread \(\w+\)(?:: )?(.*)")
FILE = re.compile(r" \((?:.*?/)?(streamtask/.+|[^/]+/[^/]+)\)$")


def measure(
    bootstrap: str, *, tasks: int, concurrency: int, partitions: int, handler: str = "async", out: Path | None = None
) -> dict[str, Any]:
    """The figures; see the module. out: the file of the graph, or of the stacks."""
    spy = find_spy()
    with topics(bootstrap, "bench", partitions) as names:
        asyncio.run(submit(bootstrap, names, tasks, TASK_TYPES[handler]))
        with worker(bootstrap, names.prefix, concurrency) as process:
            own_all([process], partitions)
            with _looking(spy, process) as stacks:
                follow(bootstrap, names, process, tasks)
        counts = status_counts(bootstrap, names)
    check_histories(counts, tasks)
    looks = stacks.total()
    if not looks:
        raise Failed("Nothing was seen of the worker: it was done before the first look. Give more --tasks.")
    if out is not None:
        title = f"One worker process under a backlog of no-ops ({handler}): {looks:,} looks at who held its interpreter"
        out.write_text(folded(stacks) if out.suffix == ".txt" else svg(stacks, title))
    threads, own = Counter[str](), Counter[str]()
    for stack, count in stacks.items():
        threads[stack[0]] += count
        own[stack[-1]] += count
    return {
        "looks": looks,
        "threads": {name: f"{count / looks:.1%}" for name, count in threads.most_common(SHOWN)},
        "own": {name: f"{count / looks:.1%}" for name, count in own.most_common(SHOWN)},
        "out": None if out is None else str(out),
        "tasks": tasks,
        "partitions": partitions,
    }


def find_spy() -> str:
    """py-spy's program. Raises ConfigError."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise ConfigError("flame needs py-spy: pip install 'streamtask-kafka[bench]'.")
    return found


@contextmanager
def _looking(spy: str, process: OtherProcess) -> Iterator[Counter[Stack]]:
    """What it has seen is filled in at the end of the block. Raises Failed."""
    stacks: Counter[Stack] = Counter()
    with tempfile.TemporaryDirectory(prefix="streamtask-bench-") as directory:
        out = Path(directory) / "stacks"
        command = [spy, "record", "--pid", str(process.pid), "--format", "raw", "--output", str(out)]
        command += [
            "--gil",
            "--threads",
            "--nolineno",
            "--full-filenames",
            "--rate",
            str(HERTZ),
            "--duration",
            str(SECONDS),
        ]
        looking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield stacks
            said, _ = looking.communicate(timeout=SECONDS + WAIT_S)
        finally:
            looking.kill()
        if looking.returncode or not out.exists():
            raise Failed(f"py-spy could not look into the worker:\n{said[-1_000:]}")
        for stack, count in unfolded(out.read_text()).items():
            stacks[short(stack)] += count


def short(stack: Stack) -> Stack:
    """The thread by its name, then frames with the last two parts of their paths (ours: from `streamtask`), without what
    starts every thread."""
    named = THREAD.match(stack[0])
    thread = (named[1] or "librdkafka") if named else stack[0]
    frames = [FILE.sub(r" (\1)", name) for name in stack[1:]]
    begins = next((at for at, name in enumerate(frames) if "(streamtask/" in name), 0)
    return (thread, *frames[begins:])
