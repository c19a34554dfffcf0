"""Shards are assigned and taken away: what a claim, a revoke, a loss and a recovery do to the engine's state.

core/protocol.py makes the broker calls between these steps and decides their order. A shard is forgotten as a whole: its
claims, its place in the schedule, its debts. Executions that run on after that keep their slot until they end; their results
are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from streamtask.core import settlement, transitions
from streamtask.core.offset_map import Head, LedgerUnreadable, UnknownVersion, head_of
from streamtask.core.shard import Phase, Shard, Standing, Wait
from streamtask.core.state import State
from streamtask.domain.ports import (
    Cell,
    Expected,
    Note,
    Now,
    OffsetCommit,
    ReadControl,
    Recalled,
    RecallStatus,
    Resume,
    Settled,
    Stop,
    StopReason,
)

LEADERLESS_MIN_MS, LEADERLESS_MAX_MS = 500, 8_000  # pause before a claim that waits for a leader is tried again


def own(state: State, numbers: Iterable[int]) -> None:
    """The group assigned these shards to us; nothing is known of them yet."""
    for number in numbers:
        assert number not in state.shards, f"shard {number} was assigned twice"
        _new(state, number)


def _new(state: State, number: int) -> Shard:
    state.epochs += 1
    shard = state.shards[number] = Shard(number, state.epochs, len(state.config.bands))
    return shard


def torn(state: State) -> tuple[int, ...]:
    """Shards with a log that was cut while we owned them."""
    return tuple(n for n, s in state.shards.items() if s.torn and s.standing in (Standing.OPEN, Standing.CLAIMED))


def own_again(state: State, numbers: Iterable[int]) -> None:
    """Forget these shards and claim them again: their logs were cut, and their executions have ended."""
    cut = {number: state.shards[number].torn for number in numbers}
    forget(state, cut)
    own(state, cut)
    for number, bands in cut.items():
        state.shards[number].distrusted = bands
        cells = tuple((band, number) for band in range(len(state.config.bands)))
        state.effects.append(Resume(cells))  # the backlog that had paused a cell is gone


def unclaimed(state: State, now: Now) -> tuple[int, ...]:
    """Shards to claim (again) now, except those that this release cannot read or that wait for a leader.
    The shards among these whose request partitions all have a leader.

    The others wait without blocking these: their claim is retried after a pause that doubles up to LEADERLESS_MAX_MS.
    """
    return tuple(
        n
        for n, s in state.shards.items()
        if s.standing is Standing.UNCLAIMED and s.refused is None and s.claim_at_ms <= now.mono_ms
    )


def with_leaders(state: State, numbers: Iterable[int], settled: Mapping[Cell, Settled], now: Now) -> tuple[int, ...]:
    """Those of these shards all of whose request partitions have a leader. The others wait, by themselves: they are claimed
    again after a pause that doubles up to LEADERLESS_MAX_MS."""
    led = []
    for number in numbers:
        shard = state.shards[number]
        missing = tuple(band for band in range(len(state.config.bands)) if not settled[band, number].led)
        if not missing:
            led.append(number)
            shard.leaderless = ()
            continue
        if not shard.leaderless:
            shard.leaderless_since_ms = now.mono_ms
            names = [state.config.bands[band].name for band in missing]
            state.effects.append(Note("claim_waits", {"shard": number, "bands": names}))
        shard.leaderless = missing
        waited_ms = now.mono_ms - shard.leaderless_since_ms
        shard.claim_at_ms = now.mono_ms + max(LEADERLESS_MIN_MS, min(waited_ms, LEADERLESS_MAX_MS))
    return tuple(led)


def refuse(state: State, number: int, why: str) -> None:
    """This release cannot claim this shard: leave it alone and report it."""
    shard = state.shards[number]
    if shard.refused is None:
        shard.refused = why
        state.effects.append(Note("shard_refused", {"shard": number, "why": why}))


def ids_to_fence(state: State, heads: Mapping[int, Head | str | None]) -> tuple[str, ...]:
    """Recorded owners that may still write: every id whose head is not clean, except the one in use here."""
    ids = {h.owner for h in heads.values() if isinstance(h, Head) and h.state != "clean"}
    return tuple(sorted(ids - {state.owner, "-"}))


def renewed(state: State, owner: str) -> None:
    """A new transactional id: every shard must be claimed again under it before anything is committed."""
    state.owner = owner
    state.own_ids.add(owner)
    state.fenced = False
    for shard in state.shards.values():
        shard.standing = Standing.UNCLAIMED


def resolve(state: State, settled: Mapping[Cell, Settled], now: Now) -> None:
    """Settle or drop the batch in doubt: the committed ids and sequences of its shards show whether it landed."""
    batch = state.doubt
    if batch is None:
        return
    held = [n for n, shard in batch.shards.items() if state.shards.get(n) is shard]
    if any((0, n) not in settled for n in held):
        return  # this claim is for other shards
    state.doubt = None
    landed = [n for n in held if _head(settled[0, n]) == (batch.owner, batch.sequences[n])]
    if landed:
        assert len(landed) == len(held), f"one transaction, two answers: {landed} of {held}"
        settlement.settle(state, batch, now)


def _head(cell: Settled) -> tuple[str, int] | None:
    try:
        head = head_of(cell.text)
    except (LedgerUnreadable, UnknownVersion):
        return None
    return (head.owner, head.sequence) if head is not None else None


def adopt(
    state: State, numbers: Sequence[int], settled: Mapping[Cell, Settled]
) -> tuple[list[OffsetCommit], dict[Cell, int]]:
    """Claim step 4: what to commit for these shards, and where to start reading those that are new to us.

    A shard that we had already (a new id after a recovery) keeps its memory, unless another owner was recorded meanwhile.
    """
    commits: list[OffsetCommit] = []
    seats: dict[Cell, int] = {}
    for number in numbers:
        shard = state.shards[number]
        if shard.ledgers and (found := _head(settled[0, number])) is not None and found[0] in state.own_ids:
            shard.sequence = found[1]
        else:
            if shard.ledgers:
                state.effects.append(Note("shard_taken", {"shard": number, "why": "its record is not ours any more"}))
                forget(state, (number,))
                shard = _new(state, number)
            try:
                state.effects.extend(shard.adopt(settled, state.own_ids))
            except UnknownVersion as why:
                refuse(state, number, str(why))
                shard.ledgers = []
                continue
            shard.awaits_control = True
            for band, ledger in enumerate(shard.ledgers):
                seats[band, number] = ledger.position
        commits.extend(shard.claim_commit(state.owner))
    return commits, seats


def claimed(state: State, numbers: Iterable[int]) -> None:
    """The claim is recorded. New shards read tasks.control (and tasks.status, if need be) before anything starts."""
    control = []
    for number in numbers:
        shard = state.shards.get(number)
        if shard is None or shard.refused is not None:
            continue
        shard.sequence += 1
        state.deaths += shard.charged
        shard.charged = 0
        shard.distrusted = set()
        shard.head_recovering = shard.recovering
        shard.standing = Standing.CLAIMED
        if shard.awaits_control:
            control.append(number)
        if shard.awaits_recall:
            state.effects.append(RecallStatus(number, shard.epoch))
        _open_if_ready(shard)
    if control:
        state.effects.append(ReadControl(tuple(control)))


def control_read(state: State, numbers: Iterable[int]) -> None:
    """tasks.control was read to the end that it had when these shards were claimed."""
    for number in numbers:
        shard = state.shards.get(number)
        if shard is not None and shard.awaits_control:
            shard.awaits_control = False
            _open_if_ready(shard)


def recalled(state: State, number: int, epoch: int, facts: Iterable[Recalled], *, done: bool) -> None:
    """Take a slice of the shard's partition of tasks.status (`done`: the last), unless it belongs to an earlier ownership."""
    shard = state.shards.get(number)
    if shard is None or shard.epoch != epoch or not shard.awaits_recall:
        return
    shard.recall(facts, {band.name: index for index, band in enumerate(state.config.bands)})
    if done:
        shard.recall_done()
        shard.owes_head = shard.recovered_since_head()
        _open_if_ready(shard)


