"""The parts of docs/reference that are written by the code: commands, names, settings, events, metrics, errors.

`python -m tests.unit.test_docs` writes them into the pages; a test there fails while a page is out of date.
"""

from __future__ import annotations

import ast
import enum
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_origin

from typer.main import get_command

import streamtask
from streamtask import query_service
from streamtask.cli import app
from streamtask.cli.command import GLOBAL_OPTIONS
from streamtask.config import Settings
from streamtask.config.sources import ENVIRONMENT_PREFIX
from streamtask.domain.model import ErrorCode
from streamtask.observability.event_log import EVENTS
from streamtask.query_service.problems import _OF_STATUS

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


# --- Settings, events, metrics ----------------------------------------------------------------------------------------

# Every setting is in one of these groups, in the order of the page.
SETTINGS = {
    "Everything": ("bootstrap_servers", "prefix", "kafka", "locale"),
    "Topics": ("partitions",),
    "Workers": (
        *("processes", "concurrency", "threads", "children", "memory_mb", "drain_grace_s", "kill_grace_s", "silent_s"),
        *("session_timeout_ms", "unknown_type_grace_s", "tracebacks"),
    ),
    "Metrics and health of workers": ("metrics_port", "metrics_host", "health_stalled_s"),
    "Query service": ("host", "port", "allowed_hosts", "api_key", "store", "body_bytes_max"),
    "Clients": ("url",),
    "Formats": ("format", "registry_url", "registry", "registry_wait_s"),
}


def settings_reference() -> str:
    """A table for each group of settings."""
    known = [name for names in SETTINGS.values() for name in names]
    assert sorted(known) == sorted(Settings.model_fields), "every setting is in one group of SETTINGS"
    parts = []
    for title, names in SETTINGS.items():
        rows = ["| setting, variable | kind | default | meaning |", "|---|---|---|---|"]
        parts += [f"## {title}", "\n".join(rows + [_setting(name) for name in names])]
    return "\n\n".join(parts)


def _setting(name: str) -> str:
    field = Settings.model_fields[name]
    assert field.description, f"the setting {name} has no description"
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, {}, "") else f"`{default}`"
    bounds = {kind: getattr(one, kind) for one in field.metadata for kind in ("ge", "gt", "le") if hasattr(one, kind)}
    words = {"ge": "from {:,}", "gt": "above {:,}", "le": "to {:,}"}
    kind = " ".join([_kind(field.annotation), *(words[one].format(bound) for one, bound in bounds.items())])
    names = f"`{name}`<br>`{ENVIRONMENT_PREFIX}{name.upper()}`"  # below each other: five columns leave no room for text
    return f"| {names} | {kind} | {shown} | {_sentence(field.description)} |"


def _kind(annotation: Any) -> str:
    arguments = [one for one in get_args(annotation) if one is not type(None)]
    if get_origin(annotation) is dict:
        return "table"
    if arguments and all(isinstance(one, str) for one in arguments):
        return " or ".join(f"`{one}`" for one in arguments)
    kind = arguments[0] if arguments else annotation
    return {"str": "text", "int": "number", "float": "number", "Path": "file", "SecretStr": "secret"}[kind.__name__]


def _sentence(text: str) -> str:
    """`how long it waits` as it stands in a cell: with a capital letter and a full stop."""
    text = text.replace("|", "\\|")
    text = text if text.startswith(("`", "/")) else text[0].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def events_reference() -> str:
    """Every log event, in the order of the table in the code; its fields apart from what it means."""
    rows = ["| event | level | meaning | fields |", "|---|---|---|---|"]
    for name, (level, text) in EVENTS.items():
        meaning, _, fields = text.partition("; fields: ")
        rows.append(f"| `{name}` | {logging.getLevelName(level).lower()} | {_sentence(meaning)} | {fields} |")
    return "\n".join(rows)


def metrics_reference(metrics: Mapping[str, tuple[str, tuple[str, ...], str]]) -> str:
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for name, (kind, labels, meaning) in metrics.items():
        rows.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels) or '-'} | {meaning} |")
    return "\n".join(rows)


# --- Errors -----------------------------------------------------------------------------------------------------------

