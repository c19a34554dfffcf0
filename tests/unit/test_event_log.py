"""What a process logs: a JSON line each, unless a person looks at it."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from streamtask.observability import event_log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def said(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch, json_: bool | None = None) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    event_log.configure(json=json_)
    event_log.emit("shards_assigned", {"shards": [1, 2]})
    return stderr.getvalue()


def test_a_line_is_json_where_nobody_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.loads(said(io.StringIO(), monkeypatch))
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "shards_assigned", "level": "info", "shards": [1, 2]}


def test_a_line_goes_to_the_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: it went to what stderr was when logging was set up, and ended its caller once that was closed."""
    first, second = io.StringIO(), io.StringIO()
    said(first, monkeypatch)
    monkeypatch.setattr(sys, "stderr", second)
    first.close()
    event_log.emit("shards_assigned", {"shards": [3]})
    assert json.loads(second.getvalue())["shards"] == [3]


def test_on_a_terminal_it_is_text_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(Terminal(), monkeypatch)
    assert "shards_assigned" in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_either_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(said(Terminal(), monkeypatch, True))["shards"] == [1, 2]
    assert not said(io.StringIO(), monkeypatch, False).startswith("{")


def test_an_error_is_told_with_its_stack_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    event_log.configure()
    try:
        raise ValueError("no such thing")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    (line,) = stderr.getvalue().splitlines()
    assert "ValueError: no such thing" in json.loads(line)["exception"]


def test_what_is_below_the_level_is_counted_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    event_log.configure(logging.WARNING)
    before = event_log.COUNTS["shards_assigned"]
    event_log.emit("shards_assigned", {"shards": []})
    assert (stderr.getvalue(), event_log.COUNTS["shards_assigned"]) == ("", before + 1)
