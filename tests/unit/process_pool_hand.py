"""An executor with children, and what tests do with it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from streamtask.app import load_app
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord, TaskRequest
from streamtask.domain.ports import Start, Stop, StopReason
from streamtask.execution.executor import Executor
from streamtask.execution.process_pool.pool import Pool
from streamtask.execution.process_pool.settings import Children

APP = "tests.unit.process_pool_app:app"
WAIT_S = 60.0
GRACE_S = 0.5
T = TypeVar("T")


def until(happened: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + WAIT_S
    waiter = Waiter()
    while not (found := happened()):
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        waiter.tick()
    return found


class Waiter:
    """Something to look at again soon: a condition in another process has no event here."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def tick(self) -> None:
        import select

        select.select([self._read], [], [], 0.005)

    def __del__(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Hand:
    """An executor with children, and its executions by token."""

    def __init__(self, children: int = 1, app: str = APP) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        loaded = load_app(APP)
        made = Children(
            app, children, grace_s=GRACE_S, on_event=lambda name, fields: self.events.append((name, {**fields}))
        )
        self.executor = Executor(loaded.registry, children=made, lifespan=loaded.lifespan)
        self.executor.start()
        assert self.executor.pool is not None
        self.pool: Pool = self.executor.pool
        self.outcomes: dict[int, Outcome] = {}
        self.progress: list[tuple[int, float, str | None]] = []
        self.begun: list[int] = []  # tokens that children have told
        self._tokens = 0

    def begin(
        self,
        task_type: str,
        *,
        isolated: bool = False,
        group: int = 0,
        timeout_ms: int | None = None,
        **parameters: Any,
    ) -> int:
        """isolated: in a group of its own."""
        start = self._start(task_type, parameters)
        start.group, start.timeout_ms = 1_000 + start.token if isolated else group, timeout_ms
        self.executor.submit([start])
        return start.token

    def begin_many(self, *wanted: tuple[str, dict[str, Any]], band: int = 1) -> list[int]:
        """Short ones, which the pool receives together."""
        starts = [self._start(task_type, parameters, shares=True) for task_type, parameters in wanted]
        for start in starts:
            start.record.band = band
        self.executor.submit(starts)
        return [start.token for start in starts]

    @contextmanager
    def busy_pool(self) -> Iterator[None]:
        """The pool's thread does nothing in here."""
        reached, done = threading.Event(), threading.Event()

        def wait() -> None:
            reached.set()
            assert done.wait(WAIT_S)

        self.pool._calls.post(wait)
        assert reached.wait(WAIT_S)
        try:
            yield
        finally:
            done.set()

    def in_children(self) -> list[list[int]]:
        """The tokens of the jobs that each child has, in order."""
        with self.busy_pool():
            return [[job.token for job in one.jobs] for one in self.pool._children.values()]

    def _start(self, task_type: str, parameters: dict[str, Any], **more: bool) -> Start:
        self._tokens += 1
        token = self._tokens
        request = TaskRequest(task_type=task_type, parameters=parameters, labels={"n": str(token)})
        task_id = f"0190a0a0-0000-7000-8000-{token:012d}"
        record = RequestRecord(1, 3, token, 0, task_id, request, 5, 0, b"{}", headers=(("traceparent", b"00"),))
        return Start(token, record, 4, HandlerKind.PROCESS, None, **more)

    def begin_group(self, group: int, *wanted: tuple[str, dict[str, Any]]) -> list[int]:
        """Suspects, which are all handed to the child of their group before it has begun any."""
        starts = [self._start(task_type, parameters) for task_type, parameters in wanted]
        for start in starts:
            start.group = group
        self.executor.submit(starts)
        return [start.token for start in starts]

    def pids(self) -> list[int]:
        """The children that live now, of both pools."""
        quarantine = self.executor._quarantine
        return [*self.pool.pids(), *(quarantine.pids() if quarantine is not None else ())]

    def look(self) -> None:
        self.begun += self.executor.begun()
        done, progress = self.executor.drain()
        self.outcomes.update(done)
        self.progress += progress

    def end(self, token: int) -> Outcome:
        deadline = time.monotonic() + WAIT_S
        while token not in self.outcomes:
            assert time.monotonic() < deadline, f"execution {token} does not end; {self.events}"
            self.executor.wait(0.1)
            self.look()
        return self.outcomes[token]

    def until_progress(self, token: int, fraction: float, message: str) -> None:
        def seen() -> bool:
            self.executor.wait(0.1)
            self.look()
            return (token, fraction, message) in self.progress

        until(seen, f"{fraction} {message!r}; there is {self.progress}")

    def end_all(self, tokens: Sequence[int]) -> list[Outcome]:
        return [self.end(token) for token in tokens]

    def run(self, task_type: str, **parameters: Any) -> Outcome:
        return self.end(self.begin(task_type, **parameters))

    def result(self, task_type: str, **parameters: Any) -> Any:
        outcome = self.run(task_type, **parameters)
        assert outcome.ending is Ending.RETURNED, outcome
        return None if outcome.result is None else json.loads(outcome.result)

    def stop(self, token: int, reason: StopReason = StopReason.TIMEOUT) -> Outcome:
        self.executor.stop_executions([Stop(token, reason)])
        return self.end(token)

    def still_works(self) -> None:
        assert self.result("noop", n=42) == 42


def ready(path: Path) -> int:
    """The pid that a handler wrote when it had begun."""
    return int(until(lambda: path.read_text() if path.exists() else None, f"{path.name} is there"))
