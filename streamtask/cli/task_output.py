"""What the commands about tasks print for people: one task, its progress, a list, one event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from streamtask.cli.command import EXIT_BAD_ANSWER, CommandContext
from streamtask.cli.moments import DURATIONS

if TYPE_CHECKING:
    from rich.table import Table

    from streamtask.domain.model import TaskResponse

COLOURS = {"created": "cyan", "running": "yellow", "completed": "green", "failed": "red", "cancelled": "magenta"}


def show(cli: CommandContext, task: TaskResponse) -> int:
    """Print the task as fields; returns exit code 0 only when it completed."""
    code = 0 if task.status.value == "completed" else EXIT_BAD_ANSWER
    if cli.json:
        cli.answer(task)
        return code
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    document = task.model_dump(mode="json", exclude_none=True)
    details = document.pop("error_details", None) or {}
    traceback = details.pop("traceback", None)
    document.update({f"error.{name}": value for name, value in details.items() if name != "attempt"})
    for name, value in document.items():
        if name == "status":
            grid.add_row(name, Text(str(value), style=COLOURS[str(value)]))
        elif name == "progress":
            grid.add_row(name, f"{float(value):.0%}")
        else:
            grid.add_row(name, Text(value if isinstance(value, str) else _json(value)))
    console = cli.console()
    console.print(grid)
    if traceback:
        console.print(Text(traceback.rstrip(), style="dim"))
    return code


async def watch_live(cli: CommandContext, task_id: str, events: AsyncIterator[TaskResponse]) -> TaskResponse | None:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    last: TaskResponse | None = None
    columns = (
        TextColumn("{task.fields[status]}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", markup=False),
    )
    console = cli.console()
    console.print(task_id, style="bold")
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=1.0, status="[dim]waiting[/]  ", message="")
        async for last in events:
            message = " ".join((last.message or "").split())
            bars.update(bar, completed=last.progress or 0.0, status=coloured(last.status.value), message=message)
    return last


def table(tasks: list[TaskResponse], width: int) -> Table:
    """Columns of fixed width come first, because people copy from them; the type has a maximum, the message the rest."""
    from rich.table import Table

    gap = 2
    fixed = {"task_id": 36, "status": 9, "%": 4, "age": 3}
    rest = width - sum(fixed.values()) - gap * len(fixed)
    type_width = min(max(4, *(len(task.task_type or "") for task in tasks)), 24, max(4, rest))
    message_width = rest - type_width - gap
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0), collapse_padding=True)
    for name, column_width in fixed.items():
        table.add_column(name, width=column_width, no_wrap=True, justify="right" if name in ("%", "age") else "left")
    table.add_column("type", width=type_width, no_wrap=True, overflow="ellipsis")
    if message_width >= 8:
        table.add_column("message", width=message_width, no_wrap=True, overflow="ellipsis")
    for task in tasks:
        table.add_row(*_row(task)[: len(table.columns)])
    return table


def event_line(task: TaskResponse) -> str:
    when = task.updated_at or task.created_at
    clock = when.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3] if when is not None else ""
    progress = "" if task.progress is None else f"{task.progress:.0%}"
    return f"{clock} {task.status.value:<9} {progress:>4} {' '.join((task.error or task.message or '').split())}"


def age(since: datetime | None) -> str:
    """`5m`: in the largest unit; "" without a time."""
    if since is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for unit in ("d", "h", "m"):
        if seconds >= DURATIONS[unit]:
            return f"{seconds // DURATIONS[unit]}{unit}"
    return f"{seconds}s"


def _row(task: TaskResponse) -> tuple[Any, ...]:
    from rich.text import Text

    progress = "" if task.progress is None else f"{task.progress:.0%}"
    return (
        task.task_id,
        coloured(task.status.value),
        progress,
        age(task.created_at),
        Text(task.task_type or ""),
        Text(" ".join((task.error or task.message or "").split())),
    )


def coloured(status: str) -> str:
    return f"[{COLOURS[status]}]{status:<9}[/]"


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
