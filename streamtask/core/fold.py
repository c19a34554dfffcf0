"""The only rule of the view: which of two facts about one task wins.

A fact is a request record (its task's CREATED, version 0) or a status event (version = its offset in tasks.status + 1).
Facts may arrive in any order, and more than once. They are compared by their content, never by their arrival, and the
greatest wins: so any order with any repeats folds to the same result. From the strongest rule to the weakest:

1. A status event wins over any request, because a worker wrote it.
2. Same origin: a terminal status wins over RUNNING, RUNNING over CREATED (the state machine), then the higher version. Two
   terminal events cannot occur; if they did, the first would win, since a task never leaves a terminal status.
3. Two origins in one partition: the first one, with the lower version, wins. Their histories do not overlap: the second
   record runs only after the first has ended; otherwise it is refused without an event.
4. Two origins in different partitions (a producer reused a task_id under another key, or after partitions were added): the
   lower partition wins, because Kafka does not order them. An origin that cannot be parsed loses to one that can.
5. Two requests: the one created first wins, then the origin that sorts first.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

from streamtask.core.lifecycle import NEXT
from streamtask.domain.identity import Origin
from streamtask.domain.model import TaskStatus


class Fact(Protocol):
    """A row of the view, or what is known of it.

    status      wire name
    origin      `high-3@12345`, or "" when an event has none
    updated_ms  created_at, if the fact is a request
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

# 0 CREATED, 1 RUNNING, 2 terminal: the least number of steps of the machine that lead there.
_RANK: Final = {status.value: 2 if not NEXT[status] else int(status is TaskStatus.RUNNING) for status in TaskStatus}


def stands(held: Fact, fact: Fact) -> bool:
    """True when `fact` replaces `held` (two facts about one task)."""
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
    """Return `fact` if it wins, or None if nothing changes."""
    return fact if latest is None or stands(latest, fact) else None


def _partition(origin: str) -> int:
    parsed = Origin.parse(origin)
    return 1 << 31 if parsed is None else parsed.partition