def _open_if_ready(shard: Shard) -> None:
    if shard.standing is Standing.CLAIMED and not shard.awaits_control and not shard.awaits_recall:
        shard.standing = Standing.OPEN
        if not shard.claims:
            shard.expect_known()


def expected(state: State) -> dict[Cell, Expected]:
    """How far each cell that is being read has come, for the code that watches whether more records arrive."""
    found = {}
    for number, shard in state.shards.items():
        if shard.standing not in (Standing.CLAIMED, Standing.OPEN):
            continue
        for band, ledger in enumerate(shard.ledgers):
            backlog = shard.backlogs[band]
            received = max(ledger.received, backlog.records[-1].offset + 1) if backlog.records else ledger.received
            held = "paused" if backlog.paused else ""
            found[band, number] = Expected(received, len(backlog.records), held)
    return found


def recommit(state: State) -> None:
    """Commit every cell again, changed or not: the group is not subscribed to all topics, so idle offsets of the others
    would expire (KIP-211).
    """
    for shard in state.shards.values():
        shard.owes_head = shard.owes_cells = True


def close(state: State, numbers: Iterable[int]) -> tuple[int, ...]:
    """A revoke begins: nothing of these shards starts any more, and running tasks are stopped. Returns their tokens."""
    tokens = []
    for number in numbers:
        shard = state.shards.get(number)
        if shard is None:
            continue
        if shard.standing is Standing.OPEN or (shard.standing is Standing.CLAIMED and shard.ledgers):
            shard.standing = Standing.CLOSING
        for claim in shard.claims.values():
            if claim.phase is Phase.PICKED and not transitions.in_doubt(state, claim):
                transitions.unpick(state, claim)
            elif claim.phase is Phase.RUNNING:
                tokens.append(claim.token)
                if claim.stop is None:
                    claim.stop = StopReason.REVOKE
                    state.effects.append(Stop(claim.token, StopReason.REVOKE))
    return tuple(tokens)


