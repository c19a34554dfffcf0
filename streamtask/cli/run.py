"""Commands that start something and keep running: worker, serve, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamtask.cli.command import CommandContext, command
from streamtask.cli.complete import app_names

if TYPE_CHECKING:
    from streamtask.config import Settings


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    command(app, "demo", rich_help_panel="Run")(demo)
    command(app, "worker", rich_help_panel="Run")(worker)
    command(app, "serve", rich_help_panel="Run")(serve)


def worker(
    cli: CommandContext,
    app: Annotated[
        str,
        typer.Argument(
            metavar="APP",
            help="Your App as MODULE:NAME, such as app:app or package.module:app.",
            show_default=False,
            autocompletion=app_names,
        ),
    ],
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            "-P",
            min=1,
            max=256,
            metavar="N",
            help="Worker processes. (default: one per core)",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", metavar="N", help="Concurrent async handlers per process. (default: 100)"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Concurrent thread handlers per process. (default: 16)")
    ] = None,
    children: Annotated[
        int | None,
        typer.Option(
            "--children",
            metavar="N",
            help="Concurrent process handlers per process. (default: cores / processes, at least 2)",
        ),
    ] = None,
    memory_mb: Annotated[
        int | None,
        typer.Option(
            "--memory-mb",
            metavar="MB",
            help="Memory for requests and results per process. (default: by the container's limit, else 256)",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            help="Serve /metrics, /health and /ready from PORT up, one port per process.",
        ),
    ] = None,
) -> int | None:
    """Run the handlers of APP. SIGTERM or Ctrl-C drains; a second one exits at once."""
    from streamtask.worker.child_start import EarlyChildren

    overrides: dict[str, object] = {"bootstrap_servers": cli.bootstrap, "prefix": cli.prefix}
    overrides |= {"processes": processes, "concurrency": concurrency, "threads": threads, "children": children}
    overrides |= {"memory_mb": memory_mb, "metrics_port": metrics_port}
    with EarlyChildren(app, processes) as early:
        from streamtask.worker.process import supervise

        return supervise(app, overrides, early)


def serve(
    cli: CommandContext,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on. (default: 127.0.0.1)")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="PORT",
            help="Port to listen on. (default: 8080)",
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", metavar="FILE", help="SQLite file. (default: a temporary file)")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="Host name that clients may use besides localhost and IP addresses; repeatable; *.example.com or *.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow listening on other addresses than localhost without an API key.")
    ] = False,
) -> int | None:
    """Serve the query service over HTTP: look up, submit and cancel tasks; /docs."""
    names = ",".join(allowed_host) if allowed_host else None
    settings = cli.settings(host=host, port=port, store=store, allowed_hosts=names)
    from streamtask.query_service import server

    settings.bootstrap()
    # Checked before contacting Kafka: an absent broker is noticed only after ten seconds.
    server.refuse_bind(settings, insecure=insecure)
    refuse_without_topics(settings)

    server.run(settings, insecure=insecure)
    return None


def demo(
    cli: CommandContext,
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder to count. (default: Python's standard library)", show_default=False),
    ] = None,
    leave: Annotated[bool, typer.Option("--exit", help="Exit when the census is done; the last line is JSON.")] = False,
) -> int | None:
    """Count the files of a folder on a local Kafka with two workers and a query service.

    With --url it starts nothing and uses that system, whose workers must run streamtask.demo.census:app.
    """
    from streamtask.demo.run import census_there, run_demo

    if cli.url is not None:
        return census_there(directory, cli.settings(), leave=leave)
    return run_demo(directory, bootstrap=cli.bootstrap, leave=leave)


def refuse_without_topics(settings: Settings) -> None:
    """Raises TopicsMissing, NotAllowed or Unreachable, each with a message of one line."""
    kafka = settings.kafka_for("cli")
    from streamtask.kafka.acls import Role
    from streamtask.kafka.permissions import partition_count

    partition_count(kafka, settings.topics, Role.VIEW)
