"""The supervisor, with tiny Python children: restarts, drains, aborts, and nobody outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamtask.app import App
from streamtask.errors import ClusterError, ConfigError, LifespanError, NotAllowed, TopicsMissing, Unreachable
from streamtask.execution.parent_watch import PARENT_FD, die_with_parent
from streamtask.worker import process
from streamtask.worker.supervisor import Supervisor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers run on Linux and macOS")

DEADLINE_S = 60.0

# Each child marks in its file what happens to it; a line that is there has happened.
PRELUDE = """
import os, signal, sys, threading, time
from streamtask.execution.parent_watch import die_with_parent
supervised = die_with_parent()
slot, directory = sys.argv[1], sys.argv[2]
def mark(text):
    with open(os.path.join(directory, slot), "a") as file:
        file.write(f"{text} {os.getpid()}\\n")
def forever():
    while True:
        time.sleep(0.01)  # not pause(): a signal that comes just before it would not end it
"""
DRAINS = PRELUDE + "signal.signal(signal.SIGTERM, lambda *_: (mark('drained'), sys.exit(0))); mark('up'); forever()"
STUBBORN = PRELUDE + "signal.signal(signal.SIGTERM, lambda *_: mark('term')); mark('up'); forever()"
ABORTS = (
    PRELUDE
    + """
def term(*_):
    mark('term')
    signal.signal(signal.SIGTERM, lambda *_: (mark('aborted'), os._exit(1)))
signal.signal(signal.SIGTERM, term)
mark('up')
forever()
"""
)


class Nursery:
    """A supervisor in a thread, its children's marks, and its events in order."""

    def __init__(self, directory: Path, code: str | Callable[[int], str], processes: int = 2, **settings: Any) -> None:
        self.directory = directory
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.codes: list[int] = []
        choose = code if callable(code) else lambda _slot: code
        self.supervisor = Supervisor(
            lambda slot: [sys.executable, "-c", choose(slot), str(slot), str(directory)],
            processes,
            on_event=lambda name, fields: self.events.append((name, dict(fields))),
            **{"backoff_s": 0.01, "backoff_max_s": 0.04, **settings},
        )
        self.thread = threading.Thread(target=lambda: self.codes.append(self.supervisor.run()), daemon=True)
        self.thread.start()

    def marks(self, slot: int) -> list[str]:
        file = self.directory / str(slot)
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for told, fields in list(self.events) if told == name]

    def until(self, true: Callable[[], Any]) -> None:
        wait_until(true, lambda: f"{self.events}, {[self.marks(slot) for slot in range(4)]}")

    def code(self) -> int:
        self.thread.join(DEADLINE_S)
        assert self.codes, f"it goes on: {self.events}"
        return self.codes[0]


def wait_until(true: Callable[[], Any], told: Callable[[], Any] = lambda: "") -> None:
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while not true():
        assert time.monotonic() < deadline, told()
        pause.wait(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child that init has not reaped yet is dead all the same.
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.parent.parent.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


Make = Callable[..., Nursery]


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Make]:
    made: list[Nursery] = []

    def make(*args: Any, **settings: Any) -> Nursery:
        made.append(Nursery(tmp_path, *args, **settings))
        return made[-1]

    yield make
    for one in made:
        for _ in range(3):
            one.supervisor.stop()
        one.code()


def test_a_stop_drains_every_child_and_ends_with_zero(nursery: Make) -> None:
    n = nursery(DRAINS, 3)
    n.until(lambda: all(n.marks(slot) for slot in range(3)))
    assert len({child.pid for child in n.supervisor.children()}) == 3
    n.supervisor.stop()
    assert n.code() == 0
    assert [n.marks(slot) for slot in range(3)] == [["up", "drained"]] * 3
    assert [name for name, _ in n.events if name in ("draining", "aborting", "killing")] == ["draining"]


