"""Commands for developers: dev, new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamtask.cli.command import CommandContext, command
from streamtask.cli.complete import app_names

PANEL = "Development"


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    command(app, "dev", rich_help_panel=PANEL)(dev)
    command(app, "new", rich_help_panel=PANEL)(new)


AppArgument = Annotated[
    str,
    typer.Argument(
        metavar="APP",
        help="Your App as MODULE:NAME, such as app:app.",
        show_default=False,
        autocompletion=app_names,
    ),
]
ProcessesOption = Annotated[
    int, typer.Option("--processes", "-P", min=1, max=64, metavar="N", help="Worker processes.")
]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=0,
        max=65_535,
        metavar="PORT",
        help="Port of the query service. (default: 8080 if free)",
    ),
]
KafkaPortOption = Annotated[
    int | None,
    typer.Option(
        "--kafka-port",
        min=0,
        max=65_535,
        metavar="PORT",
        help="Port of the local Kafka. (default: 9092 if free)",
    ),
]
KeepOption = Annotated[bool, typer.Option("--keep", help="Keep Kafka's data in .streamtask/dev for the next session.")]
GraceOption = Annotated[
    float,
    typer.Option(
        "--grace",
        min=0,
        max=600,
        metavar="SECONDS",
        help="Grace period for running tasks on reload or exit.",
    ),
]
WatchOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--watch",
        metavar="DIR",
        help="Reload when files in DIR change; repeatable. (default: the working directory)",
    ),
]


def dev(
    cli: CommandContext,
    app: AppArgument,
    processes: ProcessesOption = 1,
    port: PortOption = None,
    kafka_port: KafkaPortOption = None,
    keep: KeepOption = False,
    grace: GraceOption = 2.0,
    watch: WatchOption = None,
    reload: Annotated[bool, typer.Option("--reload/--no-reload", help="Reload when files change.")] = True,
) -> int | None:
    """Run Kafka, an auto-reloading worker and the query service in one terminal.

    Starts a local Kafka for this session unless you pass --bootstrap. Its data is deleted on exit unless you pass --keep.
    """
    from streamtask.dev.session import Options, run_dev

    options = Options(
        app=app,
        bootstrap=cli.bootstrap,
        prefix=cli.prefix,
        processes=processes,
        kafka_port=kafka_port,
        port=port,
        grace_s=grace,
        keep=keep,
        reload=reload,
        folders=tuple(watch or ()),
    )
    return run_dev(options, as_json=cli.json)


def new(
    cli: CommandContext,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of the project and its folder.",
            show_default=False,
        ),
    ],
) -> int | None:
    """Create a project in a new folder: handlers, a test, settings and a README."""
    from streamtask.dev.new import create_project

    made = create_project(name, Path())
    if cli.json:
        cli.answer({"name": name, "files": [str(path) for path in made]})
        return None
    console = cli.console()
    for path in made:
        console.print(f"[green]✓[/] {path}", soft_wrap=True)
    console.print(f"\n  cd {name}\n  pip install -e '.\\[dev]'\n  streamtask dev app:app\n  pytest")
    return None
