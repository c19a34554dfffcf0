"""Which status may follow which. The order is strict: a task never leaves a terminal status.

This table is the source; docs/states.md is drawn from it (a test compares them).
"""

from __future__ import annotations

from typing import Final

from streamtask.domain.model import ENDED, TaskStatus
from streamtask.errors import StreamtaskError

NEXT: Final[dict[TaskStatus, frozenset[TaskStatus]]] = {
    TaskStatus.CREATED: frozenset({TaskStatus.RUNNING, TaskStatus.CANCELLED}),
    TaskStatus.RUNNING: frozenset(
        {
            TaskStatus.RUNNING,  # progress, a new attempt, a wait for the next one
            TaskStatus.COMPLETED,
            TaskStatus.FAILED,
            TaskStatus.CANCELLED,
        }
    ),
    TaskStatus.COMPLETED: frozenset(),
    TaskStatus.FAILED: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}

assert set(NEXT) == set(TaskStatus), "every status needs a row"
assert {status for status, after in NEXT.items() if not after} == ENDED, "the terminal ones are those without a next"


class IllegalStep(StreamtaskError):
    """A history that breaks the state machine."""


def may_follow(before: TaskStatus | None, after: TaskStatus) -> bool:
    """True when a history whose last status is `before` (None if empty) may continue with `after`."""
    return after is TaskStatus.CREATED if before is None else after in NEXT[before]


def advance(before: TaskStatus | None, after: TaskStatus) -> TaskStatus:
    """Return `after`; raise IllegalStep when it may not follow."""
    if not may_follow(before, after):
        raise IllegalStep(f"{after.name} may not follow {before.name if before else 'nothing'}")
    return after


def drawing() -> str:
    """The machine as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> CREATED"]
    lines += [
        f"    {before.name} --> {after.name}" for before in TaskStatus for after in TaskStatus if after in NEXT[before]
    ]
    lines += [f"    {status.name} --> [*]" for status in TaskStatus if not NEXT[status]]
    return "\n".join(lines)


def table() -> str:
    """The machine as a Markdown table."""
    lines = ["| from | to |", "|---|---|"]
    for before in TaskStatus:
        after = ", ".join(f"`{status.value}`" for status in TaskStatus if status in NEXT[before])
        lines.append(f"| `{before.value}` | {after or 'never left'} |")
    return "\n".join(lines)
