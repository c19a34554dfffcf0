"""Short executions that wait in a child behind the one that it runs: stopped, returned, overtaken, never lost or repeated."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamtask import App
from streamtask.domain.model import Ending
from streamtask.domain.ports import Stop, StopReason
from streamtask.execution.process_pool import child, pipe, pool
from streamtask.execution.process_pool.child_handle import Place
from streamtask.execution.process_pool.waiting import AHEAD_BYTES
from tests.unit.process_pool_hand import Hand, until
from tests.unit.test_process_pool_batches import Notes, notes, own, results

__all__ = ["notes", "own"]  # fixtures


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is slow: on a busy machine the pool would otherwise ask for what waits before a test is ready."""
    monkeypatch.setattr(pool, "RECALL_S", 3_600.0)


def place(hand: Hand) -> Place:
    (one,) = hand.pool._children.values()
    return one


def running(hand: Hand, notes: Notes, n: int = 0) -> int:
    """An execution in the only child, which runs until notes.go_on()."""
    (token,) = hand.begin_many(notes.waiting(n))
    until(lambda: n in notes.begun(), "it has begun")
    return token


def ahead(hand: Hand, *wanted: tuple[str, dict[str, object]]) -> list[int]:
    """These wait in the pipe of the only child, in a frame of their own."""
    before = hand.in_children()[0]
    tokens = hand.begin_many(*wanted)
    until(lambda: hand.in_children() == [before + tokens], "the child has them")
    return tokens


