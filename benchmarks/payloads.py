"""What a worker process takes at most for requests, or results, that weigh something: `memory --payload 17k`, `--result 900k`.

A backlog lies before one worker process at its default settings: lists of small rows (17k: 300 of them), which take six times
their bytes once they are decoded. Told are the highest RSS of its life (the kernel's own mark) and how every task has ended.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.app import rows_of
from benchmarks.stand import Failed, check_histories, kafka, status_counts, topics, worker
from benchmarks.throughput import follow
from streamtask.config import Settings, TopicNames
from streamtask.domain.identity import new_task_id
from streamtask.kafka.producer import ClientProducer

CONCURRENCY = Settings.model_fields["concurrency"].default
TASKS = ((100_000, 15_000), (1 << 40, 2_000))  # up to so many bytes: so many tasks
RESULTS = 1_000
SUBMIT_S = 600.0
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}


def size_of(text: str) -> int:
    """`17k` → 17000. Raises ValueError."""
    found = re.fullmatch(r"(\d+)([km]?)", text.lower())
    if not found or not 0 < int(found[1]) * _UNITS[found[2]] <= 950_000:
        raise ValueError("a number of bytes up to 950k, like 17k")
    return int(found[1]) * _UNITS[found[2]]


def measure(
    bootstrap: str, *, tasks: int | None, partitions: int, payload: int | None = None, result: int | None = None
) -> dict[str, Any]:
    """The figures; see the module."""
    if payload is not None:
        count = tasks or next(many for most, many in TASKS if payload <= most)
        request: dict[str, Any] = {"task_type": "rows", "parameters": {"rows": rows_of(payload)}}
    else:
        count = tasks or RESULTS
        request = {"task_type": "give_rows", "parameters": {"size": result}}
    with topics(bootstrap, "bench", partitions) as names:
        sent = submit(bootstrap, names, request, count)
        with worker(bootstrap, names.prefix, CONCURRENCY) as process:
            began_s = time.monotonic()
            follow(bootstrap, names, process, count)
            seconds = time.monotonic() - began_s
            peak = peak_rss(process.pid)
            troubles = process.troubles()
        counts = status_counts(bootstrap, names)
    check_histories(counts, count)
    return {
        "rss_max_mb": round(peak / 1e6, 1),
        "ended": counts["completed"],
        "tasks_per_s": round(count / seconds, 1),
        "request_bytes": sent,
        "result_bytes": result,
        "warnings": len(troubles),
        "tasks": count,
        "partitions": partitions,
        "concurrency": CONCURRENCY,
    }


def submit(bootstrap: str, names: TopicNames, request: dict[str, Any], count: int) -> int:
    """The backlog, over all bands; returns the bytes of one. By the producer itself: the client keeps what it sends."""
    body = json.dumps(request, separators=(",", ":")).encode()
    with ClientProducer(kafka(bootstrap)) as producer:
        for band, topic in enumerate(names.requests):
            share = count // len(names.requests) + (band < count % len(names.requests))
            found = producer.produce_bulk(topic, _records(body, share), timeout_s=SUBMIT_S)
            if found.failed or found.pending:
                raise Failed(
                    f"{found.failed} requests were refused and {found.pending} not acknowledged: {found.errors}"
                )
    return len(body)


def _records(body: bytes, count: int) -> Iterator[tuple[bytes, bytes, None]]:
    for _ in range(count):
        task_id = new_task_id()
        yield task_id.encode(), b'{"task_id":"%s",' % task_id.encode() + body[1:], None


def peak_rss(pid: int) -> int:
    """The highest RSS of a process's life, bytes."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise Failed("the kernel tells no VmHWM")
