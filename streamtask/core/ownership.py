"""Shards come and go: what a claim, a revoke, a loss and a recovery do to the engine's state.

The broker calls between these steps, and their order, are core/protocol.py's. A shard is forgotten as a whole: its claims,
its place in the schedule, its debts. Executions that go on after that keep their slot until they end; what they return is
dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from streamtask.core.claim import Phase, Wait
from streamtask.core.offset_map import Head, LedgerUnreadable, UnknownVersion, head_of
from streamtask.core.shard import Shard, Standing
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

if TYPE_CHECKING:
    from streamtask.core.engine import Engine


def own(engine: Engine, numbers: Iterable[int]) -> None:
    """The group gave us these shards; nothing is known of them yet."""
    for number in numbers:
        assert number not in engine.shards, f"shard {number} was assigned twice"
        _new(engine, number)


def _new(engine: Engine, number: int) -> Shard:
    engine.epochs += 1
    shard = engine.shards[number] = Shard(number, engine.epochs, len(engine.config.bands))
    return shard


def torn(engine: Engine) -> tuple[int, ...]:
    """Shards of which a log was cut while we owned them."""
    return tuple(n for n, s in engine.shards.items() if s.torn and s.standing in (Standing.OPEN, Standing.CLAIMED))


def own_again(engine: Engine, numbers: Iterable[int]) -> None:
    """Forget these shards and claim them anew, whose logs were cut and whose executions have ended."""
    cut = {number: engine.shards[number].torn for number in numbers}
    forget(engine, cut)
    own(engine, cut)
    for number, bands in cut.items():
        engine.shards[number].distrusted = bands
        cells = tuple((band, number) for band in range(len(engine.config.bands)))
        engine.effects.append(Resume(cells))  # the backlog that had paused one is gone


def unclaimed(engine: Engine) -> tuple[int, ...]:
    """Shards whose claim has to be made (again), less those that this release cannot read."""
    return tuple(n for n, s in engine.shards.items() if s.standing is Standing.UNCLAIMED and s.refused is None)


def refuse(engine: Engine, number: int, why: str) -> None:
    """This shard cannot be claimed by this release; it is left alone and shown."""
    shard = engine.shards[number]
    if shard.refused is None:
        shard.refused = why
        engine.effects.append(Note("shard_refused", {"shard": number, "why": why}))


def ids_to_fence(engine: Engine, heads: Mapping[int, Head | str | None]) -> tuple[str, ...]:
    """Recorded owners that may still write: every id that is not clean and not the one in use here."""
    ids = {h.owner for h in heads.values() if isinstance(h, Head) and h.state != "clean"}
    return tuple(sorted(ids - {engine.owner, "-"}))


def renewed(engine: Engine, owner: str) -> None:
    """A new transactional id: every shard is to be claimed again under it before anything is committed."""
    engine.owner = owner
    engine.own_ids.add(owner)
    engine.fenced = False
    for shard in engine.shards.values():
        shard.standing = Standing.UNCLAIMED


def resolve(engine: Engine, settled: Mapping[Cell, Settled], now: Now) -> None:
    """The batch in doubt: the committed id and sequence of its shards tell whether it landed."""
    batch = engine.doubt
    if batch is None:
        return
    held = [n for n, shard in batch.shards.items() if engine.shards.get(n) is shard]
    if any((0, n) not in settled for n in held):
        return  # a claim of other shards, in between
    engine.doubt = None
    landed = [n for n in held if _head(settled[0, n]) == (batch.owner, batch.sequences[n])]
    if landed:
        assert len(landed) == len(held), f"one transaction, two answers: {landed} of {held}"
        engine.settle(batch, now)


def _head(cell: Settled) -> tuple[str, int] | None:
    try:
        head = head_of(cell.text)
    except (LedgerUnreadable, UnknownVersion):
        return None
    return (head.owner, head.sequence) if head is not None else None


def adopt(
    engine: Engine, numbers: Sequence[int], settled: Mapping[Cell, Settled]
) -> tuple[list[OffsetCommit], dict[Cell, int]]:
    """Claim step 4: what to commit for these shards, and where to read those that are new to us.

    A shard that we had already (a new id after a recovery) keeps its memory, if nobody else has recorded it meanwhile.
    """
    commits: list[OffsetCommit] = []
    seats: dict[Cell, int] = {}
    for number in numbers:
        shard = engine.shards[number]
        if shard.ledgers and (found := _head(settled[0, number])) is not None and found[0] in engine.own_ids:
            shard.sequence = found[1]
        else:
            if shard.ledgers:
                engine.effects.append(Note("shard_taken", {"shard": number, "why": "its record is not ours any more"}))
                forget(engine, (number,))
                shard = _new(engine, number)
            try:
                engine.effects.extend(shard.adopt(settled, engine.own_ids))
            except UnknownVersion as why:
                refuse(engine, number, str(why))
                shard.ledgers = []
                continue
            shard.awaits_control = True
            for band, ledger in enumerate(shard.ledgers):
                seats[band, number] = ledger.position
        commits.extend(shard.claim_commit(engine.owner))
    return commits, seats


def claimed(engine: Engine, numbers: Iterable[int]) -> None:
    """The claim is recorded. New shards read tasks.control (and tasks.status, if need be) before anything starts."""
    control = []
    for number in numbers:
        shard = engine.shards.get(number)
        if shard is None or shard.refused is not None:
            continue
        shard.sequence += 1
        engine.deaths += shard.charged
        shard.charged = 0
        shard.distrusted = set()
        shard.head_recovering = shard.recovering
        shard.standing = Standing.CLAIMED
        if shard.awaits_control:
            control.append(number)
        if shard.awaits_recall:
            engine.effects.append(RecallStatus(number, shard.epoch))
        _open_if_ready(shard)
    if control:
        engine.effects.append(ReadControl(tuple(control)))


def control_read(engine: Engine, numbers: Iterable[int]) -> None:
    """tasks.control was read to the end that it had when these shards were claimed."""
    for number in numbers:
        shard = engine.shards.get(number)
        if shard is not None and shard.awaits_control:
            shard.awaits_control = False
            _open_if_ready(shard)


def recalled(engine: Engine, number: int, epoch: int, facts: Iterable[Recalled], *, done: bool) -> None:
    """A slice of the shard's partition of tasks.status; `done`: it was the last one. Ignored for an earlier ownership."""
    shard = engine.shards.get(number)
    if shard is None or shard.epoch != epoch or not shard.awaits_recall:
        return
    shard.recall(facts, {band.name: index for index, band in enumerate(engine.config.bands)})
    if done:
        shard.recall_done()
        shard.owes_head = shard.recovered_since_head()
        _open_if_ready(shard)


