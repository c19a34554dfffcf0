"""A developer's session in parts: its folder and ports, its lines, what it watches, its look at an app, a new project."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest

from streamtask.config import TopicNames, load_settings
from streamtask.config.kafka import KafkaSettings
from streamtask.dev import follow
from streamtask.dev.follow import LINES_MAX, Lines, line_of, trace_of
from streamtask.dev.new import create_project
from streamtask.dev.part import look
from streamtask.dev.place import Place, choose_port
from streamtask.dev.screen import Screen, is_routine, parse
from streamtask.dev.watch import Watch, is_watched
from streamtask.domain.model import TaskResponse
from streamtask.errors import ConfigError, Unreachable

TASK_ID = "0193a5b0-0000-7000-8000-000000000001"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("STREAMTASK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


# --- Its folder -------------------------------------------------------------------------------------------------------


def test_data_is_temporary_and_what_a_killed_session_left_goes_at_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / ".streamtask" / "dev" / "run-killed"
    left.mkdir(parents=True)
    (left / "log").write_text("x")
    with Place(keep=False) as place:
        assert not left.exists()
        assert place.data.is_dir()
    assert not place.data.exists()
    assert (tmp_path / ".streamtask" / ".gitignore").read_text() == "*\n"


def test_kept_data_stays(tmp_path: Path) -> None:
    with Place(keep=True) as place:
        (place.data / "x").write_text("x")
    with Place(keep=True) as again:
        assert (again.data / "x").read_text() == "x"
    with Place(keep=False) as other:
        assert other.data != place.data
        assert (place.data / "x").exists(), "a temporary session leaves it alone"


def test_two_sessions_in_one_folder_are_refused_and_the_second_harms_nothing() -> None:
    with Place(keep=False) as first:
        with pytest.raises(ConfigError, match="Another `streamtask dev` runs in"), Place(keep=False):
            pass
        assert first.data.is_dir()
    with Place(keep=False):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".streamtask").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be used"), Place(keep=False):
        pass


def test_a_usual_port_that_is_taken_is_no_error_and_one_that_was_asked_for_is() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert choose_port(None, port, "--port") not in (0, port)
        assert choose_port(0, 8_080, "--port") not in (0, 8_080)
        with pytest.raises(ConfigError, match=f"--port {port} is in use"):
            choose_port(port, 8_080, "--port")
    assert choose_port(None, port, "--port") == port


# --- Its lines --------------------------------------------------------------------------------------------------------


def test_what_parts_log_is_shown_as_words_and_other_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.pass_on("worker", "plain [bold]text[/bold] \x1b[31m")
    screen.pass_on("worker", '{"event": "slept", "level": "warning", "timestamp": "x", "seconds": 2, "who": "Ada"}')
    screen.pass_on("worker", '{"event": "it failed", "level": "error", "exception": "Traceback\\n  line"}')
    screen.pass_on("worker", '{"no": "event"}')
    lines = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "worker  plain [bold]text[/bold] \x1b[31m"
    assert lines[1] == "worker  slept seconds=2 who=Ada"
    assert lines[2:5] == ["worker  it failed", "worker  Traceback", "worker    line"]
    assert lines[5] == 'worker  {"no": "event"}'


def test_routine_is_not_shown_to_people_and_is_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    line = '{"event": "shards_assigned", "level": "info", "shards": [0]}'
    assert Screen().pass_on("worker", line) is not None, "the session sees it"
    assert capsys.readouterr().out == ""
    Screen(as_json=True).pass_on("worker", line)
    assert json.loads(capsys.readouterr().out)["shards"] == [0]


@pytest.mark.parametrize(
    ("event", "routine"),
    [
        ({"event": "worker_started", "level": "info"}, True),
        ({"event": "worker_started", "level": "warning"}, False),
        ({"event": "records_lost", "level": "error"}, False),
        ({"event": "supervisor_event", "what": "child_ended", "code": 0, "level": "info"}, True),
        ({"event": "supervisor_event", "what": "child_ended", "code": -9, "level": "info"}, False),
        ({"event": "supervisor_event", "what": "child_restarts", "level": "info"}, False),
    ],
)
def test_what_went_wrong_is_no_routine(event: dict[str, Any], routine: bool) -> None:
    assert is_routine(event) is routine


@pytest.mark.parametrize("as_json", [False, True])
def test_a_screen_that_nobody_reads_says_so_and_goes_on(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    out = os.fdopen(write_fd, "w")
    monkeypatch.setattr("sys.stdout", out)
    screen = Screen(as_json=as_json)
    screen.say("dev", "x")
    assert screen.broken
    screen.say("dev", "y")
    with contextlib.suppress(OSError):
        out.close()


@pytest.mark.parametrize("line", ["", "x", "{", "{}", "[1]", '"event"', '{"event"'])
def test_a_line_that_is_no_event_is_none(line: str) -> None:
    assert parse(line) is None


def ended(status: str, **more: Any) -> TaskResponse:
    document = {"task_id": TASK_ID, "status": status, "task_type": "greet", **more}
    return TaskResponse.model_validate_json(json.dumps(document))


def test_the_end_of_a_task_is_one_line() -> None:
    times = {"started_at": "2026-11-24T07:26:00.000Z", "finished_at": "2026-11-24T07:26:01.500Z"}
    done = ended("completed", result={"a": 1}, attempt=2, **times)
    assert line_of(done) == f'completed greet {TASK_ID} in 1.50 s, attempt 2: {{"a": 1}}'
    assert len(line_of(ended("completed", result="x" * 10_000))) < 300
    trace = (
        'Traceback (most recent call last):\n  File "app.py", line 3, in greet\n    raise ValueError\nValueError: a\nb'
    )
    failed = ended("failed", error="a\nb", error_details={"code": "handler_error", "traceback": trace})
    assert line_of(failed) == f"failed greet {TASK_ID}: handler_error: a b"
    assert '  File "app.py", line 3, in greet' in trace_of(failed)
    assert line_of(ended("cancelled")).endswith(": cancelled: ")


def test_a_flood_of_tasks_is_summed_up() -> None:
    now, said = [0.0], []
    lines = Lines(lambda level, text: said.append((level, text)), lambda: now[0])
    for _ in range(LINES_MAX + 5):
        lines.ended(ended("completed"))
    lines.ended(ended("failed"))
    assert len(said) == LINES_MAX
    now[0] = 1.5
    lines.settle()
    assert said[LINES_MAX:] == [("info", "… and 5 completed, 1 failed in the same second")]
    lines.ended(ended("completed"))
    assert len(said) == LINES_MAX + 2


# --- What it watches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "watched"),
    [
        ("/p/app.py", True),
        ("/p/pkg/tasks.py", True),
        ("/p/streamtask.toml", True),
        ("/p/pyproject.toml", False),
        ("/p/README.md", False),
        ("/p/tests/test_app.py", False),
        ("/p/conftest.py", False),
        ("/p/.streamtask/dev/x.py", False),
        ("/p/venv/lib/x.py", False),
        ("/p/latest.py", True),
    ],
)
def test_modules_and_settings_are_watched_and_tests_are_not(path: str, watched: bool) -> None:
    assert is_watched(path) is watched


def test_a_folder_to_watch_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Watch([tmp_path / "nowhere"], lambda _files: None)


# --- Its look at an app -----------------------------------------------------------------------------------------------


def looked(module: str, text: str) -> dict[str, Any]:
    Path(f"{module}.py").write_text(text)
    return look({"app": f"{module}:app", "overrides": {"bootstrap_servers": "127.0.0.1:1"}})


def test_a_look_tells_what_an_app_is() -> None:
    found = looked(
        "looked_at",
        "from __future__ import annotations\n"
        "from streamtask import App, Context\n"
        "app = App('shop', prefix='shop', partitions=3)\n"
        "@app.task\n"
        "def greet(ctx: Context, name: str, times: int = 2) -> str: ...\n"
        "@app.task('odd')\n"
        "def other(one: list[int]) -> str: ...\n",
    )
    assert (found["name"], found["prefix"], found["partitions"]) == ("shop", "shop", 3)
    assert found["tasks"] == [
        {"name": "greet", "parameters": "name: str, times: int = 2", "sample": {"name": "text"}},
        {"name": "odd", "parameters": "one: list[int]", "sample": None},
    ]
    assert str(Path("looked_at.py").resolve()) in found["modules"]
    assert str(Path("never_imported.py").resolve()) not in found["modules"]


def test_a_look_tells_what_is_wrong_in_one_line_with_the_end_of_the_users_own_traceback() -> None:
    found = looked("wrong_syntax", "x = 1\ndef (\n")
    assert "SyntaxError" in found["error"]
    assert "\n" not in found["error"]
    assert any('wrong_syntax.py", line 2' in line for line in found["trace"])
    found = looked("wrong_name", "def f():\n    return nothing\nf()\n")
    assert "NameError" in found["error"]
    assert found["trace"][-1] == "NameError: name 'nothing' is not defined"
    assert any("return nothing" in line for line in found["trace"])
    assert not any("importlib" in line or "streamtask/app.py" in line for line in found["trace"])
    found = looked("wrong_text", "raise ValueError('a\\nb')\n")
    assert "\n" not in found["error"]
    found = looked("wrong_exit", "raise SystemExit('no database')\n")
    assert "no database" in found["error"]
    found = looked("no_task", "from streamtask import App\napp = App('x')\n")
    assert "has no tasks" in found["error"]
    assert found["trace"] == []


# --- A new project ----------------------------------------------------------------------------------------------------


def test_a_new_project_is_whole(tmp_path: Path) -> None:
    made = {path.relative_to(tmp_path / "my-shop").as_posix() for path in create_project("my-shop", tmp_path)}
    wanted = {"app.py", "tests/test_app.py", "README.md", "pyproject.toml", "streamtask.toml", ".gitignore"}
    assert made == wanted
    here = tmp_path / "my-shop"
    texts = {name: (here / name).read_text() for name in made}
    assert not [name for name, text in texts.items() if "{{" in text]
    assert tomllib.loads(texts["pyproject.toml"])["project"]["name"] == "my-shop"
    ast.parse(texts["app.py"])
    os.chdir(here)
    assert load_settings().bootstrap() == "127.0.0.1:9092"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "1x", "-x", "x-", "ä", "a b", "x" * 61, "a\n", "streamtask", "App"]
)
def test_a_bad_name_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        create_project(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "app.py").write_text("mine")
    with pytest.raises(ConfigError, match="not empty, so nothing was written"):
        create_project("full", tmp_path)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["app.py"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        create_project("file", tmp_path)
    (tmp_path / "empty").mkdir()
    assert create_project("empty", tmp_path)


# --- What it follows --------------------------------------------------------------------------------------------------


def test_a_session_on_a_busy_machine_waits_for_the_leaders_of_topics_that_are_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: it ended after 10 s with "no broker answered", since its own broker had not elected them yet."""
    elected_s = 30.0

    def ends(_settings: KafkaSettings, topics: list[str], *, timeout_s: float = 10.0) -> dict[tuple[str, int], int]:
        if timeout_s < elected_s:
            raise Unreachable("No broker answered: LEADER_NOT_AVAILABLE")
        return {(topics[0], 0): 0}

    class NothingComes:
        def __init__(self, _settings: KafkaSettings, sources: object) -> None: ...
        def __enter__(self) -> NothingComes:
            return self

        def __exit__(self, *_: object) -> None: ...
        def poll(self, _records_max: int, _timeout_s: float) -> list[object]:
            return []

    monkeypatch.setattr(follow, "topic_ends", ends)
    monkeypatch.setattr(follow, "Tail", NothingComes)
    follow.Follower(KafkaSettings("127.0.0.1:1"), TopicNames(), lambda _level, _text: None).close()