def test_a_child_goes_on_with_its_next_jobs_while_its_pool_is_busy(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first = running(hand, notes)
    others = ahead(hand, notes.job(1), notes.job(2))
    with hand.busy_pool():
        notes.go_on()
        until(lambda: list(notes.begun()) == [0, 1, 2], "it goes on without its pool")
    results(hand.end_all([first, *others]))


def test_nothing_waits_in_a_child_behind_an_execution_that_is_not_short(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    task_type, parameters = notes.waiting(0)
    first = hand.begin(task_type, **parameters)
    until(lambda: 0 in notes.begun(), "it has begun")
    others = hand.begin_many(notes.job(1), notes.job(2))
    until(lambda: list(hand.pool._pending) == others, "they wait in the pool")
    assert hand.in_children() == [[first]]
    notes.go_on()
    results(hand.end_all([first, *others]))


def test_an_execution_that_is_not_short_waits_for_a_child_that_is_idle(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first = running(hand, notes)
    long, short = hand.begin("noop"), hand.begin_many(notes.job(1))
    until(lambda: list(hand.pool._pending) == [long, *short], "the short one does not overtake it")
    assert hand.in_children() == [[first]]
    notes.go_on()
    results(hand.end_all([first, long, *short]))


def test_a_stop_passes_the_jobs_that_wait_in_the_pipe(own: Callable[..., Hand], notes: Notes, tmp_path: Path) -> None:
    hand = own()
    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    (first,) = hand.begin_many(("cleans_up", {"ready": str(ready), "cleaned": str(cleaned)}))
    until(ready.exists, "it has begun")
    others = ahead(hand, notes.job(1), notes.job(2))
    assert hand.stop(first).ending is Ending.STOPPED
    assert cleaned.read_text() == "True", "the handler was told, not killed"
    results(hand.end_all(others))
    assert list(notes.begun()) == [1, 2]


def test_one_that_waits_in_the_pipe_is_stopped_without_having_begun(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first = running(hand, notes)
    second, third = ahead(hand, notes.job(1), notes.job(2))
    stopped = hand.stop(second, StopReason.CANCEL)
    assert (stopped.ending, stopped.code, stopped.begun) == (Ending.STOPPED, "cancelled", False)
    notes.go_on()
    results(hand.end_all([first, third]))
    assert list(notes.begun()) == [0, 2]


def test_a_recall_returns_what_lies_in_the_pipe_in_its_order(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first = running(hand, notes)
    others = ahead(hand, notes.job(1), notes.job(2)) + ahead(hand, notes.job(3), notes.job(4))
    last = hand.begin("noop")  # waits in the pool
    one = place(hand)

    def is_slow() -> None:
        one.slow_at_s = one.recall_at_s = 0.0

    hand.pool._calls.post(is_slow)
    until(lambda: list(hand.pool._pending) == [*others, last], "they are back, before the one that came later")
    assert hand.in_children() == [[first]]
    notes.go_on()
    results(hand.end_all([first, *others, last]))
    assert list(notes.begun()) == [0, 1, 2, 3, 4]


def test_a_child_whose_execution_takes_long_gets_no_others(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first = running(hand, notes)
    one = place(hand)
    with hand.busy_pool():
        one.slow_at_s = 0.0
    others = hand.begin_many(notes.job(1))
    until(lambda: list(hand.pool._pending) == others, "it waits in the pool")
    assert hand.in_children() == [[first]]
    notes.go_on()
    results(hand.end_all([first, *others]))


def test_the_death_of_a_child_is_that_of_the_first_alone_however_many_wait_in_it(
    own: Callable[..., Hand], notes: Notes
) -> None:
    hand = own()
    first = running(hand, notes)
    others = ahead(hand, notes.job(1), notes.job(2)) + ahead(hand, notes.job(3))
    os.kill(place(hand).process.pid, signal.SIGKILL)
    assert hand.end(first).ending is Ending.LOST
    results(hand.end_all(others))
    assert list(notes.begun()) == [0, 1, 2, 3], "in their order, each once"


def test_a_death_between_two_that_wait_is_a_death_of_the_one_that_ran(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first = running(hand, notes)
    one, poison, three = ahead(hand, notes.job(1), ("dies", {"how": "exit"}), notes.job(3))
    four = ahead(hand, notes.job(4))
    notes.go_on()
    assert hand.end(poison).ending is Ending.LOST
    results(hand.end_all([first, one, three, *four]))
    assert list(notes.begun()) == [0, 1, 3, 4]


def test_the_lead_band_overtakes_those_that_wait_in_the_pool(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    task_type, parameters = notes.waiting(0)
    first = hand.begin(task_type, **parameters)
    until(lambda: 0 in notes.begun(), "it has begun")
    others = hand.begin_many(notes.job(1), notes.job(2))
    lead = hand.begin_many(notes.job(3), notes.job(4), band=0)
    notes.go_on()
    results(hand.end_all([first, *others, *lead]))
    assert list(notes.begun()) == [0, 3, 4, 1, 2]


def test_the_lead_band_overtakes_those_that_wait_in_a_child(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first = running(hand, notes)
    others = hand.begin_many(*[notes.job(n) for n in range(1, 20)])
    (lead,) = hand.begin_many(notes.job(20), band=0)
    until(lambda: hand.in_children()[0][:2] == [first, lead], "it is the next one")
    notes.go_on()
    results(hand.end_all([first, *others, lead]))
    assert list(notes.begun()) == [0, 20, *range(1, 20)]


def test_what_a_child_is_handed_fits_into_its_pipe(own: Callable[..., Hand], notes: Notes) -> None:
    hand = own()
    first = running(hand, notes)
    large = [("noop", {"n": "x" * 16_000})] * 12
    others = hand.begin_many(*large)
    until(lambda: len(hand.in_children()[0]) == 4, "some wait in the child")
    assert sum(len(job.payload) for job in list(place(hand).jobs)[1:]) <= AHEAD_BYTES
    notes.go_on()
    results([hand.end(first)])
    hand.end_all(others)


# --- The child alone --------------------------------------------------------------------------------------------------


def frames_of(*tokens: int) -> bytes:
    return b"".join(pipe.frame(pipe.JOB, token, b"job") for token in tokens)


@pytest.fixture
def alone() -> Iterator[tuple[child.Child, socket.socket, socket.socket]]:
    """A child that runs nothing, the worker's end of its pipe, and that of its control channel."""
    ours, theirs = socket.socketpair()
    stops, control = socket.socketpair()
    with ours, theirs, stops, control:
        yield child.Child(App("any"), theirs, control), ours, stops


def returned_by(ours: socket.socket) -> list[int]:
    return [token for kind, token, _ in pipe.Frames().feed(ours.recv(65_536)) if kind == pipe.BACK]


def test_a_recall_during_a_read_of_the_pipe_returns_what_was_read(
    alone: tuple[child.Child, socket.socket, socket.socket],
) -> None:
    one, ours, _ = alone

    class Disturbed(pipe.Frames):
        """A recall comes between the jobs of a read, when more are already in the pipe."""

        def feed(self, data: bytes) -> Iterator[pipe.Frame]:
            for frame in super().feed(data):
                yield frame
                if frame[1] == 2:
                    ours.sendall(frames_of(4, 5))
                    one._on_recall(signal.SIGURG, None)

    one._frames = Disturbed(pipe.TO_CHILD, math.inf)
    ours.sendall(frames_of(1, 2, 3))
    assert one._receive()
    assert returned_by(ours) == [5, 4, 3, 2, 1]
    assert not one._queue


def test_a_job_of_which_a_recall_finds_a_part_is_kept(alone: tuple[child.Child, socket.socket, socket.socket]) -> None:
    one, ours, _ = alone
    data = frames_of(1, 2)
    ours.sendall(data[:-2])
    one._on_recall(signal.SIGURG, None)
    assert returned_by(ours) == [1]
    ours.sendall(data[-2:])
    assert one._receive()
    assert list(one._queue) == [(2, b"job")]


def test_a_stop_for_an_earlier_execution_stops_no_later_one(
    alone: tuple[child.Child, socket.socket, socket.socket],
) -> None:
    one, _, stops = alone
    one._token = 7
    assert not one._is_stopped()
    stops.sendall(pipe.frame(pipe.STOP, 6))
    assert not one._is_stopped()
    stops.sendall(pipe.frame(pipe.STOP, 6) + pipe.frame(pipe.STOP, 7))
    assert one._is_stopped()


def test_the_end_of_the_control_channel_stops_what_runs(
    alone: tuple[child.Child, socket.socket, socket.socket],
) -> None:
    one, _, stops = alone
    stops.close()
    assert one._is_stopped()


# --- All at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_stops_recalls_and_kills_at_random_moments_lose_nothing_and_run_nothing_twice(
    seed: int, own: Callable[..., Hand], notes: Notes
) -> None:
    hand, rng = own(children=2), random.Random(seed)
    n_of: dict[int, int] = {}
    stopped: set[int] = set()
    kills = 0
    for _ in range(60):
        wanted = [notes.job(len(n_of) + k) for k in range(rng.randrange(1, 20))]
        tokens = hand.begin_many(*wanted, band=rng.randrange(2))
        n_of |= {token: len(n_of) + k for k, token in enumerate(tokens)}
        chosen = [token for token in rng.sample(list(n_of), min(4, len(n_of))) if rng.random() < 0.5]
        stopped |= set(chosen)
        hand.executor.stop_executions([Stop(token, StopReason.CANCEL) for token in chosen])
        for pid in hand.pool.pids():
            if rng.random() < 0.5:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGURG)
        if kills < 3 and rng.random() < 0.1 and hand.pool.ready() == 2:
            kills += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(hand.pool.pids()), signal.SIGKILL)
        hand.end(rng.choice(tokens))
    outcomes = dict(zip(n_of, hand.end_all(list(n_of)), strict=True))
    begun = notes.begun()  # asserts that each began once at most
    for token, outcome in outcomes.items():
        n = n_of[token]
        assert outcome.ending in (Ending.RETURNED, Ending.STOPPED, Ending.LOST), outcome
        assert outcome.ending is not Ending.STOPPED or token in stopped, f"seed {seed}: {n} was not told to stop"
        assert outcome.ending is not Ending.RETURNED or n in begun, f"seed {seed}: {n} did not run"
        assert outcome.begun or n not in begun, f"seed {seed}: {n} ran, and it is said not to have begun"
    assert [outcome.ending for outcome in outcomes.values()].count(Ending.LOST) <= kills
    hand.still_works()
    assert not hand.pool._by_token
    assert len(hand.pool._pending) == 0
