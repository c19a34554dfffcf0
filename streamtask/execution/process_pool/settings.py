"""The settings of a pool: how its children are started, and who is notified of their executions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamtask.domain.model import Outcome

GRACE_S = 2.0  # from SIGTERM to SIGKILL; below the time that a revoke gives its handlers

OnEvent = Callable[[str, Mapping[str, Any]], None]


def _unheard(_name: str, _fields: Mapping[str, Any]) -> None:
    """Ignore the event."""


@dataclass(frozen=True, slots=True)
class Children:
    """The child processes of one worker.

    app          `module:attribute`, as for the worker itself
    count        number of children; each runs one execution at a time. 0: only those started for one execution alone
    grace_s      from SIGTERM to SIGKILL
    environment  additional variables for the children
    on_event     receives facts for the operator
    """

    app: str
    count: int
    grace_s: float = GRACE_S
    environment: Mapping[str, str] = field(default_factory=dict)
    on_event: OnEvent = _unheard

    def __post_init__(self) -> None:
        assert self.count >= 0, f"{self.count} children"


class Listener(Protocol):
    """Receives what becomes of the jobs of a pool, on the pool's own thread."""

    def child_ended(self, token: int, outcome: Outcome) -> None:
        """The outcome of an execution; called once for every job."""

    def child_reported(self, token: int, fraction: float, message: str | None) -> None:
        """The progress of an execution."""

    def child_begun(self, token: int) -> None:
        """A `timed` execution has begun in its child."""

    def children_failed(self, error: Exception) -> None:
        """Children cannot be started: from now on nothing should be submitted."""
