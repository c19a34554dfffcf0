"""An executor with the handlers of one test: starts executions, and waits for their outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamtask.domain.model import HandlerKind, Outcome, RequestRecord, TaskRequest
from streamtask.domain.ports import Start
from streamtask.execution.executor import Executor
from streamtask.handlers.registry import Registry, make_handler

DEADLINE_S = 60.0
TASK_ID = "018f0000-0000-7000-8000-000000000001"


class Bench:
    """An executor with the handlers of one test, and the events it told."""

    def __init__(self, *functions: Callable[..., Any], **settings: Any) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        registry = Registry()
        for function in functions:
            registry.add(make_handler(function, retry=settings.get("retry"), lost_max=3))
        settings.pop("retry", None)
        self.registry = registry
        self.executor = Executor(
            registry, on_event=lambda name, fields: self.events.append((name, dict(fields))), **settings
        )
        self._token = 0
        self.progress: list[tuple[int, float, str | None]] = []
        self.outcomes: dict[int, Outcome] = {}

    def make(self, task_type: str, parameters: dict[str, Any] | None = None, **start: Any) -> Start:
        self._token += 1
        request = TaskRequest(task_type=task_type, parameters=parameters)
        record = RequestRecord(start.get("band", 1), 3, 7, 0, TASK_ID, request, 5, 0, b"", headers=(("h", b"1"),))
        known = self.registry.get(task_type)
        kind = known.kind if known else HandlerKind.ASYNC
        return Start(self._token, record, start.get("attempt", 1), kind, 10_000, shares=start.get("shares", False))

    def start(self, task_type: str, parameters: dict[str, Any] | None = None, **start: Any) -> int:
        made = self.make(task_type, parameters, **start)
        self.executor.submit([made])
        return made.token

    def outcome(self, token: int) -> Outcome:
        deadline = time.monotonic() + DEADLINE_S
        while token not in self.outcomes:
            assert time.monotonic() < deadline, f"no outcome; {self.executor.running()}, {self.events}"
            self.executor.wait(0.1)
            self.drain()
        return self.outcomes[token]

    def drain(self) -> None:
        done, progress = self.executor.drain()
        for token, outcome in done:
            assert token not in self.outcomes, "two outcomes of one execution"
            self.outcomes[token] = outcome
        self.progress += progress

    def told(self, name: str) -> dict[str, Any]:
        """What it told of first under this name, as soon as it has."""
        self.until(lambda: name in [told for told, _ in self.events])
        return next(fields for told, fields in self.events if told == name)

    def run(self, task_type: str, parameters: dict[str, Any] | None = None, **start: Any) -> Outcome:
        return self.outcome(self.start(task_type, parameters, **start))

    def until(self, true: Callable[[], Any]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            assert time.monotonic() < deadline, f"never came true; {self.events}"
            self.executor.wait(0.01)
            self.drain()


Make = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Make]:
    """Makes executors that are started, and ends them."""
    made: list[Bench] = []

    def make(*functions: Callable[..., Any], **settings: Any) -> Bench:
        one = Bench(*functions, **settings)
        made.append(one)
        one.executor.start(DEADLINE_S)
        return one

    yield make
    for one in made:
        one.executor.stop(5.0)
