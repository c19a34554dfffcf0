"""Shows how tasks end, as lines of a session: one line per task, or a summary when there are too many to read.

Follows tasks.status (read committed) from its end at the start of the session. Owns one thread. When it cannot follow the
topic, it says so once, and the session continues without it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from streamtask.codec import decode_status
from streamtask.codec.reader import PLAIN
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import TaskResponse
from streamtask.errors import DecodeError, StreamtaskError
from streamtask.kafka.offset_queries import topic_ends
from streamtask.kafka.tail import Tail

LINES_MAX = 20  # per second; the rest of that second is summarised
POLL_S = 0.25
RESULT_MAX = 80  # characters
LEADERS_S = 60.0  # for leaders of topics that have just been created: on a busy machine the broker needs more than 10 s
TRACE_LINES_MAX = 4

Say = Callable[[str, str], None]  # (level, text)


class Follower:
    """Calls `say` for every task that ends. Raises Unreachable, TopicsMissing."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, say: Say) -> None:
        self._tail = Tail(kafka, topic_ends(kafka, [names.status], timeout_s=LEADERS_S))
        self._say = say
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dev-follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            with self._tail:
                lines = Lines(self._say, time.monotonic)
                while not self._stop.is_set():
                    for record in self._tail.poll(500, POLL_S):
                        if record.value is not None:
                            self._look(lines, record.value)
                    lines.settle()
        except StreamtaskError as error:
            self._say("warning", f"can no longer show tasks: {error}")

    @staticmethod
    def _look(lines: Lines, value: bytes) -> None:
        try:
            event = decode_status(value, PLAIN)
        except DecodeError:
            return  # in another format: the worker logs what matters
        if event.ended:
            lines.ended(event)


class Lines:
    """Prints at most LINES_MAX lines a second."""

    def __init__(self, say: Say, clock: Callable[[], float]) -> None:
        self._say, self._clock = say, clock
        self._second = clock()
        self._count = 0
        self._more: Counter[str] = Counter()

    def ended(self, event: TaskResponse) -> None:
        self.settle()
        self._count += 1
        if self._count > LINES_MAX:
            self._more[event.status.value] += 1
        else:
            self._say("error" if event.status.value == "failed" else "info", line_of(event))
            for line in trace_of(event):
                self._say("warning", f"  {line}")

    def settle(self) -> None:
        """Print the summary of a second that has passed."""
        now = self._clock()
        if now - self._second < 1.0:
            return
        if self._more:
            summary = ", ".join(f"{count} {status}" for status, count in sorted(self._more.items()))
            self._say("info", f"… and {summary} in the same second")
        self._second, self._count = now, 0
        self._more.clear()


def line_of(event: TaskResponse) -> str:
    """`completed hello 0192…7 in 0.02 s: "Hello"`."""
    took = ""
    if event.started_at is not None and event.finished_at is not None:
        took = f" in {(event.finished_at - event.started_at).total_seconds():.2f} s"
    attempt = f", attempt {event.attempt}" if (event.attempt or 1) > 1 else ""
    if event.status.value == "completed":
        result = "" if event.result is None else f": {_result(event)}"
    else:
        code = event.error_details.code if event.error_details is not None else event.status.value
        result = f": {code}: {' '.join((event.error or event.message or '').split())[:300]}"
    return f"{event.status.value} {event.task_type or '?'} {event.task_id}{took}{attempt}{result}"


def trace_of(event: TaskResponse) -> list[str]:
    """Where a handler failed: the end of its traceback, without the last line, which is the error itself."""
    text = event.error_details.traceback if event.error_details is not None else None
    return [line for line in (text or "").splitlines() if line.strip()][-TRACE_LINES_MAX - 1 : -1]


def _result(event: TaskResponse) -> str:
    import json

    text = json.dumps(event.result, ensure_ascii=False)
    return text if len(text) <= RESULT_MAX else f"{text[: RESULT_MAX - 1]}…"
