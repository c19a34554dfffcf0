"""Several short executions in one child at once: each has its own end, whatever becomes of those before it."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamtask import App
from streamtask.domain.model import Ending, Outcome
from streamtask.domain.ports import Stop, StopReason
from streamtask.execution.process_pool import child, pipe, pool
from tests.unit.process_pool_hand import Hand, until


@pytest.fixture
def own() -> Iterator[Callable[..., Hand]]:
    made: list[Hand] = []

    def make(**options: Any) -> Hand:
        one = Hand(**options)
        made.append(one)
        until(lambda: one.pool.ready() == options.get("children", 1), "its children are ready")
        return one

    yield make
    for one in made:
        one.executor.stop(5.0)
        assert one.pool.pids() == []


class Notes:
    """What executions wrote when they began, and the FIFO on which some of them wait."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notes"
        self.fifo = directory / "fifo"
        os.mkfifo(self.fifo)

    def job(self, n: int) -> tuple[str, dict[str, Any]]:
        return "notes", {"path": str(self.path), "n": n}

    def waiting(self, n: int, task_type: str = "notes") -> tuple[str, dict[str, Any]]:
        return task_type, {"path": str(self.path), "n": n, "fifo": str(self.fifo)}

    def begun(self) -> dict[int, int]:
        """Child by number of the execution; each began once."""
        lines = [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []
        assert max(Counter(n for n, _ in lines).values(), default=1) == 1, "an execution began twice"
        return {int(n): int(pid) for n, pid in lines}

    def go_on(self) -> None:
        self.fifo.write_text("go")


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


def results(outcomes: list[Outcome]) -> list[bytes | None]:
    assert [outcome.ending for outcome in outcomes] == [Ending.RETURNED] * len(outcomes)
    return [outcome.result for outcome in outcomes]


def test_each_of_them_has_its_own_end_and_its_own_time(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    wanted = [notes.job(0), ("raises", {"kind": "value"}), notes.job(2), ("noop", {"n": "no number"}), notes.job(4)]
    outcomes = hand.end_all(hand.begin_many(*wanted))
    endings = [Ending.RETURNED, Ending.RAISED, Ending.RETURNED, Ending.INVALID, Ending.RETURNED]
    assert [outcome.ending for outcome in outcomes] == endings
    assert all(outcome.ran_ms is not None and 0 < outcome.ran_ms < 30_000 for outcome in outcomes)
    assert list(notes.begun()) == [0, 2, 4], "in their order"


def test_those_behind_one_that_takes_long_are_asked_back_and_run_elsewhere(
    own: Callable[..., Hand], notes: Notes
) -> None:
    hand = own(children=2)
    first, *others = hand.begin_many(notes.waiting(0), *[notes.job(n) for n in range(1, 20)])
    results(hand.end_all(others))
    begun = notes.begun()
    assert sorted(begun) == list(range(20))
    assert set(begun.values()) - {begun[0]} == {begun[19]}, "all others in the other child"
    notes.go_on()
    results([hand.end(first)])


def test_what_comes_back_waits_for_the_child_where_there_is_no_other(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    tokens = hand.begin_many(notes.waiting(0), *[notes.job(n) for n in range(1, 9)])
    until(lambda: list(hand.pool._pending) == tokens[1:], "they came back")
    notes.go_on()
    assert results(hand.end_all(tokens)) == [str(n).encode() for n in range(9)]
    assert list(notes.begun()) == list(range(9)), "in their order still"


@pytest.mark.parametrize("how", ["exit", "kill", "segfault"])
def test_a_death_is_that_of_the_one_that_ran_and_the_others_run(
    how: str, own: Callable[..., Hand], notes: Notes
) -> None:
    hand = own()
    tokens = hand.begin_many(notes.job(0), ("dies", {"how": how}), *[notes.job(n) for n in range(2, 9)])
    outcomes = hand.end_all(tokens)
    assert [outcome.ending for outcome in outcomes].count(Ending.LOST) == 1
    assert outcomes[1].ending is Ending.LOST
    assert sorted(notes.begun()) == [0, 2, 3, 4, 5, 6, 7, 8]


def test_two_that_die_are_two_deaths(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    poison = ("dies", {"how": "exit"})
    outcomes = hand.end_all(hand.begin_many(poison, notes.job(1), poison, notes.job(3)))
    assert [outcome.ending for outcome in outcomes] == [Ending.LOST, Ending.RETURNED, Ending.LOST, Ending.RETURNED]


def test_one_behind_another_is_stopped_without_having_begun(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first, second, third = hand.begin_many(notes.waiting(0), notes.job(1), notes.job(2))
    until(lambda: 0 in notes.begun(), "the first has begun")
    stopped = hand.stop(second, StopReason.CANCEL)
    assert (stopped.ending, stopped.code, stopped.begun) == (Ending.STOPPED, "cancelled", False)
    notes.go_on()
    results(hand.end_all([first, third]))
    assert list(notes.begun()) == [0, 2]


def test_a_stop_of_the_first_ends_that_one_alone(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first, *others = hand.begin_many(notes.waiting(0), *[notes.job(n) for n in range(1, 9)])
    until(lambda: 0 in notes.begun(), "it has begun")
    stopped = hand.stop(first)
    assert (stopped.ending, stopped.begun) == (Ending.STOPPED, True)
    results(hand.end_all(others))
    assert sorted(notes.begun()) == list(range(9))


def test_one_that_does_not_hear_holds_up_those_behind_it_and_loses_none(
    own: Callable[..., Hand], notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RECALL_S", 3_600.0)  # a slow machine would ask them back before it stops listening
    hand = own()
    first, second, third = hand.begin_many(notes.waiting(0, "does_not_hear"), notes.job(1), notes.job(2))
    until(lambda: 0 in notes.begun(), "it has begun")
    hand.executor.stop_executions([Stop(second, StopReason.CANCEL)])
    (one,) = hand.pool._children.values()
    until(lambda: one.stops, "it is asked for the others")
    notes.go_on()
    results(hand.end_all([first, third]))
    assert hand.end(second).code == "cancelled"
    assert 2 in notes.begun()


def test_killed_for_its_stop_it_takes_none_of_the_others_along(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first, *others = hand.begin_many(notes.waiting(0, "does_not_hear"), *[notes.job(n) for n in range(1, 9)])
    until(lambda: 0 in notes.begun(), "it has begun")
    assert hand.stop(first).ending is Ending.STOPPED
    results(hand.end_all(others))
    assert len(set(notes.begun().values())) == 2, "a new child"


def test_a_child_that_gives_back_what_it_does_not_have_is_killed(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    liar, other = hand.begin_many(("gives_back_what_it_has_not", {}), notes.job(1))
    assert "does not have" in hand.end(liar).error
    results([hand.end(other)])


def test_closing_ends_what_is_not_begun_as_well(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    tokens = hand.begin_many(notes.waiting(0), *[notes.job(n) for n in range(1, 9)])
    until(lambda: 0 in notes.begun(), "the first has begun")
    assert hand.executor.stop(10.0)
    outcomes = hand.end_all(tokens)
    assert {outcome.ending for outcome in outcomes} == {Ending.STOPPED}, outcomes
    assert [outcome.begun for outcome in outcomes] == [True] + [False] * 8
    assert list(notes.begun()) == [0]


def test_a_recall_that_comes_while_the_child_gives_back_gives_nothing_back_twice() -> None:
    """Bug: it raised in the handler that ran, which failed."""
    ours, theirs = socket.socketpair()
    stops, control = socket.socketpair()
    one = child.Child(App("any"), theirs, control)

    class Disturbed(deque[tuple[int, bytes]]):
        """Another recall comes in the middle of every look at it."""

        def __reversed__(self) -> Iterator[tuple[int, bytes]]:
            for at, item in enumerate(super().__reversed__()):
                if at == 5:
                    one._on_recall(signal.SIGURG, None)
                yield item

        def pop(self) -> tuple[int, bytes]:  # type: ignore[override]
            item = super().pop()
            if item[0] == 5:
                one._on_recall(signal.SIGURG, None)
            return item

    one._queue = Disturbed((token, b"") for token in range(9))
    one._on_recall(signal.SIGURG, None)
    with ours, theirs, stops, control:
        told = list(pipe.Frames().feed(ours.recv(4_096)))
    assert sorted(token for _, token, _ in told) == list(range(9))


@pytest.mark.parametrize("seed", range(4))
def test_stops_at_random_moments_lose_nothing_and_run_nothing_twice(
    seed: int, own: Callable[..., Hand], notes: Notes
) -> None:
    hand, rng = own(children=2), random.Random(seed)
    tokens = hand.begin_many(*[notes.job(n) for n in range(200)])
    chosen = rng.sample(tokens, 40)

    def stop_some() -> None:
        for token in chosen:
            hand.executor.stop_executions([Stop(token, StopReason.CANCEL)])
            rng.random()

    thread = threading.Thread(target=stop_some)
    thread.start()
    thread.join()
    outcomes = dict(zip(tokens, hand.end_all(tokens), strict=True))
    begun = notes.begun()
    for n, token in enumerate(tokens):
        outcome = outcomes[token]
        if token in chosen:
            assert outcome.ending in (Ending.STOPPED, Ending.RETURNED), outcome
        else:
            assert outcome.ending is Ending.RETURNED, f"seed {seed}: {n} was not told to stop, and it says {outcome}"
        assert (n in begun) or not outcome.begun or outcome.ending is Ending.STOPPED
        assert outcome.begun or n not in begun, f"seed {seed}: {n} ran, and it is said not to have begun"
    hand.still_works()
