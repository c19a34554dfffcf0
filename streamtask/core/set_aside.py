"""Partitions that accept no records at the moment, and what waits for them meanwhile.

A partition below its min ISR, without a leader or deleted is an error neither of the record nor of the producer: librdkafka
retries silently until the transaction is over. Its place (ports.Place) is set aside: units that need it stay owed,
everything else commits. After a pause that doubles, the place is probed separately (Probe effect), at no cost to the other
shards, and comes back with the first answer.

    ("status", N)  shard N: starts nothing, admits nothing, commits offsets only; tasks run on, and their ends stay owed
    ("dead", N)    dead letters go to the other partitions of tasks.dead
    DEAD           no dead letter can be written: tasks that failed keep their end, refusals their record

Ledger rule: the mark of CREATED never passes a refusal (a record that is only a dead letter) that cannot be written: after a
take-over a duplicate below the mark would be admitted before the first record of its task. So the CREATED of requests above
such a refusal waits for their start, which has an entry of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streamtask.core import transitions
from streamtask.core.batch import Owing, Refusal
from streamtask.core.refused_places import floors_of, needs_letter
from streamtask.core.shard import Claim, Phase, Shard, Standing
from streamtask.core.state import State
from streamtask.domain.ports import STATUS, Note, Now, Place, Probe


def set_aside(state: State, places: Iterable[Place], why: str, now: Now) -> None:
    """These places accept no records. Batches built from now on avoid them."""
    for place in sorted(places, reverse=True):
        sick = state.aside.refuse(place, why, now)
        if sick is None:
            continue
        topic, number = place
        fields = {"topic": topic, "partition": number, "why": why, "again_ms": sick.pause_ms}
        state.effects.append(Note("partition_set_aside", fields))
        shard = state.shards.get(number) if topic == STATUS else None
        if shard is not None:
            _park(state, shard)


def _park(state: State, shard: Shard) -> None:
    """Nothing of this shard starts: queued and picked claims leave the schedule, and their slots are free for others."""
    parked = state.aside.parked.setdefault(shard.number, {})
    for claim in shard.claims.values():
        if claim.phase is Phase.PICKED and not transitions.in_doubt(state, claim):
            transitions.unpick(state, claim)
            claim.phase = Phase.QUEUED
            if not claim.created and claim not in state.urgent:
                state.fresh[claim] = None
        elif claim.phase is Phase.QUEUED:
            state.schedule.remove(claim)
        else:
            continue
        parked[claim] = None


def tick(state: State, now: Now) -> None:
    """Probe the places whose pause is over."""
    due = state.aside.due(now)
    if due:
        state.effects.append(Probe(due))


def probed(state: State, place: Place, why: str | None, now: Now) -> None:
    """Apply the result of a probe. why: None when the place accepts records, otherwise the reason why it does not."""
    if why is not None:
        state.aside.silent(place, why, now)
        return
    sick = state.aside.answered(place, now)
    if sick is None:
        return
    topic, number = place
    seconds = round((now.mono_ms - sick.since_ms) / 1_000, 1)
    state.effects.append(Note("partition_back", {"topic": topic, "partition": number, "after_s": seconds}))
    if topic != STATUS:
        return
    parked = state.aside.parked.pop(number, {})
    for claim in sorted(parked, key=lambda claim: (claim.queued_ms, claim.band, claim.offset)):
        if claim.phase is Phase.QUEUED and claim.owner_shard.standing is not Standing.GONE:
            state.schedule.add(claim, now.mono_ms)
    fresh = [claim for claim in state.fresh if claim.shard == number]
    for claim in sorted(fresh, key=lambda claim: (claim.band, claim.offset)):  # some were picked, and are back
        del state.fresh[claim]
        state.fresh[claim] = None


def owing(state: State, heads: Sequence[Shard], refusals: Iterable[Refusal]) -> Owing:
    """What may be paid while places are set aside."""
    aside = state.aside
    sick = {number for topic, number in aside.places if topic == STATUS}

    def may(claim: Claim) -> bool:
        return claim.owner_shard.standing is Standing.OPEN and claim.shard not in sick

    urgent = [claim for claim in state.urgent if may(claim)]
    fresh = [claim for claim in state.fresh if may(claim)]
    if aside.letters:
        return Owing(heads, refusals, urgent, fresh, aside.avoid())
    floors = floors_of(refusals)
    waits = [claim for claim in urgent if needs_letter(claim)]
    fresh += [claim for claim in waits if not claim.created]
    fresh = [claim for claim in fresh if claim.offset < floors.get((claim.band, claim.shard), claim.offset + 1)]
    fresh.sort(key=lambda claim: (claim.band, claim.shard, claim.offset))  # one mark per cell
    return Owing(heads, (), [claim for claim in urgent if not needs_letter(claim)], fresh, aside.avoid())


def closing(state: State, shards: Sequence[Shard]) -> list[Claim]:
    """What a hand-over pays. A shard that is set aside hands over only its ledger, which needs no partition of tasks.status:
    its ends are lost here, and its tasks run again at the next owner, as attempts that do not count as deaths.
    """
    aside = state.aside
    return [
        claim
        for claim in state.urgent
        if claim.owner_shard in shards
        and not aside.has_shard(claim.shard)
        and (aside.letters or not needs_letter(claim))
    ]
