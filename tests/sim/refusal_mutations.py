"""The rules about partitions that take nothing and links that are slow, taken out (see mutations.py)."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from streamtask.core import ownership, refused_places, set_aside
from streamtask.core.batch_size import BatchSize
from streamtask.core.shard import Claim
from streamtask.domain.ports import Fault, FaultKind, FenceIds

from .mutation import Mutation
from .performer import BLOCKED
from .process import Process


def _silent_set_aside() -> Any:
    """A batch that a partition does not acknowledge is built again as it was."""
    return patch.object(refused_places, "blamed", lambda plan, fault, some: frozenset())


def _letters_wait() -> Any:
    """Letters are sent though no partition of tasks.dead takes any."""
    return patch.object(refused_places.SetAside, "letters", True)


def _fence_not_for_markers() -> Any:
    """A fence waits until every marker of the fenced transaction is written."""

    def fence_ids(self: Process, ask: FenceIds, waited: int, twist: str) -> Any:
        left = [id for id in ask.ids if not self.broker.init(id)]
        if not left:
            return None
        return BLOCKED if waited < 3_000 else Fault(FaultKind.RETRY, "CONCURRENT_TRANSACTIONS")

    return patch.object(Process, "_fence_ids", fence_ids)


def _handover_without_status() -> Any:
    """The clean record of a shard that is set aside carries its ends."""

    def closing(engine: Any, shards: Any) -> list[Claim]:
        return [claim for claim in engine.urgent if claim.owner_shard in shards]

    return patch.object(set_aside, "closing", closing)


def _mark_behind_refusals() -> Any:
    """The mark of CREATED passes a refusal whose letter cannot be written."""
    return patch.object(set_aside, "floors_of", lambda refusals: {})


def _batches_fall() -> Any:
    """A batch that was not taken in time is built again at its size, and gets the same time."""
    return patch.object(BatchSize, "_fall", lambda self, size, passes: None)


def _leaderless_apart() -> Any:
    """A claim waits until every partition has a leader."""

    def with_leaders(state: Any, numbers: Any, settled: Any, now: Any) -> Any:
        return tuple(numbers) if all(cell.led for cell in settled.values()) else ()

    return patch.object(ownership, "with_leaders", with_leaders)


REFUSAL_MUTATIONS: dict[str, Mutation] = {
    "silent_set_aside": Mutation(
        "a partition that is silent while others answer is set aside",
        _silent_set_aside,
        ("sick_partition_stops_its_own_shard_alone", "without_tasks_dead_only_failed_tasks_wait"),
        "one partition below its min ISR stops every shard of its worker",
    ),
    "letters_wait": Mutation(
        "what needs a dead letter waits where none can be written",
        _letters_wait,
        ("without_tasks_dead_only_failed_tasks_wait",),
        "one task that fails stops its worker while `tasks.dead` is away",
    ),
    "fence_not_for_markers": Mutation(
        "a fence does not wait for markers that cannot be written",
        _fence_not_for_markers,
        ("sick_partition_stops_its_own_shard_alone", "owner_dies_behind_a_sick_partition"),
        "every shard of an owner whose transaction touched a sick partition waits for that partition",
    ),
    "mark_behind_refusals": Mutation(
        "the mark of CREATED stays below a refusal that cannot be written",
        _mark_behind_refusals,
        ("refusal_that_cannot_be_written_changes_hands",),
        "the next owner takes a duplicate for the task itself",
    ),
    "handover_without_status": Mutation(
        "the clean record of a shard that is set aside needs no partition of tasks.status",
        _handover_without_status,
        ("shard_set_aside_changes_hands",),
        "the hand-over fails, and what ran is charged for a death that did not happen",
    ),
    "leaderless_apart": Mutation(
        "a shard whose request partition has no leader is claimed later, by itself",
        _leaderless_apart,
        ("request_partition_without_a_leader_stops_its_own_shard_alone",),
        "every shard of its worker waits for the partition's leader",
    ),
    "batches_fall": Mutation(
        "a batch that is not taken in time is made smaller, one unit gets more time",
        _batches_fall,
        ("flush_slower_than_its_time",),
        "the same batch is sent again for ever",
    ),
}
