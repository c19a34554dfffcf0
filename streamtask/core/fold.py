"""The view's only rule: which of two facts about one task stands.

A fact is a request record (its task's CREATED, version 0) or a status event (version = its offset in tasks.status + 1).
Facts come in any order, and more than once. They are compared by what they are, never by when they came, and the
greatest stands: so any order with any repeats folds to the same. From the strongest rule to the weakest:

1. A status event stands before any request: it is what a worker said.
2. Of the same origin: a terminal status before RUNNING before CREATED (the state machine), then the higher version. Two
   terminal events cannot be; if they are, the first one stands, since a terminal status is never left.
3. Of two origins in one partition the first one stands: the lower version. Their histories do not overlap: the second
   record runs only after the first has ended, else it is refused without an event.
4. Of two origins in different partitions (a producer that used a task_id again under another key, or after partitions
   were added) the lower partition: Kafka orders nothing between them. An origin that cannot be read stands behind one
   that can.
5. Of two requests the one created first, then the origin that sorts first.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

from streamtask.core.lifecycle import NEXT
from streamtask.domain.identity import Origin
from streamtask.domain.model import TaskStatus


class Fact(Protocol):
    """A row of the view, or what is known of it.

    status      wire name
    origin      `high-3@12345`, or "" when an event does not say
    updated_ms  of a request: its created_at
    """

    @property
    def status(self) -> str: ...
    @property
    def updated_ms(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def origin(self) -> str: ...


F = TypeVar("F", bound=Fact)

# 0 CREATED, 1 RUNNING, 2 terminal: how many steps of the machine lead there at least.
_RANK: Final = {status.value: 2 if not NEXT[status] else int(status is TaskStatus.RUNNING) for status in TaskStatus}


def stands(held: Fact, fact: Fact) -> bool:
    """True when `fact` takes the place of `held` (two facts about one task)."""
    if not held.version or not fact.version:
        if held.version or fact.version:
            return not held.version
        return (fact.updated_ms, fact.origin) < (held.updated_ms, held.origin)
    if fact.origin == held.origin:
        rank, rank_held = _RANK.get(fact.status, 0), _RANK.get(held.status, 0)
        if rank != rank_held:
            return rank > rank_held
        return fact.version < held.version if rank == 2 else fact.version > held.version
    partition, partition_held = _partition(fact.origin), _partition(held.origin)
    if partition != partition_held:
        return partition < partition_held
    return fact.version < held.version


def fold(latest: F | None, fact: F) -> F | None:
    """`fact` when it stands now; None when nothing changes."""
    return fact if latest is None or stands(latest, fact) else None


def _partition(origin: str) -> int:
    parsed = Origin.parse(origin)
    return 1 << 31 if parsed is None else parsed.partition
