"""`streamtask config show`: every setting, its value and its source, with secrets hidden."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from streamtask.cli.command import CommandContext, command, group
from streamtask.cli.complete import app_names

if TYPE_CHECKING:
    from rich.console import Console

    from streamtask.config import Settings
    from streamtask.config.sources import SettingsFile

OPTIONS = {"bootstrap_servers": "--bootstrap", "prefix": "--prefix", "url": "--url", "api_key": "--api-key"}
# Variables that are used but are not settings.
OTHERS = frozenset(f"STREAMTASK_{name}" for name in ("CACHE", "TEST_BOOTSTRAP_SERVERS", "KILLS_SEED"))


class Row(NamedTuple):
    """One setting. kind: argument, app, environment, file or default; where: the name of that source."""

    name: str
    value: Any
    kind: str
    where: str


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    config = group(help="Show the effective settings and where each comes from.")
    command(config, "show")(config_show)
    app.add_typer(config, name="config", rich_help_panel="Development")


def config_show(
    cli: CommandContext,
    app: Annotated[
        str,
        typer.Argument(
            metavar="APP",
            help="Show the settings that a worker of APP would use, such as app:app.",
            show_default=False,
            autocompletion=app_names,
        ),
    ] = "",
) -> int | None:
    """Show every setting, its value and its source; secrets are hidden."""
    from streamtask.config import settings_file

    arguments = {name: value for name, value in _arguments(cli).items() if value is not None}
    given: dict[str, Any] = {}
    label = ""
    if app:
        from streamtask.app import load_app

        loaded = load_app(app)
        given, label = loaded.given, f"App({loaded.name!r}, …)"
        settings = loaded.configure(**arguments)
    else:
        settings = cli.settings()
    file = settings_file()
    rows = list(explain(settings, arguments, given, label, os.environ, file))
    strays = list(unknown_variables(os.environ))
    if cli.json:
        documents = [{"name": r.name, "value": r.value, "source": {"kind": r.kind, "where": r.where}} for r in rows]
        found = None if file is None else str(file.path.absolute())
        cli.answer({"settings": documents, "file": found, "unknown_variables": strays})
        return None
    _print(cli.console(), rows, None if file is None else str(file.path.absolute()), strays)
    return None


def _arguments(cli: CommandContext) -> dict[str, str | None]:
    return {"bootstrap_servers": cli.bootstrap, "prefix": cli.prefix, "url": cli.url, "api_key": cli.api_key}


def explain(
    settings: Settings,
    arguments: Mapping[str, Any],
    given: Mapping[str, Any],
    label: str,
    environment: Mapping[str, str],
    file: SettingsFile | None,
) -> Iterator[Row]:
    """A row for each setting, and for each raw setting of a table.

    arguments  settings given on the command line
    given      settings given by the App; label: how to refer to it
    """
    from streamtask.config import raw_tables
    from streamtask.config.sources import shown

    values = settings.model_dump(mode="python")
    for name, value in values.items():
        if name in raw_tables() and value:
            for inner, held in value.items():
                kind, where = _source((name, inner), arguments, given, label, environment, file)
                yield Row(f"{name}.{inner}", shown(inner, held), kind, where)
            continue
        kind, where = _source((name,), arguments, given, label, environment, file)
        safe = shown(name, value)
        yield Row(name, safe if isinstance(safe, str | int | float | dict | None) else str(safe), kind, where)


def _source(
    place: tuple[str, ...],
    arguments: Mapping[str, Any],
    given: Mapping[str, Any],
    label: str,
    environment: Mapping[str, str],
    file: SettingsFile | None,
) -> tuple[str, str]:
    """Returns (kind, name of the source). The first source with a value wins; in a table, for each of its names."""
    from streamtask.config.sources import variable

    if place[0] in arguments:
        return "argument", OPTIONS[place[0]]
    if _holds(given, place):
        return "app", label
    if name := variable(environment, *place):
        return "environment", name
    if len(place) > 1 and (whole := variable(environment, place[0])) and _in_json(environment[whole], place[1]):
        return "environment", whole
    if file is not None and _holds(file.values, place):
        return "file", file.where(*place)
    return "default", ""


def _holds(values: Mapping[str, Any], place: tuple[str, ...]) -> bool:
    held = values.get(place[0])
    return held is not None if len(place) == 1 else isinstance(held, Mapping) and place[1] in held


def _in_json(text: str, name: str) -> bool:
    import json

    try:
        held = json.loads(text)
    except ValueError:
        return False
    return isinstance(held, dict) and name in held


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Texts like `STREAMTASK_PREFX is not a setting; the nearest is 'STREAMTASK_PREFIX'`, for misspelled variables."""
    from streamtask.config import Settings, raw_tables
    from streamtask.config.sources import ENVIRONMENT_PREFIX, NESTED, nearest

    known = {ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields}
    tables = tuple(ENVIRONMENT_PREFIX + name.upper() + NESTED for name in raw_tables())
    for name in sorted(environment):
        upper = name.upper()
        if upper.startswith(ENVIRONMENT_PREFIX) and upper not in known | OTHERS and not upper.startswith(tables):
            yield f"{name} is not a setting{nearest(name, known)}"


def _print(console: Console, rows: list[Row], file: str | None, strays: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", no_wrap=True)
    for row in rows:
        value = "" if row.value in (None, {}) else str(row.value)
        table.add_row(row.name, Text(value), row.where or row.kind, style="dim" if row.kind == "default" else "")
    console.print(table)
    console.print(f"File: {file}" if file else "File: none (streamtask.toml in the working directory)", style="dim")
    for stray in strays:
        console.print(Text(f"! {stray}", style="yellow"))
