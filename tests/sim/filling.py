"""Scenarios of batches that are filled while a backlog waits, and the rule that bounds how long."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from streamtask.core import group_commit
from streamtask.domain.model import TaskStatus

from .history import History
from .stage import Stage

WITHIN_MS = 400  # the longest of the short runs, FILL_MS, a transaction, and the turns of the owner between them


def ends_behind_executions_that_hang() -> None:
    """Of the short tasks that were started ahead, some end and the others hang; a backlog waits, and nothing else comes in.
    The ends are committed soon."""
    stage = Stage(slots=2)
    stage.start(0)
    for _ in range(12):
        stage.submit("ok", band=1)
    stage.play()
    tasks = [stage.submit("ok" if n % 4 == 0 else "hang", band=1) for n in range(60)]

    def ended() -> list[History]:
        return [task for task in tasks if task.ended is TaskStatus.COMPLETED]

    stage.until(lambda: len(stage.process(0).executions) > 4, "more of them are started than there are slots")
    stage.until(lambda: len(ended()) >= 2, "those that have ended are committed", WITHIN_MS)


def _filled_for_a_while() -> AbstractContextManager[Any]:
    """A batch is filled for as long as what is started ahead lasts."""
    return patch.object(group_commit, "FILL_MS", 1 << 40)


FILLING: dict[str, tuple[str, Callable[[], Any], tuple[str, ...], str]] = {
    "filled_for_a_while": (
        "a batch is filled for a short while only",
        _filled_for_a_while,
        ("ends_behind_executions_that_hang",),
        "an end is committed when the next thing comes in, however late that is: its task seems to run on",
    ),
}