def test_a_child_that_dies_is_restarted_with_a_wait_that_doubles_up_to_its_limit(nursery: Make) -> None:
    n = nursery(PRELUDE + "mark('up'); os._exit(3)", 1)
    n.until(lambda: len(n.named("child_restarts")) >= 5)
    waits = [fields["wait_s"] for fields in n.named("child_restarts")[:5]]
    assert waits == [0.01, 0.02, 0.04, 0.04, 0.04]
    assert {fields["code"] for fields in n.named("child_ended")} == {3}


def test_a_child_that_was_stable_is_restarted_at_once_again(nursery: Make) -> None:
    n = nursery(PRELUDE + "mark('up'); os._exit(3)", 1, stable_s=0.0)
    n.until(lambda: len(n.named("child_restarts")) >= 3)
    assert {fields["wait_s"] for fields in n.named("child_restarts")} == {0.01}


def test_one_child_dying_does_not_disturb_the_others(nursery: Make) -> None:
    n = nursery(DRAINS)
    n.until(lambda: n.marks(0) and n.marks(1))
    first, second = n.supervisor.children()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    n.until(lambda: n.marks(0).count("up") == 2)
    assert n.supervisor.children()[1].pid == second.pid
    assert n.named("child_ended")[0]["code"] == -signal.SIGKILL


def test_a_child_whose_settings_cannot_work_ends_the_supervisor_with_two(nursery: Make) -> None:
    # It exits once its sibling is up, so that the sibling's drain can be seen.
    waits = "\nwhile not os.path.exists(os.path.join(directory, '0')): time.sleep(0.01)\nsys.exit(2)"
    n = nursery(lambda slot: DRAINS if slot == 0 else PRELUDE + waits)
    assert n.code() == 2
    assert n.marks(0) == ["up", "drained"]
    assert len(n.named("child_started")) == 2


def test_a_child_that_is_told_to_stop_while_it_starts_is_no_failure(nursery: Make) -> None:
    n = nursery(PRELUDE + "mark('up'); forever()", 1)
    n.until(lambda: n.marks(0))
    n.supervisor.stop()
    assert n.code() == 0
    assert n.named("child_ended")[0]["code"] == -signal.SIGTERM


def test_a_second_stop_aborts(nursery: Make) -> None:
    n = nursery(ABORTS, 1)
    n.until(lambda: n.marks(0))
    n.supervisor.stop()
    n.until(lambda: n.marks(0) == ["up", "term"])
    n.supervisor.stop()
    assert n.code() == 1
    assert n.marks(0) == ["up", "term", "aborted"]


def test_a_third_stop_kills(nursery: Make) -> None:
    n = nursery(STUBBORN, 1)
    n.until(lambda: n.marks(0))
    for count in (1, 2):

        def has_heard_each(count: int = count) -> bool:
            return n.marks(0).count("term") == count

        n.supervisor.stop()
        n.until(has_heard_each)
    n.supervisor.stop()
    assert n.code() == 1
    assert n.named("child_ended")[0]["code"] == -signal.SIGKILL


def test_a_drain_that_outlasts_its_grace_is_aborted_and_then_killed(nursery: Make) -> None:
    n = nursery(STUBBORN, 1, grace_s=0.05, kill_after_s=0.05)
    n.until(lambda: n.marks(0))
    n.supervisor.stop()
    assert n.code() == 1
    assert [fields["why"] for name, fields in n.events if name in ("draining", "aborting", "killing")] == [
        "signal",
        "time",
        "time",
    ]


def test_a_stop_while_a_child_waits_for_its_restart_ends_at_once(nursery: Make) -> None:
    n = nursery(PRELUDE + "os._exit(3)", 1, backoff_s=3_600.0, backoff_max_s=3_600.0)
    n.until(lambda: n.named("child_restarts"))
    assert n.supervisor.children()[0].pid is None
    n.supervisor.stop()
    assert n.code() == 0


def test_a_command_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        Supervisor(lambda _slot: ["/nowhere/python"], 1).run()


def test_without_a_supervisor_there_is_no_parent_to_die_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_FD, raising=False)
    assert not die_with_parent()


