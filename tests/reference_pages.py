"""The parts of docs/reference that are written by the code: every command and option, every public name.

`python -m tests.unit.test_docs` writes them into the pages; a test there fails while a page is out of date.
"""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from typer.main import get_command

import streamtask
from streamtask.cli import app
from streamtask.cli.command import GLOBAL_OPTIONS

PANELS = ("Run", "Tasks", "Development", "Cluster")  # in the order of a newcomer's first week
# What you make by calling it; streamtask makes the others.
CONSTRUCTED = {"App", "AsyncClient", "Client", "GiveUp", "Retry", "RetryLater"}
# Their fields say enough by name and type.
FIELDS = {"ErrorDetails", "SyncReceipt", "TaskRequest", "TaskResponse", "TaskStatus"}


# --- The command line -------------------------------------------------------------------------------------------------


def cli_reference() -> str:
    """Every command under the heading of its panel, then the options that all of them share."""
    commands = sorted(_commands(get_command(app), "streamtask", ""), key=lambda found: PANELS.index(found[0]))
    parts = []
    for panel, members in groupby(commands, key=lambda found: found[0]):
        parts.append(f"## {panel}")
        parts += [_command(path, command) for _, path, command in members]
    root: Any = get_command(app)
    parts += ["## Options of every command", _table(root.params)]
    return "\n\n".join(parts)


def _commands(group: Any, path: str, panel: str) -> Iterator[tuple[str, str, Any]]:
    """(panel, `streamtask topics create`, command)."""
    for name, command in group.commands.items():
        found = panel or command.rich_help_panel
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}", found)
        else:
            yield found, f"{path} {name}", command


def _command(path: str, command: Any) -> str:
    own = [one for one in command.params if one.name not in GLOBAL_OPTIONS]
    arguments = " ".join(_argument(one) for one in own if not _is_option(one))
    usage = " ".join(filter(None, (path, arguments, "[OPTIONS]" if any(map(_is_option, own)) else "")))
    summary, _, rest = command.help.strip().partition("\n\n")
    rest = re.sub(r"^Example: (.+)$", r"```sh\n\1\n```", " ".join(rest.split()))
    parts = [f"### {path}", _cell(summary), f"```text\n{usage}\n```", rest, _table(own)]
    return "\n\n".join(filter(None, parts))


def _is_option(parameter: Any) -> bool:
    return str(parameter.opts[0]).startswith("-")


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    name = name if parameter.required or name.startswith("[") else f"[{name}]"
    return f"{name}…" if parameter.nargs == -1 else name


def _table(parameters: Iterable[Any]) -> str:
    rows = [f"| {_names(one)} | {_meaning(one)} |" for one in parameters if not one.hidden]
    return "\n".join(["| argument or option | |", "|---|---|", *rows]) if rows else ""


def _names(parameter: Any) -> str:
    if not _is_option(parameter):
        return f"`{_argument(parameter)}`".replace("|", "\\|")
    names = [f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts)]
    kind = parameter.type_descriptor.annotation
    value = parameter.metavar or (kind.__name__.upper() if isinstance(kind, type) else "")
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        value = "|".join(str(one.value) for one in kind)
    if not parameter.is_flag:
        names[-1] = f"{names[-1][:-1]} {value}`"
    return ", ".join(names).replace("|", "\\|")


def _meaning(parameter: Any) -> str:
    text = _cell(parameter.help or "")
    bounds = [str(one) for one in (parameter.min, parameter.max) if one is not None]
    if len(bounds) == 2:
        text += f" From {bounds[0]} to {bounds[1]}."
    if parameter.multiple and "repeated" not in text:
        text += " May be repeated."
    default = parameter.default
    shown = not isinstance(default, bool) and default not in (None, "", [], ())
    return f"{text} Default: `{default}`." if shown and parameter.show_default else text


def _cell(text: str) -> str:
    """One line; placeholders like <task_id> are shown, not read as HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


# --- The public names -------------------------------------------------------------------------------------------------


def api_reference() -> str:
    """Each group of `streamtask.__all__` under its comment: a table of its names, then what mkdocstrings is to show."""
    parts = []
    for title, names in _groups():
        rows = [f"| `{name}` | {_first_line(name)} |" for name in names]
        parts += [f"## {title.capitalize()}", "\n".join(["| name | |", "|---|---|", *rows])]
        parts += [_shown(name) for name in names]
    return "\n\n".join(parts)


def _groups() -> Iterator[tuple[str, list[str]]]:
    """(comment, names), as they are written in __all__."""
    text = Path(str(streamtask.__file__)).read_text()
    block = text[text.index("__all__ = [") : text.index("\n]\n")]
    for part in block.split("\n    # ")[1:]:
        title, _, names = part.partition("\n")
        yield title, [ast.literal_eval(line.strip().rstrip(",")) for line in names.splitlines()]


def _first_line(name: str) -> str:
    text = str(getattr(streamtask, name).__doc__).strip().partition("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def _shown(name: str) -> str:
    options = []
    if name in CONSTRUCTED:
        options.append("merge_init_into_class: true")
    if name == "Retry":
        options.append("members: []")  # its methods are for the worker
    if name.endswith("Options"):
        options.append("inherited_members: true")
    if name == "Settings":
        options.append('filters: ["!^_", "!^kafka_for$"]')  # for our own modules
    if name == "Receipt":
        options.append('filters: ["!^_", "!^followed$"]')  # for its client
    if name in FIELDS:
        options.append("show_if_no_docstring: true")
    if name.endswith("Error") or issubclass(getattr(streamtask, name), Exception):
        options.append("show_bases: true")
    more = "".join(f"\n      {option}" for option in options)
    return f"::: streamtask.{name}" + (f"\n    options:{more}" if more else "")