# (status of the task, meaning, what to do). A FAILED task also leaves a dead letter.
CODES = {
    ErrorCode.HANDLER_ERROR: ("failed", "The handler raised, and no attempt is left.", "Fix the cause, then redrive."),
    ErrorCode.TIMEOUT: (
        "failed",
        "An attempt ran too long, and none is left.",
        "Raise `timeout`, or make the work smaller; then redrive.",
    ),
    ErrorCode.INVALID_REQUEST: (
        "failed",
        "The envelope is wrong: not JSON, priority 11, an empty task_type. Without a usable task_id, there is only a "
        "dead letter.",
        "Correct the producer, and send a new request.",
    ),
    ErrorCode.INVALID_PARAMETERS: (
        "failed",
        "The parameters do not fit the handler, which was not called; or a `not_before` cannot wait.",
        "Correct the producer or the handler; the error names each field.",
    ),
    ErrorCode.UNKNOWN_TASK_TYPE: (
        "failed",
        "No worker knew the type within `unknown_type_grace_s`, five minutes by default.",
        "Deploy a worker that knows it, then redrive.",
    ),
    ErrorCode.WORKER_LOST: (
        "failed",
        "Its process died `lost_max` times while it ran, three by default.",
        'Find out what kills it: memory, native code, `os._exit`. Run it with `executor="process"`.',
    ),
    ErrorCode.RESULT_TOO_LARGE: (
        "failed",
        "The result does not fit into a status event.",
        "Store it elsewhere and return its location, or raise `max.message.bytes` of the topics.",
    ),
    ErrorCode.NOT_SERIALIZABLE: ("failed", "The result cannot be written as JSON.", "Return values that can be."),
    ErrorCode.SCHEMA_UNAVAILABLE: (
        "failed",
        "The schema registry did not provide the schema; the bytes may be valid.",
        "Bring the registry back, then redrive.",
    ),
    ErrorCode.CANCELLED: ("cancelled", "A cancel arrived before the end.", ""),
    ErrorCode.EXPIRED: ("cancelled", "`expires_at` passed before the handler was called.", ""),
    ErrorCode.DUPLICATE: (
        "-",
        "A second request for a task that was still open. Only a dead letter has this reason; the task itself goes on.",
        "Nothing; or send it again under another task_id.",
    ),
}


def codes_reference() -> str:
    assert set(CODES) == set(ErrorCode), "every error code has a row"
    rows = ["| code | the task is | meaning | what to do |", "|---|---|---|---|"]
    rows += [
        f"| `{code.value}` | {status} | {meaning} | {advice} |" for code, (status, meaning, advice) in CODES.items()
    ]
    return "\n".join(rows)


# What a caller can do about each problem; status and title come from the code.
PROBLEMS = {
    "already-ended": "Nothing: the end stands.",
    "body-too-large": "Send less, or raise `body_bytes_max`.",
    "cannot-be-redriven": "Read the detail; submit a new task instead.",
    "cross-origin": "Send it from a page of the same site, or from a server.",
    "internal": "Report it, with the lines of the service's log.",
    "invalid-request": "Correct what `errors` names, field by field.",
    "kafka-unavailable": "Try again. The request may have arrived: look before you send it again.",
    "last-event-id": "Open the stream without an id.",
    "malformed-origin": "Send a valid `Origin`, or none.",
    "method-not-allowed": "Use a method that the header `Allow` names.",
    "no-such-route": "Correct the path; `/docs` shows all.",
    "not-failed": "Redrive only failed tasks.",
    "not-fresh": "Try again after `Retry-After` seconds.",
    "not-json": "Send JSON.",
    "not-ready": "Try again after `Retry-After` seconds: the view is catching up.",
    "not-text": "Send each frame as text.",
    "past-unreadable": "Open the stream without an id.",
    "resume-too-far": "List the tasks, then open the stream without an id.",
    "too-many-waiters": "Try again after `Retry-After` seconds, or on another replica.",
    "unauthorized": "Send the API key.",
    "unknown-host": "Use a name of the service, or start it with `--allowed-host NAME`.",
    "unknown-task": "Check the id; a request is known as soon as its submit was answered.",
    "view-failed": "Restart the service; its log says why the view stopped.",
}


def problems_reference() -> str:
    found = _problems()
    assert {name for name, _ in found} == set(PROBLEMS), "every problem has a row in PROBLEMS"
    rows = ["| name | status | title | what to do |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {status} | {title} | {PROBLEMS[name]} |" for (name, status), title in sorted(found.items())]
    return "\n".join(rows)


def _problems() -> dict[tuple[str, int], str]:
    """{(name, status): titles} of every `Problem(…)` and `unavailable(…)` in the query service."""
    titles = {(name, status): [HTTPStatus(status).phrase] for status, name in _OF_STATUS.items()}
    for path in sorted(Path(str(query_service.__file__)).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            values: list[Any] = [one.value for one in node.args[:3] if isinstance(one, ast.Constant)]
            if node.func.id == "Problem" and len(values) == 3:
                status, name, title = values
                titles.setdefault((name, status), []).append(title)
            elif node.func.id == "unavailable" and len(values) >= 2:
                titles.setdefault((values[0], 503), []).append(values[1])
    return {key: "; ".join(dict.fromkeys(found)) for key, found in titles.items()}