PARENT = textwrap.dedent(
    """
    import sys
    from streamtask.worker.supervisor import Supervisor
    code, directory = sys.argv[1], sys.argv[2]
    sys.exit(Supervisor(lambda slot: [sys.executable, "-c", code, str(slot), directory], 2).run())
    """
)


@pytest.mark.parametrize("without_prctl", [False, True], ids=["kernel and pipe", "pipe alone"])
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path, without_prctl: bool) -> None:
    code = PRELUDE.replace("supervised =", "sys.platform = 'other'; supervised =") if without_prctl else PRELUDE
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN); mark('up'); forever()"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code, str(tmp_path)])
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
    pids = [int(file.read_text().split()[1]) for file in files]
    assert all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait(DEADLINE_S)
    wait_until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_drains_and_reaches_the_children_as_one_sigterm(tmp_path: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, DRAINS, str(tmp_path)])
    wait_until(lambda: all((tmp_path / name).exists() for name in ("0", "1")))
    parent.send_signal(number)
    assert parent.wait(DEADLINE_S) == 0
    assert (tmp_path / "0").read_text().split()[::2] == ["up", "drained"]


ELSEWHERE = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    from streamtask.worker.supervisor import Supervisor
    code, directory = sys.argv[1], sys.argv[2]
    def take():  # as the kernel does with one that came while this process was frozen
        while not all(os.path.exists(os.path.join(directory, slot)) for slot in "01"):
            time.sleep(0.01)
        time.sleep(0.5)  # the main thread waits by now
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        signal.pause()
    threading.Thread(target=take, daemon=True).start()
    sys.exit(Supervisor(lambda slot: [sys.executable, "-c", code, str(slot), directory], 2).run())
    """
)


def test_a_stop_signal_that_another_thread_was_given_is_heard_too(tmp_path: Path) -> None:
    """Bug: the main thread waited without end, and the signal with it."""
    parent = subprocess.Popen([sys.executable, "-c", ELSEWHERE, DRAINS, str(tmp_path)])
    try:
        assert parent.wait(DEADLINE_S) == 0
    finally:
        parent.kill()
        parent.wait(DEADLINE_S)
    assert (tmp_path / "0").read_text().split()[::2] == ["up", "drained"]


# --- Signs of life ----------------------------------------------------------------------------------------------------

SIGNS = PRELUDE + "from streamtask.worker.heartbeat import Note\nnote = Note()\nmark('up')\n"
FALLS_SILENT = SIGNS + "note.beat()\nforever()"
SAYS_NOTHING = SIGNS + "forever()"
BEATS = SIGNS + "while True:\n    note.beat()\n    time.sleep(0.05)"


def test_a_child_that_lives_and_gives_no_sign_of_it_any_more_is_killed_and_replaced(nursery: Make) -> None:
    n = nursery(FALLS_SILENT, 1, silent_s=2.0)
    n.until(lambda: len(n.marks(0)) >= 2)
    (told,) = n.named("child_silent")[:1]
    assert told["slot"] == 0
    assert told["seconds"] >= 2.0
    assert n.named("child_ended")[0]["code"] == -signal.SIGKILL


def test_one_that_beats_or_still_starts_is_left_alone(nursery: Make) -> None:
    n = nursery([BEATS, SAYS_NOTHING, FALLS_SILENT].__getitem__, 3, silent_s=2.0)
    n.until(lambda: len(n.named("child_silent")) >= 2)
    assert {told["slot"] for told in n.named("child_silent")} == {2}
    assert (n.marks(0), n.marks(1)) == (["up"], ["up"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong"), 2),
        (TopicsMissing("gone"), 2),
        (NotAllowed("hidden"), 2),
        (Unreachable("away"), 1),
        (ClusterError("another"), 1),
        (LifespanError("closed"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_child_ends_for_good_only_for_what_a_person_must_change(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(process, "load_app", lambda _path: App("test"))
    monkeypatch.setattr(process, "run_worker", fails)
    monkeypatch.setattr(process, "die_with_parent", lambda: False)
    assert process.main(["app:app", "0"]) == code
