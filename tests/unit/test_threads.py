"""What two threads touch, with a switch of threads every microsecond: nothing is lost, told twice, or raised in the owner.

The first part has one test for each race that was found by reading: made certain by an object that does in the middle of a
call what the other thread would do. The second part leaves the moments to chance and asserts only what must always hold.
"""

from __future__ import annotations

import asyncio
import functools
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from streamtask.client.sending import Sender, _Countdown
from streamtask.client.tracking import Track
from streamtask.client.watching import StatusWatch
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord, TaskRequest
from streamtask.domain.ports import Start, Stop, StopReason
from streamtask.errors import DecodeError
from streamtask.execution.event_loop import Coroutines
from streamtask.execution.execution import Execution
from streamtask.execution.executor import Executor
from streamtask.execution.process_pool import child, pipe
from streamtask.handlers.registry import Context, make_handler
from streamtask.kafka.producer import Delivery
from streamtask.observability import event_log
from streamtask.schema_registry.cache import SchemaCache
from tests.unit.process_pool_hand import Hand

DEADLINE_S = 60.0
TASK_ID = "018f0000-0000-7000-8000-000000000001"


@pytest.fixture
def frantic() -> Iterator[None]:
    """A switch of threads every microsecond, while the test runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def start_of(token: int, task_type: str, kind: HandlerKind = HandlerKind.ASYNC, **parameters: Any) -> Start:
    request = TaskRequest(task_type=task_type, parameters=parameters)
    return Start(token, RequestRecord(1, 3, token, 0, TASK_ID, request, 5, 0, b""), 1, kind, None)


class Listening:
    """Hears what the loop of the handlers tells."""

    def __init__(self) -> None:
        self.finished: Counter[int] = Counter()
        self.failures: list[BaseException] = []
        self.events: list[str] = []

    def execution_ended(self, execution: Execution, _outcome: Outcome) -> None:
        assert not execution.ended
        execution.end()
        self.finished[execution.token] += 1

    def execution_begins(self, execution: Execution) -> None:
        raise AssertionError(f"{execution.token} shares no slot")

    def lifespan_broke(self, error: BaseException) -> None:
        self.failures.append(error)

    def happened(self, name: str, _fields: Mapping[str, Any], /) -> None:
        self.events.append(name)


# --- Each race that was found, made certain ---------------------------------------------------------------------------


def test_an_execution_that_ends_while_its_progress_is_collected_does_not_end_the_owner() -> None:
    """Bug: KeyError in the owner thread; the worker ended, and handlers that had finished ran again."""

    async def reports(ctx: Context) -> None: ...

    executor = Executor({"reports": make_handler(reports)})

    class Disturbed(dict[int, tuple[float, str | None]]):
        def popitem(self) -> tuple[int, tuple[float, str | None]]:
            item = super().popitem()
            self.pop(1, None)  # execution 1 ends now, and takes its own out
            return item

    executor._progress = Disturbed({1: (0.1, None), 2: (0.2, None), 3: (0.3, "third")})
    assert executor.drain() == ([], [(3, 0.3, "third"), (2, 0.2, None)])
    assert executor.drain() == ([], [])
    executor.stop(0.0)


def test_a_first_event_of_its_name_does_not_break_the_snapshot_of_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: RuntimeError (dictionary changed size during iteration) in the owner thread."""

    class Growing(Counter[str]):
        def items(self) -> Any:
            for at, item in enumerate(super().items()):
                yield item
                self[f"another thread {at}"] += 1

    monkeypatch.setattr(event_log, "COUNTS", Growing({"worker_started": 1, "shards_assigned": 2, "no event": 3}))
    assert event_log.counted() == {"worker_started": 1, "shards_assigned": 2}


def test_a_loop_that_was_closed_with_tasks_left_can_still_be_asked_whether_it_answers() -> None:
    """Bug: RuntimeError (event loop is closed) in the owner, when it collected once more while it left the group."""
    loop = Coroutines(lifespan=None, listener=Listening(), patience_s=5.0)
    loop.start()
    assert loop.await_opened(DEADLINE_S)
    assert loop.stop(DEADLINE_S)
    loop._tasks[object()] = object()  # type: ignore[index,assignment]  # one that ignored its cancel
    assert (loop.blocked_s(1.0), loop.blocked_s(2.0)) == (0.0, 0.0)


