"""Children that start before their settings are known: they import meanwhile, get them later, or end without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamtask.config.container import Cores
from streamtask.worker import child_start
from streamtask.worker.child_start import EARLY_MAX, ChildProcess, EarlyChildren, SettingsPipe
from streamtask.worker.supervisor import Supervisor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers run on Linux and macOS")

DEADLINE_S = 60.0
# Until it gets its settings, or its parent ends.
WAITS = f"import os; os.read(int(os.environ['{child_start.SETTINGS_FD}']), 1)"

# Marks its file when it has started, and when it has its settings.
CHILD = """
import json, sys
from streamtask.execution.parent_watch import die_with_parent
from streamtask.worker.child_start import SettingsPipe
die_with_parent()
pipe = SettingsPipe()
def mark(text):
    with open(sys.argv[1], "a") as file:
        file.write(text + "\\n")
mark("up")
mark(json.dumps(pipe.read()))
"""


def wait_until(true: Callable[[], Any]) -> None:
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while not true():
        assert time.monotonic() < deadline
        pause.wait(0.01)


def marks(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def parent_fd() -> Iterator[int]:
    read_fd, write_fd = os.pipe()
    yield read_fd
    os.close(read_fd)
    os.close(write_fd)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_a_child_starts_at_once_and_gets_its_settings_later(tmp_path: Path, parent_fd: int) -> None:
    before = open_files()
    child = ChildProcess([sys.executable, "-c", CHILD, str(tmp_path / "marks")], parent_fd=parent_fd)
    wait_until(lambda: marks(tmp_path / "marks") == ["up"])
    settings = {"prefix": "tasks", "bootstrap_servers": "h:9092," * 1_000}
    child.configure(json.dumps(settings))
    assert child.process.wait(DEADLINE_S) == 0
    child.note.close()
    assert [json.loads(line) for line in marks(tmp_path / "marks")[1:]] == [settings]
    assert open_files() == before, "a descriptor was left open"


def test_a_child_that_died_before_it_got_its_settings_ends_like_any_other(parent_fd: int) -> None:
    child = ChildProcess([sys.executable, "-c", "raise SystemExit(3)"], parent_fd=parent_fd)
    child.process.wait(DEADLINE_S)
    child.configure("{}")
    assert child.process.returncode == 3
    child.note.close()


def test_a_process_that_was_started_by_hand_has_no_settings_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(child_start.SETTINGS_FD, raising=False)
    assert SettingsPipe().read() == {}


def test_half_of_the_settings_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent was killed while it wrote."""
    read_fd, write_fd = os.pipe()
    monkeypatch.setenv(child_start.SETTINGS_FD, str(read_fd))
    os.write(write_fd, b'{"prefix": "ta')
    os.close(write_fd)
    assert SettingsPipe().read() is None


@pytest.mark.parametrize(
    ("processes", "variable", "started"), [(None, None, 4), (None, "3", 3), (2, "3", 2), (50, None, EARLY_MAX)]
)
def test_as_many_children_start_early_as_will_be_needed_as_far_as_is_known(
    monkeypatch: pytest.MonkeyPatch, processes: int | None, variable: str | None, started: int
) -> None:
    monkeypatch.delenv("STREAMTASK_PROCESSES", raising=False)
    if variable is not None:
        monkeypatch.setenv("STREAMTASK_PROCESSES", variable)
    monkeypatch.setattr("streamtask.config.container.cores", lambda: Cores(4))
    monkeypatch.setattr(child_start, "command_of", lambda *_: [sys.executable, "-S", "-c", WAITS])
    with EarlyChildren("app:app", processes) as early:
        taken = [early.take(slot) for slot in range(EARLY_MAX + 1)]
        assert [slot for slot, child in enumerate(taken) if child is not None] == list(range(started))
        assert early.take(0) is None, "each of them once"
        for child in taken:
            if child is not None:
                child.give_up()


def test_those_that_are_not_needed_end_at_once_and_the_rest_with_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr(child_start, "command_of", lambda *_: [sys.executable, "-c", WAITS])
    with EarlyChildren("app:app", 3) as early:
        processes = [child.process for child in early._children.values()]
        early.keep(1)
        assert [process.poll() is not None for process in processes] == [False, True, True]
    assert all(process.poll() is not None for process in processes)
    assert open_files() == before, "a descriptor was left open"


def test_a_supervisor_takes_an_early_child_once_and_starts_the_next_one_itself(tmp_path: Path, parent_fd: int) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "marks")]
    early = [ChildProcess(command, parent_fd=parent_fd)]
    pids: list[int] = []

    def on_event(name: str, fields: Any) -> None:
        if name == "child_started":
            pids.append(fields["pid"])
        if name == "child_ended" and len(pids) == 2:
            supervisor.stop()

    supervisor = Supervisor(
        lambda _slot: command,
        1,
        settings='{"prefix": "a"}',
        early=lambda _slot: early.pop() if early else None,
        on_event=on_event,
        backoff_s=0.01,
    )
    first = early[0].process.pid
    assert supervisor.run() == 0
    assert pids[0] == first
    assert pids[1] != first
    assert marks(tmp_path / "marks") == ["up", '{"prefix": "a"}'] * 2


KILLED = textwrap.dedent(
    """
    import sys
    from streamtask.worker import child_start
    child_start.command_of = lambda app, slot: [sys.executable, "-c", sys.argv[1], sys.argv[2]]
    with child_start.EarlyChildren("app:app", 1) as early:
        print(early._children[0].process.pid, flush=True)
        input()
    """
)


def test_a_child_without_settings_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, CHILD, str(tmp_path / "marks")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: marks(tmp_path / "marks") == ["up"])
        parent.kill()
    wait_until(lambda: not alive(pid))
    assert marks(tmp_path / "marks") in (["up"], ["up", "null"]), "its pipe may close before the kernel's signal comes"


def test_a_child_whose_parent_gives_up_says_nothing(capfd: pytest.CaptureFixture[str], parent_fd: int) -> None:
    """It has failed to load the app as well, but its parent reports that."""
    child = ChildProcess(child_start.command_of("nowhere_at_all:app", 0), parent_fd=parent_fd)
    os.close(child._settings_fd)
    assert child.process.wait(DEADLINE_S) == 0
    child.note.close()
    assert capfd.readouterr() == ("", "")


def test_what_is_wrong_is_reported_once_by_the_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streamtask", "worker", "nowhere_at_all:app", "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("Error: nowhere_at_all:app: no module")
    assert ran.stderr.count("\n") == 1