def forget(state: State, numbers: Iterable[int]) -> None:
    """These shards are no longer ours. Nothing is committed for them; late results are dropped."""
    for number in numbers:
        shard = state.shards.pop(number, None)
        if shard is None:
            continue
        shard.standing = Standing.GONE
        state.memory.forgotten(shard)
        for claim in shard.claims.values():
            state.urgent.pop(claim, None)
            state.fresh.pop(claim, None)
            state.throttled.pop(claim, None)
            transitions.disarm(state, claim)
            if claim.phase is Phase.RUNNING:
                if claim.stop is None:
                    claim.stop = StopReason.REVOKE
                    state.effects.append(Stop(claim.token, StopReason.REVOKE))
            elif claim.phase is Phase.PICKED:
                transitions.unpick(state, claim)
            if claim.phase is not Phase.RUNNING:
                if claim.load:
                    state.memory.hold(claim, 0)
                if claim.phase is Phase.WAITING and claim.wait_reason is not Wait.RETRY:
                    state.memory.parked -= claim.record.weight
            state.schedule.leave(claim)
        for refusal in [r for r in state.refusals if r.shard is shard]:
            del state.refusals[refusal]
        state.backlogged -= {cell for cell in state.backlogged if cell[1] == number}
        state.schedule.forget_shard(number)
        state.aside.forget(number)
    if state.doubt is not None and not any(state.shards.get(n) is s for n, s in state.doubt.shards.items()):
        state.doubt = None
