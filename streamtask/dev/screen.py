"""The only place where a session prints. Every line has its time and its part; output is in colour, plain, or JSON.

The parts log JSON, which is shown as text; any other line is shown unchanged. Any thread may call it.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

COLOURS = {"dev": "bold", "kafka": "yellow", "worker": "green", "service": "blue", "app": "magenta", "task": "cyan"}
LEVELS = {"debug": "dim", "info": "", "warning": "yellow", "error": "red", "critical": "bold red"}
WIDTH = max(map(len, COLOURS))
FIELD_MAX = 300  # characters of one field
QUIET = {"timestamp", "level", "event", "exception", "stack"}
# Logged at every start, reload and end, and means that all is well: not shown to people, but part of --json.
ROUTINE = {
    *("worker_started", "worker_draining", "worker_stopped", "shards_assigned", "shards_revoked", "failover_ready"),
    *("starting", "child_started", "draining"),
}


class Screen:
    """as_json: one document per line on stdout; otherwise text, in colour when stdout is a terminal.

    broken  the reader has gone (`| head`, a closed terminal): nothing more is printed, and the session ends in order
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.broken = False
        self._json = as_json
        self._console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._lock = threading.Lock()

    def say(self, part: str, text: str, *, level: str = "info", **fields: Any) -> None:
        """Print a line of the session itself."""
        if self._json:
            self._document({"part": part, "level": level, "message": text, **fields})
        else:
            self._line(part, Text(text, style=LEVELS[level]))

    def pass_on(self, part: str, line: str) -> dict[str, Any] | None:
        """Print a line of a part; returns it as an event if it is one."""
        event = parse(line)
        if event is None:
            if self._json:
                self._document({"part": part, "line": line})
            else:
                self._line(part, Text.from_ansi(line) if self._console.is_terminal else Text(line))
            return None
        if event["event"] in ("service_listening", "service_ready"):
            return event  # the session itself reports it
        if self._json:
            self._document({"part": part, **event})
            return event
        if is_routine(event):
            return event
        text = Text(str(event["event"]), style=LEVELS.get(str(event.get("level")), ""))
        for name, value in event.items():
            if name not in QUIET:
                text.append(f" {name}=", style="dim")
                text.append(_short(value))
        self._line(part, text)
        for more in str(event.get("exception") or "").splitlines():
            self._line(part, Text(more, style="dim"))
        return event

    def header(self, rows: Mapping[str, str], document: Mapping[str, Any]) -> None:
        """Print the addresses, and what to do with them, once."""
        if self._json:
            self._document({"part": "dev", "event": "started", **document})
            return
        width = max(map(len, rows)) + 2
        lines = [
            Text(f"  {name:<{width}}", style="bold").append(value, style="not bold") for name, value in rows.items()
        ]
        with self._writing():
            self._console.print(Text("\n").join([Text(), *lines, Text()]))

    def _line(self, part: str, text: Text) -> None:
        head = Text().append(time.strftime("%H:%M:%S "), style="dim")
        head.append(f"{part:<{WIDTH}} ", style=COLOURS.get(part, ""))
        with self._writing():
            self._console.print(head.append_text(text))

    def _document(self, document: Mapping[str, Any]) -> None:
        text = json.dumps(document, ensure_ascii=False, default=str) + "\n"
        if self.broken:
            return
        with self._writing():
            sys.stdout.write(text)
            sys.stdout.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (OSError, SystemExit):  # rich exits when a pipe breaks
                self.broken = True
                # Print nothing more, including what the interpreter would flush at exit.
                sys.stdout = io.StringIO()
                self._console = Console(quiet=True)


def parse(line: str) -> dict[str, Any] | None:
    """A line of structured logging as an event; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def is_routine(event: Mapping[str, Any]) -> bool:
    """Whether people need not see it: an event of ROUTINE, a child that ended well, or level info."""
    what = event.get("what") if event["event"] == "supervisor_event" else event["event"]
    well = what == "child_ended" and event.get("code") == 0
    return event.get("level") == "info" and (well or what in ROUTINE)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= FIELD_MAX else f"{text[: FIELD_MAX - 1]}…"
