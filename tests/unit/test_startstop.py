"""The contract of domain/startstop.py, held by everything that starts and stops: order of calls, threads, and what is left.

With a switch of threads every microsecond, so that starts and stops fall into each other.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from streamtask.config import TopicNames, load_settings
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import Outcome
from streamtask.domain.startstop import StartStop
from streamtask.errors import ConfigError, LifespanError
from streamtask.execution.event_loop import Coroutines
from streamtask.execution.executor import Executor
from streamtask.execution.process_pool.pool import Pool
from streamtask.execution.process_pool.quarantine import Quarantine
from streamtask.execution.process_pool.settings import Children
from streamtask.handlers.registry import make_handler
from streamtask.kafka.lag import LogEnds, Seen
from streamtask.projection.materialize import Record
from streamtask.projection.store import MemoryStore
from streamtask.projection.view import ViewService
from streamtask.worker.endpoint import Endpoint, WorkerCollector
from streamtask.worker.metrics import Observer
from streamtask.worker.watchdog import Watchdog
from streamtask.worker.worker import Worker
from tests.unit.process_pool_hand import APP, until

STOP_S = 30.0
KAFKA = KafkaSettings("127.0.0.1:1")
ROUNDS = {"pool": 3, "executor_with_children": 3, "log_ends": 3, "endpoint": 6}  # those wait for more than threads
ROUNDS_MANY = 30


class Nobody:
    """Hears everything, and wants to know none of it."""

    def child_ended(self, token: int, outcome: Outcome) -> None: ...
    def child_reported(self, token: int, fraction: float, message: str | None) -> None: ...
    def child_begun(self, token: int) -> None: ...
    def children_failed(self, error: Exception) -> None: ...
    def execution_ended(self, execution: Any, outcome: Outcome) -> None: ...
    def execution_begins(self, execution: Any) -> None: ...
    def lifespan_broke(self, error: BaseException) -> None: ...
    def happened(self, name: str, fields: Any, /) -> None: ...


class NoSource:
    """A source of the view whose topics are empty."""

    def ends(self) -> dict[tuple[str, int], int]:
        return {}

    def poll(self, _records_max: int, timeout_s: float, _bytes_max: int | None = None) -> list[Record]:
        threading.Event().wait(timeout_s)
        return []

    def positions(self) -> dict[tuple[str, int], int]:
        return {}

    def high_watermarks(self) -> dict[tuple[str, int], int]:
        return {}

    def stale(self) -> bool:
        return False

    def close(self) -> None: ...


class OnLoop:
    """A view, started and stopped on an event loop as it must be; from any thread."""

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.view = ViewService(MemoryStore(), NoSource, TopicNames(), "cluster")

    @property
    def started(self) -> bool:
        return self.view.started

    @property
    def stopped(self) -> bool:
        return self.view.stopped

    def start(self) -> None:
        self._do(self.view.start)

    def stop(self, timeout_s: float = STOP_S) -> None:
        self._do(lambda: self.view.stop(timeout_s))

    def _do(self, call: Callable[[], None]) -> None:
        async def run() -> None:
            call()

        asyncio.run_coroutine_threadsafe(run(), self.loop).result(STOP_S)


def executor(children: Children | None = None) -> Executor:
    return Executor({"x": make_handler(lambda: None, name="x")}, children=children)


def endpoint() -> Endpoint:
    observer = Observer({}, ["high"], stalled_s=300.0)
    return Endpoint(WorkerCollector(observer, lambda: 0.0, lambda: Seen({}, None)), host="127.0.0.1", port=0)


MAKERS: dict[str, Callable[[], StartStop]] = {
    "executor": executor,
    "executor_with_children": lambda: executor(Children(APP, 1)),
    "coroutines": lambda: Coroutines(lifespan=None, listener=Nobody(), patience_s=5.0),
    "pool": lambda: Pool(Children(APP, 1), Nobody()),
    "quarantine": lambda: Quarantine(Children(APP, 0), Nobody()),
    "endpoint": endpoint,
    "log_ends": lambda: LogEnds(KAFKA, TopicNames(), lambda: ()),
    "watchdog": lambda: Watchdog(lambda: None),
    "view": OnLoop,
}


@pytest.fixture(scope="module", autouse=True)
def _loop() -> Iterator[None]:
    warm = executor()  # the first loop of a process opens a pipe that stays
    warm.start()
    warm.stop()
    OnLoop.loop = asyncio.new_event_loop()
    thread = threading.Thread(target=OnLoop.loop.run_forever, name="loop-of-views", daemon=True)
    thread.start()
    yield
    OnLoop.loop.call_soon_threadsafe(OnLoop.loop.stop)
    thread.join(STOP_S)
    OnLoop.loop.close()


@pytest.fixture
def frantic() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def held() -> tuple[set[str], set[int], int]:
    """Threads, child processes and the number of open files of this process."""
    threads = {f"{thread.name} {thread.ident}" for thread in threading.enumerate()}
    return threads, {child.pid for child in psutil.Process().children()}, len(os.listdir("/proc/self/fd"))


@pytest.fixture
def nothing_left() -> Iterator[None]:
    if sys.platform != "linux":
        pytest.skip("counts open files in /proc")
    threads, children, files = held()
    yield

    def gone() -> bool:
        threads_now, children_now, files_now = held()
        return threads_now <= threads and children_now <= children and files_now <= files + 2  # those of `until`

    until(gone, "every thread, child process and open file is gone")


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest, nothing_left: None) -> str:
    return str(request.param)


@pytest.fixture
def made(kind: str) -> StartStop:
    return MAKERS[kind]()


def test_it_starts_once_and_stops_once(made: StartStop) -> None:
    assert (made.started, made.stopped) == (False, False)
    made.start()
    assert (made.started, made.stopped) == (True, False)
    with pytest.raises(RuntimeError, match=r"was started before\. Start each one once"):
        made.start()
    assert (made.started, made.stopped) == (True, False)
    made.stop(STOP_S)
    assert (made.started, made.stopped) == (True, True)
    made.stop(STOP_S)
    with pytest.raises(RuntimeError, match=r"was stopped before.* Make another one"):
        made.start()


def test_a_stop_before_the_start_is_all_that_ever_happens(made: StartStop) -> None:
    made.stop(STOP_S)
    made.stop(STOP_S)
    assert (made.started, made.stopped) == (False, True)
    with pytest.raises(RuntimeError, match="was stopped before"):
        made.start()
    assert not made.started


class Crowd:
    """Threads that start and stop one thing. at_once: nobody waits; else stops begin as soon as a start is under way."""

    def __init__(self, made: StartStop, *, at_once: bool) -> None:
        self.made = made
        self.started = 0
        self.failures: list[BaseException] = []
        self._at_once = at_once
        self._together = threading.Barrier(5)
        calls = [self._start, self._stop, self._stop, self._stop, self._start]
        self._threads = [threading.Thread(target=call) for call in calls]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join(2 * STOP_S)
            assert not thread.is_alive(), "a start or a stop never returns"
        assert self.failures == []

    def _start(self) -> None:
        self._together.wait(STOP_S)
        try:
            self.made.start()
        except (RuntimeError, LifespanError):  # too late: it was started or stopped before
            return
        self.started += 1

    def _stop(self) -> None:
        self._together.wait(STOP_S)
        deadline_s = time.monotonic() + STOP_S
        while not self._at_once and not self.made.started and time.monotonic() < deadline_s:
            pass
        try:
            self.made.stop(STOP_S)
            assert self.made.stopped, "a stop returned before it was through"
        except BaseException as error:  # noqa: BLE001 shown by the test's own thread
            self.failures.append(error)


def test_starts_and_stops_of_several_threads_leave_nothing(kind: str, frantic: None) -> None:
    for _ in range(ROUNDS.get(kind, ROUNDS_MANY)):
        crowd = Crowd(MAKERS[kind](), at_once=True)
        crowd.run()
        assert crowd.started <= 1


def test_a_stop_while_it_starts_ends_what_has_begun(kind: str, frantic: None) -> None:
    for _ in range(ROUNDS.get(kind, ROUNDS_MANY)):
        crowd = Crowd(MAKERS[kind](), at_once=False)
        crowd.run()
        assert crowd.made.started
        # An executor's start fails when it is stopped before its lifespan is open; no other start waits for anything.
        assert crowd.started == 1 or (kind.startswith("executor") and crowd.started == 0)


def test_an_executor_that_is_stopped_while_its_lifespan_opens_says_so(nothing_left: None) -> None:
    opening = threading.Event()

    class Slow:
        async def __aenter__(self) -> None:
            opening.set()
            await asyncio.sleep(3_600)

        async def __aexit__(self, *_: object) -> None: ...

    made = Executor({}, lifespan=Slow)

    def stop() -> None:
        assert opening.wait(STOP_S)
        made.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(LifespanError, match="stopped while its lifespan opened"):
        made.start()
    stopper.join(STOP_S)
    assert made.stopped


def test_a_worker_runs_once_and_can_be_stopped_at_any_time() -> None:
    settings = load_settings(bootstrap_servers="127.0.0.1:1")
    worker = Worker("census", {}, settings, lifespan=None)
    worker.stop()
    worker.stop()
    assert (worker.started, worker.stopped) == (False, False)
    with pytest.raises(ConfigError, match="has no tasks"):
        worker.run(signals=False)
    assert (worker.started, worker.stopped) == (True, True)
    with pytest.raises(RuntimeError, match="runs once"):
        worker.run(signals=False)
    worker.stop()