def test_what_a_thread_left_behind_reports_does_not_become_progress_of_the_next_execution() -> None:
    """Bug: it went out under the token of whatever ran in the child at that moment."""
    sent: list[bytes] = []
    one = child.Child.__new__(child.Child)
    one.send = sent.append  # type: ignore[assignment, method-assign]  # what it would have sent
    one.bands = ()
    left_behind = child.ChildContext(start_of(7, "any"), one)
    one._token = 8  # the next one has begun between the look at `_ended` and the report
    left_behind.progress(0.5)
    ((_, token, _),) = pipe.Frames().feed(sent[0])
    assert token == 7


def test_reports_that_two_threads_serve_at_once_are_all_counted(frantic: None) -> None:
    """Bug: a client that was closed under way (its poll thread and its flush both serve reports) could lose one, and then
    whoever awaited the submit waited for ever."""

    async def go() -> None:
        sender = Sender.__new__(Sender)
        sender._loop = asyncio.get_running_loop()
        sender._done, sender._waking = deque(), False
        countdown = _Countdown(100_000, sender._loop.create_future())
        countdown.expected = 100_000

        def serve(first: int) -> None:
            for index in range(first, 100_000, 2):
                sender._report(countdown, index, Delivery("t", 0, index))

        await asyncio.gather(asyncio.to_thread(serve, 0), asyncio.to_thread(serve, 1))
        async with asyncio.timeout(DEADLINE_S):
            await countdown.future
        assert len(countdown.reports) == 100_000

    asyncio.run(go())


def test_failures_of_a_load_that_is_being_sent_are_told_once(frantic: None) -> None:
    """Bug: flush(timeout) took the count while a load added to it: some were told twice, or never."""
    sender = Sender.__new__(Sender)
    sender._failed, sender._why, sender._failing = 0, "", threading.Lock()

    def fail() -> None:
        for _ in range(50_000):
            sender._fail(1, "refused")

    thread = threading.Thread(target=fail)
    thread.start()
    told = 0
    while thread.is_alive():
        told += sender.take_failures()[0]
    assert told + sender.take_failures()[0] == 50_000


