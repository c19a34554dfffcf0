"""What a pool is made of: how its children are started, and who is told what becomes of their executions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamtask.domain.model import Outcome

GRACE_S = 2.0  # from SIGTERM to SIGKILL; below the time that a revoke gives its handlers

OnEvent = Callable[[str, Mapping[str, Any]], None]


def _unheard(_name: str, _fields: Mapping[str, Any]) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Children:
    """The child processes of one worker.

    app          `module:attribute`, as the worker itself was told
    count        children; each runs one execution at a time. 0: only those that are started for one execution alone
    grace_s      from SIGTERM to SIGKILL
    environment  more of it for the children
    on_event     told facts for the operator
    """

    app: str
    count: int
    grace_s: float = GRACE_S
    environment: Mapping[str, str] = field(default_factory=dict)
    on_event: OnEvent = _unheard

    def __post_init__(self) -> None:
        assert self.count >= 0, f"{self.count} children"


class Listener(Protocol):
    """Told what becomes of the jobs of a pool, on the pool's own thread."""

    def child_ended(self, token: int, outcome: Outcome) -> None:
        """The outcome of an execution; once for every job."""

    def child_reported(self, token: int, fraction: float, message: str | None) -> None:
        """Its progress."""

    def child_begun(self, token: int) -> None:
        """A `timed` execution has begun in its child."""

    def children_failed(self, error: Exception) -> None:
        """Children cannot be started: nothing should be submitted any more."""
