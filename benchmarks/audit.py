"""How much memory and time the audit's judge takes, without a broker: every request of a prefix, then four events of each.

Records are made in batches and not timed; they come as a busy system writes them, some hundred tasks a partition open at
a time. What a real audit adds: 16 MB that each of its three readers fetches ahead, and librdkafka's own time.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

from streamtask.audit import Judge
from streamtask.codec import RequestDecoder
from streamtask.config import TopicNames
from streamtask.domain.model import RequestRecord

BATCH = 2_000  # of one poll, as in the audit
OPEN = 300  # tasks of a partition at a time
NOW_MS = 1_795_505_160_123
STEPS = ("created", "running", "running", "completed")
EVENT = (
    '{"task_id":"%s","status":"%s","created_at":"2026-11-24T07:26:00.123Z","updated_at":"2026-11-24T07:26:01.123Z",'
    '"message":"Task status: %s","task_type":"noop","priority":9%s,"worker":"bench","origin":"high-%d@%d"}'
)
T = TypeVar("T")
Event = tuple[int, int, int, bytes, bytes]  # partition, offset, timestamp, key, value


def measure(bootstrap: str, *, tasks: int, concurrency: int, partitions: int) -> dict[str, Any]:
    """The figures; see the module."""
    names = TopicNames("bench")
    judge = Judge(names)
    each = -(-tasks // partitions)
    tasks = each * partitions
    for band in range(len(names.bands)):
        for partition in range(partitions):
            end = each if band == 0 else 0
            judge.bounds(band, partition, end, log_start=0, log_end=end)
    before_mb = _rss_mb()
    decoder = RequestDecoder(names, "bench")
    reading_s = _feed(_requests(decoder, each, partitions), judge.request)
    judging_s = _feed(_events(each, partitions), lambda event: judge.status(*event))
    began = time.process_time()
    report = judge.report()
    concluding_s = time.process_time() - began
    assert report.finished, report.to_text()
    return {
        "tasks": tasks,
        "events": report.events,
        "events_per_s": round(report.events / judging_s),
        "us_per_event": round(judging_s / report.events * 1e6, 2),
        "us_per_request": round(reading_s / tasks * 1e6, 2),
        "concluding_s": round(concluding_s, 2),
        "rss_before_mb": round(before_mb),
        "rss_max_mb": round(_rss_mb()),
        "bytes_per_task": round((_rss_mb() - before_mb) * 1e6 / tasks, 1),
        "partitions": partitions,
    }


def _feed(records: Iterator[T], take: Callable[[T], None]) -> float:
    """CPU seconds of `take` alone."""
    spent = 0.0
    while batch := list(islice(records, BATCH)):
        began = time.process_time()
        for record in batch:
            take(record)
        spent += time.process_time() - began
    return spent


def _requests(decoder: RequestDecoder, each: int, partitions: int) -> Iterator[RequestRecord]:
    for offset in range(each):
        for partition in range(partitions):
            value = b'{"task_type":"noop","task_id":"%b"}' % _task_id(partition, offset).encode()
            yield decoder.decode(0, partition, offset, NOW_MS, None, value, None)


def _events(each: int, partitions: int) -> Iterator[Event]:
    at = 0
    for first in range(0, each, OPEN):
        for step, status in enumerate(STEPS):
            attempt = ',"attempt":1' if step else ""
            for offset in range(first, min(first + OPEN, each)):
                for partition in range(partitions):
                    task_id = _task_id(partition, offset)
                    value = EVENT % (task_id, status, status, attempt, partition, offset)
                    yield partition, at, NOW_MS, task_id.encode(), value.encode()
                at += 2  # its transaction's marker lies between


def _task_id(partition: int, offset: int) -> str:
    return f"01a20e11-{partition:04x}-7000-8000-{offset:012x}"


def _rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000
