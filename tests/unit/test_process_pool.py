"""Process handlers on real children: what behaves, every way to behave badly, and that nobody is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog

from streamtask.domain.model import Ending, HandlerKind, RequestRecord, TaskRequest
from streamtask.domain.ports import Start, Stop, StopReason
from streamtask.errors import ConfigError
from streamtask.execution.process_pool import pipe, reaper
from streamtask.execution.process_pool.child_handle import Place
from streamtask.execution.process_pool.pool import START_TRIES
from streamtask.handlers.registry import make_handler
from tests.processes import gone
from tests.unit.process_pool_hand import GRACE_S, Hand, ready, until
from tests.unit.process_pool_slow_app import LOADS, OPENS


@pytest.fixture(scope="module")
def shared() -> Iterator[Hand]:
    """One child for all; whatever a test does to it, the next one finds a child that works."""
    hand = Hand()
    yield hand
    assert hand.executor.stop(5.0)


@pytest.fixture
def hand(shared: Hand) -> Iterator[Hand]:
    shared.events.clear()
    shared.progress.clear()
    yield shared
    shared.still_works()
    assert len(shared.executor) == 0


@pytest.fixture
def own() -> Iterator[Callable[..., Hand]]:
    made: list[Hand] = []

    def make(**options: Any) -> Hand:
        made.append(Hand(**options))
        return made[-1]

    yield make
    for one in made:
        one.executor.stop(5.0)
        assert one.pids() == []


# --- What behaves -----------------------------------------------------------------------------------------------------


def test_a_process_handler_runs_in_a_child_that_has_loaded_the_app_once(hand: Hand) -> None:
    first, second = hand.result("where"), hand.result("where")
    assert first["pid"] == second["pid"] != os.getpid()
    assert first["loaded"] == second["loaded"]
    assert first["attempt"] == 4
    assert (first["origin"], first["id"][-1]) != (second["origin"], second["id"][-1])
    assert first["origin"].startswith("normal-3@")


def test_parameters_are_validated_in_the_child(hand: Hand) -> None:
    outcome = hand.run("noop", n="many")
    assert (outcome.ending, outcome.code) == (Ending.INVALID, "invalid_parameters")
    assert hand.run("noop", m=1).error == "m: unknown parameter"


@pytest.mark.parametrize(
    ("kind", "exception", "retryable", "after_ms"),
    [
        ("value", "ValueError", True, None),
        ("give_up", "streamtask.GiveUp", False, None),
        ("later", "streamtask.RetryLater", True, 1_500),
        ("exit", "SystemExit", True, None),
        ("interrupt", "KeyboardInterrupt", True, None),
    ],
)
def test_what_a_handler_raises_comes_over_whole(
    hand: Hand, kind: str, exception: str, retryable: bool, after_ms: int | None
) -> None:
    outcome = hand.run("raises", kind=kind)
    assert (outcome.ending, outcome.exception) == (Ending.RAISED, exception)
    assert (outcome.retryable, outcome.after_ms) == (retryable, after_ms)
    assert "process_pool_app.py" in (outcome.traceback or "")
    assert "streamtask/execution/process_pool" not in (outcome.traceback or "")
    assert hand.events == []


def test_progress_and_log_lines_come_over_the_pipe(hand: Hand, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "seen")
    with structlog.testing.capture_logs() as lines:
        token = hand.begin("reports", steps=5, seen=str(tmp_path / "seen"))
        hand.until_progress(token, 1.0, "step 5")
        (tmp_path / "seen").write_text("yes")
        assert hand.end(token).result == b"5"
    (line,) = [line for line in lines if line["event"] == "reported"]
    assert (line["steps"], line["attempt"], line["task_type"], line["log_level"]) == (5, 4, "reports", "warning")
    assert line["odd"].startswith("<object object")


def test_the_lifespan_is_opened_in_the_child_when_it_is_asked_for(hand: Hand, tmp_path: Path) -> None:
    pid = hand.result("where")["pid"]
    assert hand.result("state") == {"pid": pid}
    os.mkfifo(tmp_path / "seen")
    token = hand.begin("async_state", seen=str(tmp_path / "seen"))
    hand.until_progress(token, 0.5, "half")
    (tmp_path / "seen").write_text("yes")
    assert json.loads(hand.end(token).result or b"") == {"pid": pid}


def test_a_child_is_replaced_after_its_tasks(hand: Hand) -> None:
    pids = [hand.result("worn") for _ in range(6)]
    assert len(set(pids)) in (3, 4), "two each; the first one may share its child with other types"
    until(lambda: all(gone(pid) for pid in pids[:4]), "worn children end")
    assert hand.events == [], "an end that was meant is none to tell of"


def test_children_work_side_by_side_and_what_waits_is_taken_in_order(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own(children=2)
    busy = hand.begin("sleeps", ready=str(tmp_path / "ready"))
    ready(tmp_path / "ready")
    tokens = [hand.begin("where") for _ in range(20)]
    assert len({json.loads(hand.end(token).result or b"")["pid"] for token in tokens}) == 1
    assert [token for token in hand.outcomes if token in tokens] == tokens
    assert hand.stop(busy).ending is Ending.STOPPED


def test_four_thousand_a_second_is_no_question_of_the_pipe(own: Callable[..., Hand]) -> None:
    """CPU time of the threads that serve it: 0.1 ms for each, and half a millisecond on a slower machine."""
    hand = own(children=2)
    until(lambda: hand.pool.ready() == 2, "both are ready")
    began = time.process_time()
    tokens = [hand.begin("noop") for _ in range(2_000)]
    for token in tokens:
        hand.end(token)
    each_ms = (time.process_time() - began) * 1_000 / 2_000
    assert each_ms < 0.5


def test_five_megabytes_come_back(hand: Hand) -> None:
    assert len(hand.result("large", size=5_000_000)) == 5_000_000


def test_ten_printed_megabytes_neither_block_nor_reach_the_pipe(hand: Hand, capfd: pytest.CaptureFixture[str]) -> None:
    assert hand.result("prints", size=10_000_000) == 10_000_000


# --- What does not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lock", "cycle", "bytes"])
def test_a_result_that_is_no_json_is_a_failure_and_the_child_goes_on(hand: Hand, kind: str) -> None:
    pid = hand.result("where")["pid"]
    outcome = hand.run("garbage", kind=kind)
    assert (outcome.ending, outcome.code, outcome.retryable) == (Ending.RAISED, "not_serializable", False)
    assert hand.result("where")["pid"] == pid


@pytest.mark.parametrize("kind", ["pipe", "hello", "other", "outcome"])
def test_bytes_in_the_pipe_that_are_no_frame_of_its_own_kill_the_child(hand: Hand, kind: str) -> None:
    outcome = hand.run("garbage", kind=kind)
    assert (outcome.ending, outcome.code) == (Ending.LOST, "worker_lost")
    assert "it " in outcome.error


@pytest.mark.parametrize(
    ("how", "said"),
    [("exit", "exit code 7"), ("kill", "SIGKILL"), ("abort", "SIGABRT"), ("segfault", "SIGSEGV")],
)
def test_a_child_that_dies_is_a_death_of_its_execution_alone(
    hand: Hand, how: str, said: str, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a death may be known later than the end of the pipe: the pool would say that the child had closed it.
    monkeypatch.setattr("streamtask.execution.process_pool.pool.DEAF_S", 30.0)
    outcome = hand.run("dies", how=how)
    assert (outcome.ending, outcome.code) == (Ending.LOST, "worker_lost")
    assert said in outcome.error
    ((name, fields),) = hand.events
    assert (name, fields["task_type"]) == ("child_died", "dies")


def test_the_cause_of_a_death_is_told_even_if_the_pool_gives_the_child_up_before_it_is_reaped(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()
    kill, kill_marked = Place.signal, reaper.kill_marked

    def gives_up(child: Place, number: int) -> None:
        kill(child, number)
        given_up.set()

    def late(mark: str) -> int:
        assert given_up.wait(20.0)
        return kill_marked(mark)

    monkeypatch.setattr(Place, "signal", gives_up)
    monkeypatch.setattr(reaper, "kill_marked", late)
    assert "exit code 7" in hand.run("dies", how="exit").error
    given_up.set()


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_handler_that_closes_the_pipe_is_a_death(hand: Hand, goes_on: bool) -> None:
    outcome = hand.run("closes_its_pipe", goes_on=goes_on)
    assert outcome.ending is Ending.LOST
    assert "closed its pipe" in outcome.error


def test_a_handler_that_forks_has_one_outcome(hand: Hand, tmp_path: Path) -> None:
    assert hand.result("forks", ready=str(tmp_path / "ready")) == "the child"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts nothing elsewhere")
def test_what_another_type_left_in_a_child_is_not_charged_to_a_limit_and_the_child_is_replaced(hand: Hand) -> None:
    leaky = hand.result("leaks", mb=200)
    assert hand.result("modest", mb=8) == leaky
    assert hand.result("modest", mb=8) != leaky


@pytest.mark.parametrize("task_type", ["eats", "eats_async"])
def test_memory_beyond_the_limit_is_an_error_and_a_new_child(hand: Hand, task_type: str) -> None:
    assert hand.result(task_type, mb=8) == 8
    pid = hand.result("where")["pid"]
    outcome = hand.run(task_type, mb=400)
    assert (outcome.ending, outcome.exception) == (Ending.RAISED, "MemoryError")
    assert hand.result("where")["pid"] != pid
    assert hand.result("large", size=100_000_000 // 2) is not None, "the limit is that type's alone"


# --- Stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task_type", "patient", "reason"),
    [
        ("sleeps", False, StopReason.TIMEOUT),
        ("sleeps", False, StopReason.CANCEL),
        ("sleeps", False, StopReason.REVOKE),
        ("turns_it_into_an_error", False, StopReason.TIMEOUT),
        ("ignores_term", True, StopReason.CANCEL),
        ("swallows_the_stop", True, StopReason.TIMEOUT),
        ("loops_in_c", True, StopReason.CANCEL),
    ],
)
def test_a_stop_really_ends_the_code_within_the_grace(
    hand: Hand, task_type: str, patient: bool, reason: StopReason, tmp_path: Path
) -> None:
    token = hand.begin(task_type, ready=str(tmp_path / "ready"))
    pid = ready(tmp_path / "ready")
    began = time.monotonic()
    outcome = hand.stop(token, reason)
    seconds = time.monotonic() - began
    assert gone(pid), "it has ended before its slot is free"
    assert outcome.ending is Ending.STOPPED
    assert outcome.code == ("timeout" if reason is StopReason.TIMEOUT else "cancelled")
    assert seconds >= GRACE_S if patient else seconds < 20.0
    assert hand.events == [], "a death that was meant is none to tell of"
    if task_type == "turns_it_into_an_error":
        assert outcome.error == "the library's own error"


@pytest.mark.parametrize("task_type", ["cleans_up", "sleeps_async"])
def test_a_stop_lets_the_handler_clean_up(hand: Hand, task_type: str, tmp_path: Path) -> None:
    token = hand.begin(task_type, ready=str(tmp_path / "ready"), cleaned=str(tmp_path / "cleaned"))
    pid = ready(tmp_path / "ready")
    assert hand.stop(token).ending is Ending.STOPPED
    assert gone(pid)
    assert (tmp_path / "cleaned").read_text() == "True"


def test_one_that_waits_for_a_child_is_stopped_without_one(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own()
    busy = hand.begin("sleeps", ready=str(tmp_path / "ready"))
    pid = ready(tmp_path / "ready")
    waits = hand.begin("sleeps", ready=str(tmp_path / "never"))
    stopped = hand.stop(waits, StopReason.CANCEL)
    assert (stopped.code, stopped.begun) == ("cancelled", False)
    assert not gone(pid)
    assert not (tmp_path / "never").exists()
    hand.stop(busy)


def test_the_first_reason_is_the_reason_and_a_late_stop_is_nothing(hand: Hand, tmp_path: Path) -> None:
    token = hand.begin("ignores_term", ready=str(tmp_path / "ready"))
    ready(tmp_path / "ready")
    hand.executor.stop_executions([Stop(token, StopReason.TIMEOUT), Stop(token, StopReason.CANCEL)])
    assert hand.end(token).code == "timeout"
    hand.executor.stop_executions([Stop(token, StopReason.CANCEL)])


def test_a_sigterm_to_every_process_of_the_service_stops_nothing(hand: Hand, tmp_path: Path) -> None:
    """systemd sends it to the whole control group: the worker drains, and what runs may end."""
    token = hand.begin("sleeps", ready=str(tmp_path / "ready"))
    pid = ready(tmp_path / "ready")
    for _ in range(3):
        os.kill(pid, signal.SIGTERM)
    (guard_pid,) = guards()
    os.kill(guard_pid, signal.SIGTERM)
    assert not gone(pid)
    hand.look()
    assert token not in hand.outcomes
    assert not gone(guard_pid)
    assert hand.stop(token).ending is Ending.STOPPED


def guards() -> list[int]:
    found = []
    for one in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended between the two looks
            if any(arg.endswith("reaper.py") for arg in one.cmdline()):
                found.append(one.pid)
    return found


@pytest.mark.parametrize("hold", [True, False])
def test_what_a_child_has_started_ends_with_it(hand: Hand, hold: bool, tmp_path: Path) -> None:
    """Stopped or dead by itself; one grandchild ignores TERM, another one has left the group."""
    paths = [tmp_path / name for name in ("obedient", "stubborn", "away")]
    obedient, stubborn, away = map(str, paths)
    token = hand.begin("has_children", obedient=obedient, stubborn=stubborn, away=away, hold=hold)
    pids = [ready(path) for path in paths]
    outcome = hand.stop(token) if hold else hand.end(token)
    assert outcome.ending is (Ending.STOPPED if hold else Ending.LOST)
    assert [pid for pid in pids if not gone(pid)] == [], "they are gone before the end is told"


# --- Isolation --------------------------------------------------------------------------------------------------------


def test_who_is_isolated_runs_in_a_child_of_its_own_whatever_its_kind(own: Callable[..., Hand]) -> None:
    hand = own(children=0)
    assert hand.pids() == [], "nothing is started before it is needed"
    assert hand.result("where_async")["pid"] == os.getpid()
    found = [hand.result(kind, isolated=True) for kind in ("where_async", "where_thread", "where", "where_async")]
    pids = [one["pid"] for one in found]
    assert len({os.getpid(), *pids}) == 5, "one for each"
    assert [one["state"] for one in found if "state" in one] == [{"pid": pid} for pid in (pids[0], pids[1], pids[3])]
    assert {one["attempt"] for one in found} == {4}
    until(lambda: hand.pids() == [], "they end with their execution")


def test_who_is_isolated_dies_alone(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own(children=1)
    busy = hand.begin("sleeps", ready=str(tmp_path / "ready"))
    ready(tmp_path / "ready")
    outcome = hand.run("dies_async", isolated=True, how="exit")
    assert (outcome.ending, outcome.code) == (Ending.LOST, "worker_lost")
    assert "exit code 7" in outcome.error
    hand.look()
    assert busy not in hand.outcomes
    hand.stop(busy)
    hand.still_works()


def test_who_is_isolated_is_really_ended_though_it_is_a_thread_handler(
    own: Callable[..., Hand], tmp_path: Path
) -> None:
    hand = own(children=0)
    token = hand.begin("sleeps_in_a_thread", isolated=True, ready=str(tmp_path / "ready"))
    pid = ready(tmp_path / "ready")
    assert hand.stop(token).code == "timeout"
    assert gone(pid)


def test_who_is_isolated_can_be_stopped_before_its_child_is_ready(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own(children=0)
    token = hand.begin("sleeps_in_a_thread", isolated=True, ready=str(tmp_path / "ready"))
    until(hand.pids, "its child is started")
    assert hand.stop(token, StopReason.CANCEL).code == "cancelled"
    assert not (tmp_path / "ready").exists()
    until(lambda: hand.pids() == [], "its child has ended")


# --- Its beginning ----------------------------------------------------------------------------------------------------


def test_a_child_says_when_it_begins_with_what_is_timed_and_nothing_of_others(hand: Hand) -> None:
    hand.begun.clear()
    timed, isolated = hand.begin("noop", timeout_ms=60_000), hand.begin("noop", isolated=True)
    hand.end_all([hand.begin("noop"), timed, isolated])
    assert sorted(hand.begun) == [timed, isolated]


@pytest.fixture
def slowly(own: Callable[..., Hand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Hand]:
    """Children of their own that wait where the variable says, until somebody writes into the FIFO."""

    def make(variable: str) -> Hand:
        os.mkfifo(tmp_path / "fifo")
        monkeypatch.setenv(variable, str(tmp_path))
        return own(children=0, app="tests.unit.process_pool_slow_app:app")

    return make


def test_what_is_stopped_before_its_child_has_loaded_the_app_has_not_begun(
    slowly: Callable[[str], Hand], tmp_path: Path
) -> None:
    """Bug: it had failed of `timeout`, and its handler had never run."""
    hand = slowly(LOADS)
    token = hand.begin("where_async", isolated=True, timeout_ms=300)
    until((tmp_path / "waits").exists, "its child is being started")
    outcome = hand.stop(token, StopReason.NOT_BEGUN)
    assert (outcome.ending, outcome.begun) == (Ending.STOPPED, False)
    assert hand.begun == []
    until(lambda: hand.pids() == [], "its child has ended")


def test_the_time_that_a_lifespan_takes_to_open_in_a_child_is_not_the_handlers(
    slowly: Callable[[str], Hand], tmp_path: Path
) -> None:
    hand = slowly(OPENS)
    token = hand.begin("where_async", isolated=True, timeout_ms=300)
    until((tmp_path / "waits").exists, "its lifespan is being opened")
    hand.look()
    assert hand.begun == []
    (tmp_path / "fifo").write_text("go on")
    assert hand.end(token).ending is Ending.RETURNED
    assert hand.begun == [token]


# --- Life and death of the worker -------------------------------------------------------------------------------------

WORKER = """
import sys
from tests.unit.test_process_pool import Hand
hand = Hand()
hand.begin("has_children", hold=True, **dict(arg.split("=") for arg in sys.argv[1:]))
while True:  # a report of the execution ends a wait
    hand.executor.wait(3_600)
