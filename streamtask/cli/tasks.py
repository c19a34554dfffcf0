"""Commands about one task or a list of tasks: submit, status, watch, list, cancel.

`status`, `watch` and `list` ask the query service if a url is set; otherwise they read the topics, and say so on stderr.
"""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamtask.cli.command import EXIT_BAD_ANSWER, CommandContext, command, parse_json_object
from streamtask.cli.complete import task_types
from streamtask.cli.moments import moment
from streamtask.cli.task_output import event_line, show, table, watch_live
from streamtask.errors import ConfigError, WaitTimeout

if TYPE_CHECKING:
    from streamtask.client import AsyncClient, Receipt
    from streamtask.config import Settings
    from streamtask.domain.model import TaskResponse
    from streamtask.domain.options import SubmitOptions


class StatusName(StrEnum):
    """The statuses in wire format (a copy of model.TaskStatus, which is not imported at start-up)."""

    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TaskIdArgument = Annotated[str, typer.Argument(metavar="TASK_ID", help="Id of the task (a UUID).", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    command(app, "submit", rich_help_panel="Tasks")(submit)
    command(app, "status", rich_help_panel="Tasks")(status)
    command(app, "watch", rich_help_panel="Tasks")(watch)
    command(app, "list", rich_help_panel="Tasks")(list_tasks)
    command(app, "cancel", rich_help_panel="Tasks")(cancel)


TaskTypeArgument = Annotated[
    str,
    typer.Argument(
        metavar="TYPE",
        help="Task type, as the handler is registered.",
        show_default=False,
        autocompletion=task_types,
    ),
]
ParametersArgument = Annotated[
    str,
    typer.Argument(
        metavar="PARAMS",
        help="JSON object; - reads it from stdin, @FILE from a file.",
        show_default=False,
    ),
]
PriorityOption = Annotated[
    int,
    typer.Option(
        "--priority",
        "-p",
        metavar="1..10",
        help="Priority; 10 is most urgent.",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="Time limit of each attempt, from the handler's start.",
    ),
]
OrderingKeyOption = Annotated[
    str | None, typer.Option("--ordering-key", metavar="KEY", help="Tasks with the same key start in order.")
]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="NAME=TEXT", help="Label of the task; repeatable.")
]
TaskIdOption = Annotated[
    str | None,
    typer.Option(
        "--task-id",
        metavar="UUID",
        help="Id of the new task, so that you can look it up or submit it again safely. (default: a new UUID)",
    ),
]
NotBeforeOption = Annotated[
    str | None,
    typer.Option(
        "--not-before",
        metavar="TIME",
        help="Start no earlier: RFC 3339, or +90s, +5m, +1h from now.",
    ),
]
ExpiresAtOption = Annotated[
    str | None,
    typer.Option(
        "--expires-at",
        metavar="TIME",
        help="Do not start after TIME (same formats as --not-before).",
    ),
]
TenantOption = Annotated[
    str | None,
    typer.Option(
        "--tenant",
        metavar="NAME",
        help="Tenant that the task belongs to.",
    ),
]
IdempotencyKeyOption = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="Key passed to the handler; streamtask does not deduplicate by it.",
    ),
]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait",
        "-w",
        help="Wait until the task ends; exit code 1 unless it completed.",
    ),
]
WaitTimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--wait-timeout",
        metavar="SECONDS",
        help="Stop waiting after SECONDS; the task goes on.",
    ),
]


def submit(
    cli: CommandContext,
    task_type: TaskTypeArgument,
    parameters: ParametersArgument = "",
    priority: PriorityOption = 5,
    timeout: TimeoutOption = None,
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="Free text that people read.")] = "",
    ordering_key: OrderingKeyOption = None,
    label: LabelOption = None,
    task_id: TaskIdOption = None,
    not_before: NotBeforeOption = None,
    expires_at: ExpiresAtOption = None,
    tenant: TenantOption = None,
    idempotency_key: IdempotencyKeyOption = None,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = None,
) -> int | None:
    """Submit a task; returns when the broker has stored the request.

    Example: streamtask submit file_census '{"path": "a.py"}' --priority 8 --wait
    """
    options: SubmitOptions = {
        "priority": priority,
        "timeout": timeout,
        "description": description,
        "ordering_key": ordering_key,
        "labels": _labels(label),
        "task_id": task_id,
        "not_before": moment("--not-before", not_before),
        "expires_at": moment("--expires-at", expires_at),
        "tenant": tenant,
        "idempotency_key": idempotency_key,
    }
    body = parse_json_object(parameters, what="PARAMS")
    return asyncio.run(
        _submit(cli, task_type, body, options, wait=wait or wait_timeout is not None, wait_timeout=wait_timeout)
    )


async def _submit(
    cli: CommandContext,
    task_type: str,
    parameters: dict[str, Any] | None,
    options: SubmitOptions,
    *,
    wait: bool,
    wait_timeout: float | None,
) -> int | None:
    async with _client(cli.settings()) as client:
        receipt = await client.submit(task_type, parameters, **options)
        if not wait:
            _say_submitted(cli, receipt)
            return None
        if cli.json or not sys.stdout.isatty():
            cli.note(f"submitted {receipt.task_id}, waiting for it to end")
            return show(cli, await receipt.wait(wait_timeout))
        try:
            async with asyncio.timeout(wait_timeout):
                last = await watch_live(cli, receipt.task_id, receipt.events())
        except TimeoutError:
            raise WaitTimeout(f"Task {receipt.task_id} did not end within {wait_timeout:g} s; it continues.") from None
        return show(cli, last or await receipt.status())