def test_a_track_that_is_dropped_while_all_are_told_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: RuntimeError (dictionary changed size during iteration) on the event loop: nobody learnt that the tail had
    ended."""
    watch = StatusWatch(KafkaSettings("nowhere:9"), "tasks.status")
    held = [watch.track(str(n)) for n in range(3)]
    broken: list[str] = []
    monkeypatch.setattr(Track, "break_off", lambda track, _error: broken.append(track.task_id))
    monkeypatch.setattr(watch, "_tracks", _Dropping(watch._tracks))
    watch._deliver((), RuntimeError("the tail has ended"))
    assert broken == [track.task_id for track in held]


class _Dropping:
    """Weak values, one of which another thread drops during any iteration over them."""

    def __init__(self, tracks: Any) -> None:
        self._data = tracks.data

    def values(self) -> Iterator[Any]:
        for reference in self._data.values():
            yield reference()
            self._data.popitem()

    def valuerefs(self) -> list[Any]:
        return list(self._data.values())


def test_an_id_that_the_registry_does_not_know_costs_no_memory_each_time_it_is_met() -> None:
    """Bug: one exception was raised again and again, by every thread, and kept the frames of every record it had passed."""
    cache = SchemaCache.__new__(SchemaCache)
    SchemaCache.__init__(cache, registry=None, wait_s=1.0)  # type: ignore[arg-type]
    cache._missing[7] = DecodeError("the registry knows no schema 7"), time.monotonic() + DEADLINE_S

    def depth(error: BaseException) -> int:
        trace, frames = error.__traceback__, 0
        while trace is not None:
            trace, frames = trace.tb_next, frames + 1
        return frames

    depths = set()
    for _ in range(5):
        with pytest.raises(DecodeError, match="knows no schema 7") as raised:
            cache.get(7)
        depths.add(depth(raised.value))
    assert len(depths) == 1


# --- Whatever the moment ----------------------------------------------------------------------------------------------


class Owner:
    """An owner thread with `open_max` executions at a time; `total` in all. It stops some, and asserts on what it is told."""

    def __init__(self, executor: Executor, kinds: Sequence[tuple[str, HandlerKind]], total: int, seed: int) -> None:
        self.executor, self.kinds, self.total = executor, kinds, total
        self.rng = random.Random(seed)
        self.outcomes: dict[int, Outcome] = {}
        self.stopped: dict[int, StopReason] = {}
        self.progress: Counter[int] = Counter()

    def run(self, open_max: int) -> None:
        token, open_ = 0, set[int]()
        deadline = time.monotonic() + DEADLINE_S
        while token < self.total or open_:
            starts = []
            while token < self.total and len(open_) < open_max:
                token += 1
                name, kind = self.kinds[token % len(self.kinds)]
                starts.append(start_of(token, name, kind, n=token))
                open_.add(token)
            if starts:
                self.executor.submit(starts)
            if open_ and self.rng.random() < 0.3:
                chosen = self.rng.choice(sorted(open_))
                self.stopped.setdefault(chosen, StopReason.CANCEL)
                self.executor.stop_executions([Stop(chosen, StopReason.CANCEL)])
            self.executor.wait(0.1)
            begun = self.executor.begun()
            done, progress = self.executor.drain()
            assert not begun, "nothing here is timed"
            for one, fraction, _ in progress:
                assert 1 <= one <= token
                assert 0.0 <= fraction <= 1.0
                self.progress[one] += 1
            for one, outcome in done:
                assert one in open_, f"execution {one} ended twice, or was never started"
                open_.remove(one)
                self.outcomes[one] = outcome
            assert time.monotonic() < deadline, f"{len(open_)} do not end: {self.executor.running()[:3]}"

    def check(self) -> None:
        """Every execution ended exactly once, as it had to."""
        assert sorted(self.outcomes) == list(range(1, self.total + 1))
        for token, outcome in self.outcomes.items():
            if outcome.ending is Ending.RETURNED:
                assert outcome.result == str(token).encode()
            else:
                assert (outcome.ending, token in self.stopped) == (Ending.STOPPED, True), (token, outcome)
        assert len(self.executor) == 0
        assert self.executor.failure is None


async def reports_async(ctx: Context, n: int) -> int:
    for step in range(3):
        ctx.progress(step / 3)
        await asyncio.sleep(0)
    return n


def reports_plain(ctx: Context, n: int) -> int:
    for step in range(3):
        ctx.progress(step / 3)
    return n


@pytest.mark.parametrize("seed", [1, 2])
def test_every_execution_ends_once_however_often_its_threads_take_turns(seed: int, frantic: None) -> None:
    handlers = {function.__name__: make_handler(function) for function in (reports_async, reports_plain)}
    executor = Executor(handlers, threads=8, coroutines=8, on_event=lambda *_: None)
    executor.start(DEADLINE_S)
    kinds = [("reports_async", HandlerKind.ASYNC), ("reports_plain", HandlerKind.THREAD)]
    owner = Owner(executor, kinds, total=30_000, seed=seed)
    try:
        owner.run(open_max=60)
        owner.check()
        assert owner.progress, "nothing was reported: the race is not here"
    finally:
        assert executor.stop(DEADLINE_S)


@pytest.mark.parametrize("limit", [7, 20_000])
def test_every_coroutine_is_finished_once_however_its_begin_and_its_stop_fall_together(
    limit: int, frantic: None
) -> None:
    told = Listening()
    loop = Coroutines(lifespan=None, listener=told, patience_s=5.0, limit=limit)
    loop.start()
    assert loop.await_opened(DEADLINE_S)
    handler = make_handler(reports_async)
    made = [
        Execution(start_of(token, "reports_async", n=token), handler, 0.0, lambda *_: None, None, ())
        for token in range(10_000)
    ]
    for at in range(0, len(made), 20):
        batch = made[at : at + 20]
        loop.begin(batch)
        for one in batch[::3]:
            one.stop(StopReason.CANCEL)
        loop.cancel(batch[::3])
        loop.blocked_s(time.monotonic())
        loop.at_work()
    assert loop.stop(DEADLINE_S)
    assert not told.failures
    assert not told.events
    assert len(told.finished) == len(made), "stopping ends those that still ran"
    assert set(told.finished.values()) == {1}
    assert not loop._tasks
    assert not any(loop._waiting)


def test_every_execution_in_children_ends_once_however_often_their_pool_and_its_owner_take_turns(
    frantic: None,
) -> None:
    hand = Hand(children=2, app="tests.unit.process_pool_app:app")
    owner = Owner(hand.executor, [("noop", HandlerKind.PROCESS)], total=600, seed=3)
    try:
        owner.run(open_max=24)
        owner.check()
        assert hand.pool.failure is None
        assert not hand.pool._by_token
        assert not hand.pool._pending
    finally:
        assert hand.executor.stop(DEADLINE_S)


def test_no_event_is_lost_that_several_threads_count(frantic: None) -> None:
    name = "shards_assigned"
    before = event_log.COUNTS[name]

    def count(times: int) -> None:
        for _ in range(times):
            event_log.count(name)

    threads = [threading.Thread(target=functools.partial(count, 10_000)) for _ in range(4)]
    looked: Callable[[], dict[str, int]] = event_log.counted
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert looked()[name] >= before
    assert event_log.COUNTS[name] == before + 40_000
