"""Partitions that accept no records at the moment: which they are, when each is probed again, and what waits for them.

Data only. What follows for shards and claims is in set_aside.py, which also explains what such a place is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from streamtask.core.batch import Refusal
from streamtask.core.shard import Claim
from streamtask.domain.ports import DEAD, LETTERS, STATUS, Cell, CommitPlan, Fault, FaultKind, Now, Place

FIRST_PAUSE_MS: Final = 500
PAUSE_MAX_MS: Final = 30_000
RELAPSE_MS: Final = 60_000  # refused again this soon after recovering: the pause keeps growing
PROBE_LOST_MS: Final = 60_000  # a probe without an answer is forgotten, and repeated


@dataclass(slots=True)
class Sick:
    """One place. since_ms: monotonic; asked: a probe is under way."""

    why: str
    since_ms: int
    pause_ms: int
    due_ms: int
    asked: bool = False


class SetAside:
    """All places that are set aside, and the claims that left the schedule because of it."""

    def __init__(self) -> None:
        self.places: dict[Place, Sick] = {}
        self.parked: dict[int, dict[Claim, None]] = {}  # by shard: QUEUED, but not in the schedule
        self._back: dict[Place, tuple[int, int]] = {}  # place -> (when it came back, its last pause)

    def __bool__(self) -> bool:
        return bool(self.places)

    @property
    def letters(self) -> bool:
        """Whether dead letters can be written at all."""
        return DEAD not in self.places

    def avoid(self) -> frozenset[int]:
        """Partitions of tasks.dead that must get no letters."""
        return frozenset(number for topic, number in self.places if topic == LETTERS and number >= 0)

    def has_shard(self, number: int) -> bool:
        return (STATUS, number) in self.places

    def holds(self, claim: Claim) -> bool:
        """Whether what this claim owes waits for a place."""
        return self.has_shard(claim.shard) or (not self.letters and needs_letter(claim))

    def refuse(self, place: Place, why: str, now: Now) -> Sick | None:
        """Set the place aside. None if it was already."""
        if place in self.places:
            return None
        pause_ms = FIRST_PAUSE_MS
        back = self._back.pop(place, None)
        if back is not None and now.mono_ms - back[0] < RELAPSE_MS:
            pause_ms = min(back[1] * 2, PAUSE_MAX_MS)
        sick = self.places[place] = Sick(why, now.mono_ms, pause_ms, now.mono_ms + pause_ms)
        return sick

    def answered(self, place: Place, now: Now) -> Sick | None:
        """The place accepts records again. Returns what was known of it."""
        sick = self.places.pop(place, None)
        if sick is not None:
            self._back[place] = (now.mono_ms, sick.pause_ms)
        return sick

    def silent(self, place: Place, why: str, now: Now) -> None:
        """A probe was not answered."""
        sick = self.places.get(place)
        if sick is not None:
            sick.why, sick.asked = why or sick.why, False
            sick.pause_ms = min(sick.pause_ms * 2, PAUSE_MAX_MS)
            sick.due_ms = now.mono_ms + sick.pause_ms

    def due(self, now: Now) -> tuple[Place, ...]:
        """Places to probe now; they are marked as asked."""
        due = tuple(place for place, sick in self.places.items() if now.mono_ms >= sick.due_ms)
        for place in due:
            self.places[place].asked = True
            self.places[place].due_ms = now.mono_ms + PROBE_LOST_MS
        return due

    def park(self, claim: Claim) -> bool:
        """Park a queued claim here instead of in the schedule, if its shard is set aside. Returns whether it is."""
        if not self.has_shard(claim.shard):
            return False
        self.parked.setdefault(claim.shard, {})[claim] = None
        return True

    def forget(self, number: int) -> None:
        """The shard is no longer ours."""
        self.places.pop((STATUS, number), None)
        self._back.pop((STATUS, number), None)
        self.parked.pop(number, None)


def blamed(plan: CommitPlan, fault: Fault, *, some: bool) -> frozenset[Place]:
    """The places that this fault sets aside: those that a refusal names, or those that were silent while others answered
    (`some`). Silence of all is an outage or a slow link, unless only dead letters were sent.
    """
    if fault.kind is FaultKind.FENCED and not some and plan.events:
        return frozenset()
    return fault.places if fault.kind in (FaultKind.FENCED, FaultKind.ABORT) else frozenset()


def floors_of(refusals: Iterable[Refusal]) -> dict[Cell, int]:
    """The lowest refusal of each cell: no CREATED above it may be marked before its letter is written."""
    floors: dict[Cell, int] = {}
    for refusal in refusals:
        cell = (refusal.band, refusal.shard.number)
        floors[cell] = min(floors.get(cell, refusal.offset), refusal.offset)
    return floors


def needs_letter(claim: Claim) -> bool:
    return claim.final is not None and claim.final.dead
