"""Where the replicas of a chaos run lie: a layout in which one broker's death leaves some partitions under their min ISR.

The topics are made as `topics create` makes them (three replicas, min ISR 2). In a thin layout every fourth partition of the
topics that workers write to then keeps two replicas only, by a reassignment by hand: with either of the two brokers gone,
nothing can be written to it, while all other partitions go on. Request topics stay whole, so that the load goes on too.
"""

from __future__ import annotations

from streamtask.config import TopicNames
from tests.chaos.administrator import place_replicas

THIN_EVERY = 4


def thin_replicas(partition: int) -> tuple[int, ...] | None:
    """The two brokers that hold this partition; None: all three do."""
    if partition % THIN_EVERY == 1:
        return (1, 2)
    if partition % THIN_EVERY == 3:
        return (2, 3)
    return None


def starved_by(node: int, partitions: int) -> list[int]:
    """The partitions that cannot be written to while this broker is away."""
    return [number for number in range(partitions) if node in (thin_replicas(number) or ())]


def make_thin(bootstrap: str, names: TopicNames, partitions: int) -> None:
    """Raises TimeoutError when the brokers do not get it done."""
    place_replicas(
        bootstrap,
        {
            (topic, number): replicas
            for topic in (names.status, names.dead)
            for number in range(partitions)
            if (replicas := thin_replicas(number)) is not None
        },
    )