def _open_if_ready(shard: Shard) -> None:
    if shard.standing is Standing.CLAIMED and not shard.awaits_control and not shard.awaits_recall:
        shard.standing = Standing.OPEN
        if not shard.claims:
            shard.expect_known()


def expected(engine: Engine) -> dict[Cell, Expected]:
    """What is to come of each cell that is being read, for whoever watches whether it does."""
    found = {}
    for number, shard in engine.shards.items():
        if shard.standing not in (Standing.CLAIMED, Standing.OPEN):
            continue
        for band, ledger in enumerate(shard.ledgers):
            backlog = shard.backlogs[band]
            received = max(ledger.received, backlog.records[-1].offset + 1) if backlog.records else ledger.received
            held = "paused" if backlog.paused else ""
            found[band, number] = Expected(received, len(backlog.records), held)
    return found


def recommit(engine: Engine) -> None:
    """Commit every cell again, changed or not: the group is not subscribed to all of its topics, so idle offsets of the
    others would expire (KIP-211)."""
    for shard in engine.shards.values():
        shard.owes_head = shard.owes_cells = True


def close(engine: Engine, numbers: Iterable[int]) -> tuple[int, ...]:
    """Revoke begins: nothing of these shards starts any more; what runs is told to end. Returns its tokens."""
    tokens = []
    for number in numbers:
        shard = engine.shards.get(number)
        if shard is None:
            continue
        if shard.standing is Standing.OPEN or (shard.standing is Standing.CLAIMED and shard.ledgers):
            shard.standing = Standing.CLOSING
        for claim in shard.claims.values():
            if claim.phase is Phase.PICKED and not engine.in_doubt(claim):
                engine.unpick(claim)
            elif claim.phase is Phase.RUNNING:
                tokens.append(claim.token)
                if claim.stop is None:
                    claim.stop = StopReason.REVOKE
                    engine.effects.append(Stop(claim.token, StopReason.REVOKE))
    return tuple(tokens)


def forget(engine: Engine, numbers: Iterable[int]) -> None:
    """These shards are not ours any more. Nothing is committed for them; late results are dropped."""
    for number in numbers:
        shard = engine.shards.pop(number, None)
        if shard is None:
            continue
        shard.standing = Standing.GONE
        engine.memory.forgotten(shard)
        for claim in shard.claims.values():
            engine.urgent.pop(claim, None)
            engine.fresh.pop(claim, None)
            engine.throttled.pop(claim, None)
            engine.disarm(claim)
            if claim.phase is Phase.RUNNING:
                if claim.stop is None:
                    claim.stop = StopReason.REVOKE
                    engine.effects.append(Stop(claim.token, StopReason.REVOKE))
            elif claim.phase is Phase.PICKED:
                engine.unpick(claim)
            if claim.phase is not Phase.RUNNING:
                if claim.load:
                    engine.memory.hold(claim, 0)
                if claim.phase is Phase.WAITING and claim.wait_reason is not Wait.RETRY:
                    engine.memory.parked -= claim.record.weight
            engine.schedule.leave(claim)
        for refusal in [r for r in engine.refusals if r.shard is shard]:
            del engine.refusals[refusal]
        engine.backlogged -= {cell for cell in engine.backlogged if cell[1] == number}
        engine.schedule.forget_shard(number)
        engine.aside.forget(number)
    if engine.doubt is not None and not any(engine.shards.get(n) is s for n, s in engine.doubt.shards.items()):
        engine.doubt = None