def _say_submitted(cli: CommandContext, receipt: Receipt) -> None:
    """To a pipe, the id alone: `ID=$(streamtask submit …)`."""
    if cli.json:
        cli.answer(receipt.to_dict())
    elif not sys.stdout.isatty():
        cli.answer(receipt.task_id)
    else:
        cli.console().print(
            f"[bold]{receipt.task_id}[/]\nin band {receipt.band}, partition {receipt.partition}, "
            f"offset {receipt.offset}. Follow it: streamtask watch {receipt.task_id}",
            soft_wrap=True,
        )


def status(cli: CommandContext, task_id: TaskIdArgument) -> int | None:
    """Show the latest status of a task."""
    settings = cli.settings()

    async def ask() -> TaskResponse:
        async with _client(settings) as client:
            return await client.status(task_id)

    _say_slow(cli, settings)
    show(cli, asyncio.run(ask()))
    return None


def watch(cli: CommandContext, task_id: TaskIdArgument) -> int | None:
    """Follow a task until it ends; exit code 1 unless it completed."""
    settings = cli.settings()
    _say_slow(cli, settings)
    last = asyncio.run(_watch(cli, settings, task_id))
    return 0 if last is not None and last.status.value == "completed" else EXIT_BAD_ANSWER


async def _watch(cli: CommandContext, settings: Settings, task_id: str) -> TaskResponse | None:
    last: TaskResponse | None = None
    async with _client(settings) as client:
        events = client.events(task_id)
        if cli.json:
            async for last in events:
                cli.answer(last)
        elif sys.stdout.isatty():
            last = await watch_live(cli, task_id, events)
        else:
            async for last in events:
                print(event_line(last), flush=True)
    if last is not None and last.ended and not cli.json and sys.stdout.isatty():
        show(cli, last)
    return last


def list_tasks(
    cli: CommandContext,
    status: Annotated[StatusName | None, typer.Option("--status", "-s", help="Only tasks with this status.")] = None,
    task_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            "-t",
            metavar="TYPE",
            help="Only tasks of this type.",
            autocompletion=task_types,
        ),
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Only tasks of this tenant.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Created at or after TIME: RFC 3339, or an age like 90s, 5m, 1h, 7d.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, metavar="N", help="Show at most N.")] = 20,
) -> int | None:
    """List tasks, newest first."""
    settings = cli.settings()
    _say_slow(cli, settings)
    wanted = {
        "status": status.value if status is not None else None,
        "task_type": task_type,
        "tenant": tenant,
        "since": moment("--since", since, past=True),
        "limit": limit,
    }
    tasks, more = asyncio.run(_list(settings, wanted))
    if cli.json:
        cli.answer({"tasks": [task.model_dump(mode="json", exclude_none=True) for task in tasks], "more": more})
        return None
    if not tasks:
        cli.note("No tasks match.")
        return None
    console = cli.console()
    console.print(table(tasks, console.width))
    if more:
        cli.note(f"There are more. To see them, add --limit {min(1_000, limit * 5)}.")
    return None


async def _list(settings: Settings, wanted: dict[str, Any]) -> tuple[list[TaskResponse], bool]:
    if settings.url:
        from streamtask.client.service import ServiceLink

        async with ServiceLink(settings) as service:
            return await service.list_tasks(**wanted)
    from streamtask.projection.topic_scan import list_tasks

    return await asyncio.to_thread(list_tasks, settings, **wanted)


def cancel(
    cli: CommandContext,
    task_id: TaskIdArgument,
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason",
            metavar="TEXT",
            help="Reason recorded with the cancel request.",
        ),
    ] = None,
) -> int | None:
    """Request that a task is cancelled; returns when the broker has stored the request."""

    async def ask() -> None:
        async with _client(cli.settings()) as client:
            await client.cancel(task_id, reason)

    asyncio.run(ask())
    if cli.json:
        cli.answer({"task_id": task_id, "cancel": "requested"})
    else:
        cli.console().print(
            f"Cancel requested. It has no effect if the task has already ended. Check: streamtask status {task_id}",
            soft_wrap=True,
        )
    return None


# --- Shared by these commands -----------------------------------------------------------------------------------------


def _client(settings: Settings) -> AsyncClient:
    from streamtask.client import AsyncClient

    return AsyncClient(settings=settings)


def _say_slow(cli: CommandContext, settings: Settings) -> None:
    if not settings.url:
        _ = (settings.topics, settings.kafka_for("cli"))  # both raise first when the settings are invalid
        cli.note("Neither --url nor STREAMTASK_URL is set: reading the topics, which takes longer.")


def _labels(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    labels = {}
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found or not name:
            raise ConfigError(f"--label {pair!r} is invalid. Write NAME=TEXT.")
        labels[name] = text
    return labels