"""


def test_nobody_outlives_a_worker_that_was_killed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("obedient", "stubborn", "away")]
    argv = [sys.executable, "-c", WORKER, *(f"{path.name}={path}" for path in paths)]
    with subprocess.Popen(argv) as worker:
        try:
            grandchildren = [ready(path) for path in paths]
            family = [one.pid for one in psutil.Process(worker.pid).children(recursive=True)]
            assert worker.poll() is None, "it has ended by itself"
            assert set(grandchildren) < set(family), f"{grandchildren} are not among {family}"
        finally:
            worker.kill()
    until(lambda: all(gone(pid) for pid in family), f"{family} are gone")


def test_a_guard_that_dies_is_replaced_and_knows_the_children(own: Callable[..., Hand], tmp_path: Path) -> None:
    before = set(guards())
    hand = own()
    hand.still_works()
    (first,) = set(guards()) - before
    os.kill(first, signal.SIGKILL)
    until(lambda: set(guards()) - before - {first}, "another guard")
    assert ("guard_died", {}) in hand.events
    hand.still_works()


def test_a_close_ends_what_runs(own: Callable[..., Hand], tmp_path: Path) -> None:
    hand = own(children=2)
    tokens = [hand.begin("sleeps", ready=str(tmp_path / "a")), hand.begin("ignores_term", ready=str(tmp_path / "b"))]
    pids = [ready(tmp_path / "a"), ready(tmp_path / "b")]
    assert hand.executor.stop(5.0)
    assert all(gone(pid) for pid in pids)
    hand.look()
    assert [hand.outcomes[token].ending for token in tokens] == [Ending.STOPPED] * 2


def test_an_app_that_children_cannot_load_is_told_and_fails_the_executor(
    own: Callable[..., Hand], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamtask.execution.process_pool.pool.BACKOFF_S", 0.01)
    hand = own(app="tests.unit.no_such_app:app")
    token = hand.begin("noop")
    assert hand.end(token).ending is Ending.STOPPED
    until(lambda: hand.executor.failure, "the executor has failed")
    assert str(START_TRIES) in str(hand.executor.failure)
    assert [name for name, _ in hand.events] == ["child_not_started"] * START_TRIES


# --- Parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7, 1_000_000])
def test_frames_come_whole_however_they_are_cut(size: int) -> None:
    sent = [(pipe.RETURNED, n, b"x" * n) for n in range(50)]
    stream = b"".join(pipe.frame(*one) for one in sent)
    frames = pipe.Frames()
    assert [one for at in range(0, len(stream), size) for one in frames.feed(stream[at : at + size])] == sent


@pytest.mark.parametrize(
    "data", [b"Hello, World! This is text", pipe.frame(pipe.JOB, 1), pipe.HEADER.pack(1 << 31, pipe.LOG, 0)]
)
def test_what_is_no_frame_of_a_child_is_garbage(data: bytes) -> None:
    with pytest.raises(pipe.Garbage):
        list(pipe.Frames().feed(data))


@pytest.mark.parametrize(
    "payload", [b"", b"[", b"[]", b"{}", b'["a", null]', b'{"ending": "never"}', b'{"ending": "lost", "a": 1}']
)
def test_payloads_of_a_wrong_shape_are_garbage(payload: bytes) -> None:
    for read in (pipe.read_progress, pipe.read_log, lambda data: pipe.heard(pipe.ENDED, data)):
        with pytest.raises(pipe.Garbage):
            read(payload)


def test_a_log_line_of_anything_can_be_told() -> None:
    knot: list[Any] = []
    knot.append(knot)
    fields = {"big": 10**40, "knot": knot, "bad": "\udc80", "set": {1}, "long": "x" * 1_000_000, "none": None}
    data = pipe.log("info", "said \udc80", fields)
    ((_, _, payload),) = pipe.Frames().feed(data)
    level, event, _ = pipe.read_log(payload)
    assert (level, event) == ("info", "said \\udc80")
    assert len(payload) < 10 * pipe.LOG_MAX


def test_a_job_comes_out_as_it_went_in() -> None:
    text = '{"task_type": "t", "parameters": {"a": [1, {"b": null}]}, "labels": {"x": "y"}, "priority": 3'
    request = TaskRequest.model_validate_json(text + ', "not_before": "2026-11-24T07:26:00Z"}')
    record = RequestRecord(2, 7, 12, 99, "id", request, 3, 98, b"long", b"key", (("h", b"v"),), None, 5, 6)
    context = [("traceparent", b"t")]
    start, memory_mb, trace = pipe.read_job(pipe.job_of(Start(8, record, 2, HandlerKind.PROCESS, 1_000), 64, context))
    record.value, record.key = b"", None
    assert (start, memory_mb, trace) == (Start(8, record, 2, HandlerKind.PROCESS, 1_000), 64, context)


def test_the_mark_of_another_pool_is_left_alone() -> None:
    sleeper = subprocess.Popen(["sleep", "3600"], env={"STREAMTASK_CHILD": "abc.1."})
    try:
        until(lambda: psutil.Process(sleeper.pid).name() == "sleep", "it has begun")
        assert reaper.kill_marked("abd.") == reaper.kill_marked("abc.11.") == reaper.kill_marked("c.1.") == 0
        assert reaper.kill_marked("abc.1.") == 1
        assert sleeper.wait() == -signal.SIGKILL
    finally:
        sleeper.kill()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_mb": 5}, "executor='process'"),
        ({"max_tasks": 5, "executor": "thread"}, "executor='process'"),
        ({"memory_mb": 0, "executor": "process"}, "positive integer"),
        ({"max_tasks": True, "executor": "process"}, "positive integer"),
        ({"executor": "fork"}, "'process'"),
    ],
)
def test_wrong_limits_are_refused_at_registration(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_handler(lambda: None, name="f", **options)
