"""The output of the demo: live progress, then a summary with commands to try next."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamtask.audit import Report
from streamtask.demo.plan import Plan

STYLES = {"created": "dim", "running": "yellow", "completed": "green", "failed": "red", "cancelled": "magenta"}
PATH_CHARS = 44


def progress_table(counts: dict[str, int], total: int, seconds: float, running: list[dict[str, Any]]) -> RenderableType:
    """One bar, the counts by status, and a few tasks at work."""
    ended = sum(counts.get(status, 0) for status in ("completed", "failed", "cancelled"))
    line = Text()
    for status, style in STYLES.items():
        line.append(f"{status} ", "dim").append(f"{counts.get(status, 0)}  ", style)
    rate = f"{ended}/{total} tasks, {seconds:.1f} s, {ended / seconds:.0f}/s" if seconds > 0 else ""
    bar = Table.grid()  # a bar alone does not end its line
    bar.add_row(ProgressBar(total=total, completed=ended, width=60))
    rows: list[RenderableType] = [bar, Text(rate), line]
    for task in running:
        progress = task.get("progress")
        share = f"{progress:>4.0%}" if progress is not None else "    "
        rows.append(Text(f"  {share} {task.get('task_type', '')}  {(task.get('message') or '')[:PATH_CHARS]}", "dim"))
    return Group(*rows)


def summary(report: Report, counts: dict[str, int], plan: Plan, wall_s: float) -> RenderableType:
    """The counts of the tasks, and the result of the audit."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("status")
    table.add_column("tasks", justify="right")
    table.add_column("on purpose", style="dim")
    notes = {
        "failed": "missing files, and tasks that exceed their time limit",
        "cancelled": "tasks that would count forever",
        "completed": "a few of them on the second attempt",
    }
    for status in ("completed", "failed", "cancelled"):
        table.add_row(Text(status, STYLES[status]), str(counts.get(status, 0)), notes[status])
    verdict = Text("Audit: ", "bold")
    if report.finished:
        verdict.append("clean. ", "green bold").append(
            f"{report.events} status events of {report.requests} requests read back."
        )
    else:
        verdict.append(f"{report.violations_total} violations, {report.pending_total} pending.", "red bold")
    speed = Text(f"{plan.total} tasks in {wall_s:.1f} s: {plan.total / wall_s:.0f} tasks/s", "bold")
    return Group(Text(), table, Text(), speed, verdict, Text())


def next_steps(url: str, bootstrap: str, prefix: str, plan: Plan) -> list[tuple[str, str]]:
    """Commands to try while everything is still running."""
    named = f" --prefix {prefix}" if prefix != "tasks" else ""
    program = _program()
    return [
        ("The query service", f"{url}/docs"),
        ("A retried task", f"curl -s {url}/tasks/{plan.shown}"),
        ("What failed", f"{program} list --status failed --url {url}"),
        ("Dead letters", f"{program} dead list --bootstrap {bootstrap}{named}"),
        ("Judge it yourself", f"{program} audit --bootstrap {bootstrap}{named}"),
    ]


def _program() -> str:
    """How the reader can call the command line: after `make demo` no environment is active."""
    if shutil.which("streamtask"):
        return "streamtask"
    beside = Path(sys.executable).with_name("streamtask")
    return os.path.relpath(beside) if beside.exists() else f"{sys.executable} -m streamtask"
