"""Partitions that take nothing at the moment, and what waits for them meanwhile.

A partition below its min ISR, without a leader or deleted is not an error of the record nor of the producer: librdkafka
retries in silence until the transaction is over. Its place (ports.Place) is set aside: units that need it stay owed,
everything else commits. It is asked again after a pause that doubles, by a probe of its own (Probe effect) that costs the
other shards nothing, and comes back with the first answer.

    ("status", N)  shard N: starts nothing, admits nothing, commits offsets only; what runs goes on, its end stays owed
    ("dead", N)    dead letters go to the other partitions of tasks.dead
    DEAD           no dead letter can be written: tasks that failed keep their end, refusals their record

Ledger rule: the mark of CREATED never passes a refusal (a record that is nothing but a dead letter) that cannot be written:
after a take-over a duplicate below the mark would be admitted before the first record of its task. So the CREATED of requests
above such a refusal waits for their start, which has an entry of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from streamtask.core.batch import Owing, Refusal
from streamtask.core.claim import Claim, Phase
from streamtask.core.shard import Shard, Standing
from streamtask.domain.ports import DEAD, LETTERS, STATUS, Cell, CommitPlan, Fault, FaultKind, Note, Now, Place, Probe

if TYPE_CHECKING:
    from streamtask.core.engine import Engine

FIRST_PAUSE_MS: Final = 500
PAUSE_MAX_MS: Final = 30_000
RELAPSE_MS: Final = 60_000  # refused again so soon after it came back: the pause goes on growing
PROBE_LOST_MS: Final = 60_000  # a probe without an answer is forgotten, and made again


@dataclass(slots=True)
class Sick:
    """One place. since_ms: monotonic; asked: a probe is under way."""

    why: str
    since_ms: int
    pause_ms: int
    due_ms: int
    asked: bool = False


class SetAside:
    """All places that are set aside, and the claims that are out of the schedule for it."""

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
        """Partitions of tasks.dead that letters are kept away from."""
        return frozenset(number for topic, number in self.places if topic == LETTERS and number >= 0)

    def has_shard(self, number: int) -> bool:
        return (STATUS, number) in self.places

    def holds(self, claim: Claim) -> bool:
        """Whether what this claim owes waits for a place."""
        return self.has_shard(claim.shard) or (not self.letters and needs_letter(claim))

    def refuse(self, place: Place, why: str, now: Now) -> Sick | None:
        """Set it aside. None when it was already."""
        if place in self.places:
            return None
        pause_ms = FIRST_PAUSE_MS
        back = self._back.pop(place, None)
        if back is not None and now.mono_ms - back[0] < RELAPSE_MS:
            pause_ms = min(back[1] * 2, PAUSE_MAX_MS)
        sick = self.places[place] = Sick(why, now.mono_ms, pause_ms, now.mono_ms + pause_ms)
        return sick

    def answered(self, place: Place, now: Now) -> Sick | None:
        """It takes records again. Returns what was known of it."""
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
        """Places to be asked now; they count as asked."""
        due = tuple(place for place, sick in self.places.items() if now.mono_ms >= sick.due_ms)
        for place in due:
            self.places[place].asked = True
            self.places[place].due_ms = now.mono_ms + PROBE_LOST_MS
        return due

    def park(self, claim: Claim) -> bool:
        """True when its shard is set aside: it is queued here, and not in the schedule."""
        if not self.has_shard(claim.shard):
            return False
        self.parked.setdefault(claim.shard, {})[claim] = None
        return True

    def forget(self, number: int) -> None:
        """The shard is not ours any more."""
        self.places.pop((STATUS, number), None)
        self._back.pop((STATUS, number), None)
        self.parked.pop(number, None)


def blamed(plan: CommitPlan, fault: Fault, *, some: bool) -> frozenset[Place]:
    """The places that this fault sets aside: those that a refusal names, or those that were silent while others answered
    (`some`). Silence of all is an outage or a slow link, unless nothing but dead letters was sent."""
    if fault.kind is FaultKind.FENCED and not some and plan.events:
        return frozenset()
    return fault.places if fault.kind in (FaultKind.FENCED, FaultKind.ABORT) else frozenset()


def set_aside(engine: Engine, places: Iterable[Place], why: str, now: Now) -> None:
    """These places take nothing. Batches built from now on do without them."""
    for place in sorted(places, reverse=True):
        sick = engine.aside.refuse(place, why, now)
        if sick is None:
            continue
        topic, number = place
        fields = {"topic": topic, "partition": number, "why": why, "again_ms": sick.pause_ms}
        engine.effects.append(Note("partition_set_aside", fields))
        shard = engine.shards.get(number) if topic == STATUS else None
        if shard is not None:
            _park(engine, shard)


def _park(engine: Engine, shard: Shard) -> None:
    """Nothing of this shard starts: what is queued or picked leaves the schedule, and its slots are free for others."""
    parked = engine.aside.parked.setdefault(shard.number, {})
    for claim in shard.claims.values():
        if claim.phase is Phase.PICKED and not engine.in_doubt(claim):
            engine.unpick(claim)
            claim.phase = Phase.QUEUED
            if not claim.created and claim not in engine.urgent:
                engine.fresh[claim] = None
        elif claim.phase is Phase.QUEUED:
            engine.schedule.remove(claim)
        else:
            continue
        parked[claim] = None


def tick(engine: Engine, now: Now) -> None:
    """Ask the places whose pause is over."""
    due = engine.aside.due(now)
    if due:
        engine.effects.append(Probe(due))


def probed(engine: Engine, place: Place, why: str | None, now: Now) -> None:
    """What a probe found. why: None when the place takes records, else the reason why it does not."""
    if why is not None:
        engine.aside.silent(place, why, now)
        return
    sick = engine.aside.answered(place, now)
    if sick is None:
        return
    topic, number = place
    seconds = round((now.mono_ms - sick.since_ms) / 1_000, 1)
    engine.effects.append(Note("partition_back", {"topic": topic, "partition": number, "after_s": seconds}))
    if topic != STATUS:
        return
    parked = engine.aside.parked.pop(number, {})
    for claim in sorted(parked, key=lambda claim: (claim.queued_ms, claim.band, claim.offset)):
        if claim.phase is Phase.QUEUED and claim.owner_shard.standing is not Standing.GONE:
            engine.schedule.add(claim, now.mono_ms)
    fresh = [claim for claim in engine.fresh if claim.shard == number]
    for claim in sorted(fresh, key=lambda claim: (claim.band, claim.offset)):  # some were picked, and are back
        del engine.fresh[claim]
        engine.fresh[claim] = None


def owing(engine: Engine, heads: Sequence[Shard], refusals: Iterable[Refusal]) -> Owing:
    """What may be paid while places are set aside."""
    aside = engine.aside
    sick = {number for topic, number in aside.places if topic == STATUS}

    def may(claim: Claim) -> bool:
        return claim.owner_shard.standing is Standing.OPEN and claim.shard not in sick

    urgent = [claim for claim in engine.urgent if may(claim)]
    fresh = [claim for claim in engine.fresh if may(claim)]
    if aside.letters:
        return Owing(heads, refusals, urgent, fresh, aside.avoid())
    floors = floors_of(refusals)
    waits = [claim for claim in urgent if needs_letter(claim)]
    fresh += [claim for claim in waits if not claim.created]
    fresh = [claim for claim in fresh if claim.offset < floors.get((claim.band, claim.shard), claim.offset + 1)]
    fresh.sort(key=lambda claim: (claim.band, claim.shard, claim.offset))  # one mark a cell
    return Owing(heads, (), [claim for claim in urgent if not needs_letter(claim)], fresh, aside.avoid())


def floors_of(refusals: Iterable[Refusal]) -> dict[Cell, int]:
    """The lowest refusal of each cell: no CREATED above it may be marked before its letter is written."""
    floors: dict[Cell, int] = {}
    for refusal in refusals:
        cell = (refusal.band, refusal.shard.number)
        floors[cell] = min(floors.get(cell, refusal.offset), refusal.offset)
    return floors


def needs_letter(claim: Claim) -> bool:
    return claim.final is not None and claim.final.dead


def closing(engine: Engine, shards: Sequence[Shard]) -> list[Claim]:
    """What a hand-over pays. Of a shard that is set aside only its ledger goes over: that needs no partition of
    tasks.status. Its ends are lost here, and its tasks run again there as attempts that nobody is charged for."""
    aside = engine.aside
    return [
        claim
        for claim in engine.urgent
        if claim.owner_shard in shards
        and not aside.has_shard(claim.shard)
        and (aside.letters or not needs_letter(claim))
    ]
