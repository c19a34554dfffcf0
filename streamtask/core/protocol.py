"""The flows between a worker and the broker, as generators: they yield an ask (ports.py) and are sent its answer.

This file holds every rule about the order of broker calls, and nothing else: claim, commit, revoke, recovery. A process that
drives a flow may crash, freeze or lose the shard between any two asks; the formal model and tests/sim do exactly that. A flow
never raises for an operating error: it leaves the engine in a state from which `step` continues.

    assigned   the group gave us shards (inside a poll)           claim them, at once and together
    revoked    the group takes shards away (inside a poll)        end, commit clean, see it committed, forget
    lost       the group has already taken them                   forget
    step       one turn of the owner loop                         recover if fenced, claim what is unclaimed or torn, commit
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from streamtask.core import ownership, refused_places, set_aside, settlement
from streamtask.core.batch import Batch
from streamtask.core.engine import Engine
from streamtask.core.offset_map import Head
from streamtask.core.shard import heads
from streamtask.domain.ports import (
    AbortTransaction,
    Answer,
    Ask,
    AwaitEnded,
    CommitPlain,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    Flush,
    ListOffsets,
    Note,
    Now,
    Poll,
    Produce,
    ReadSettled,
    Rejoin,
    RenewProducer,
    Seat,
    SendOffsets,
    Waiting,
)

Clock = Callable[[], Now]
Flow = Generator[Ask, Answer, bool]  # returns True when it achieved its purpose

CLOSING_TRIES = 3  # tries of a revoke: it commits clean within its deadline or not at all
SLICE_MS = 250  # length of one flush slice: between two slices come cancels, endings and signs of life


def assigned(engine: Engine, numbers: Sequence[int], clock: Clock) -> Flow:
    """on_assign. A claim that fails now is retried by `step`."""
    ownership.own(engine, numbers)
    return (yield from claim(engine, tuple(numbers), clock))


def claim(engine: Engine, numbers: Sequence[int], clock: Clock) -> Flow:
    """Steps 1 to 4 for all these shards at once; False: start again at 1, after a poll."""
    listed = yield ListOffsets(tuple(numbers))  # 1
    if isinstance(listed, Fault):
        return _claim_fault(engine, listed, "list")
    found = heads(listed)
    for number, head in found.items():
        if isinstance(head, str):
            ownership.refuse(engine, number, head)
    numbers = tuple(n for n in numbers if not isinstance(found.get(n), str))
    ids = ownership.ids_to_fence(engine, {n: h for n, h in found.items() if n in numbers and isinstance(h, Head)})
    if ids:
        answer = yield FenceIds(ids)  # 2: aborts open transactions of dead or frozen owners; else 3 waits 10-20 s
        if isinstance(answer, Fault):
            return _claim_fault(engine, answer, "fence")
    if not numbers:
        return True
    settled = yield ReadSettled(tuple(numbers))  # 3
    if isinstance(settled, Fault):
        return _claim_fault(engine, settled, "read")
    ownership.resolve(engine, settled, clock())
    numbers = ownership.with_leaders(engine, numbers, settled, clock())
    commits, seats = ownership.adopt(engine, numbers, settled)
    if not commits:
        return True
    answer = yield CommitPlain(tuple(commits))  # 4: a plain commit leaves no transaction open under an unrecorded id
    if isinstance(answer, Fault):
        if answer.kind is FaultKind.DOUBT:
            # A late copy of this commit must not land over a newer ledger: a new generation makes it void.
            yield Rejoin()
            ownership.forget(engine, tuple(engine.shards))
        else:
            _unadopt(engine, seats)
        return _claim_fault(engine, answer, "commit")
    ownership.claimed(engine, numbers)
    if seats:
        yield Seat(seats)
    return True


def _unadopt(engine: Engine, seats: dict[tuple[int, int], int]) -> None:
    """Forget what was read but not recorded: the next try reads it again (and charges its deaths)."""
    for _, number in seats:
        shard = engine.shards.get(number)
        if shard is not None:
            shard.ledgers = []


def _claim_fault(engine: Engine, fault: Fault, step: str) -> bool:
    engine.effects.append(Note("claim_retried", {"step": step, "fault": fault.kind.value, "why": fault.text}))
    return False


def revoked(engine: Engine, numbers: Sequence[int], clock: Clock) -> Flow:
    """on_revoke: end what is open first, then commit what is done and the cleared marks, then see it committed.

    In the other order, the death of a process whose handlers still run under a clean record would not be counted. Returning
    before the clean record is visible would let the next owner see `open` and fence a healthy worker.
    """
    tokens = ownership.close(engine, numbers)
    if tokens:
        yield AwaitEnded(tokens)
    done = False
    for _ in range(CLOSING_TRIES):
        if engine.fenced:
            break
        batch = engine.build_closing(numbers, clock())
        if batch is None:
            break
        done = yield from commit(engine, batch, clock)
        if done:
            yield ReadSettled(tuple(batch.shards))
            break
    ownership.forget(engine, numbers)
    return done


def lost(engine: Engine, numbers: Sequence[int]) -> None:
    """on_lost: another member may own them already. Nothing is committed."""
    ownership.forget(engine, numbers)


def step(engine: Engine, clock: Clock) -> Flow:
    """One turn after a poll. True when a transaction committed (so another turn may have work at once)."""
    if engine.fenced and not (yield from recover(engine)):
        return False
    if torn := ownership.torn(engine):
        # A ledger would take the records that now stand at its offsets for repeats. End what is open first: no task will be
        # charged for it. Nothing is committed before the claim: the offsets would lie beyond the log.
        if tokens := ownership.close(engine, torn):
            yield AwaitEnded(tokens)
        ownership.own_again(engine, torn)
    unclaimed = ownership.unclaimed(engine, clock())
    if unclaimed and not (yield from claim(engine, unclaimed, clock)):
        return False
    engine.tick(clock())
    if clock().mono_ms < engine.held_until_ms:
        return False
    if engine.fills_ms(clock()):
        engine.prepare(clock())
        if engine.fills_ms(clock()):  # what has just been admitted could not start at once either
            return False
    batch = engine.build(clock())
    if batch is None:
        return False
    return (yield from commit(engine, batch, clock))


def recover(engine: Engine) -> Flow:
    """The transactional id is over: poll, then get a new one.

    The poll comes first, to serve revoke and lost: shards that are no longer ours must not be claimed. `step` claims every
    shard again under the new id; that claim's read-back resolves the batch in doubt.
    """
    yield Poll()
    answer = yield RenewProducer(engine.size.slow)
    if isinstance(answer, Fault):
        engine.effects.append(Note("producer_retried", {"fault": answer.kind.value, "why": answer.text}))
        return False
    ownership.renewed(engine, answer)
    return True


def commit(engine: Engine, batch: Batch, clock: Clock) -> Flow:
    """One transaction: events, flush, offsets last, end. What arrives during the flush belongs to the next batch.

    Offsets last: if a late copy of an EndTxn ends the transaction early, it publishes events without offsets (the tasks run
    again), never offsets without events.
    """
    engine.sent = batch
    some = True
    fault = yield Produce(batch.plan)
    if fault is None:
        fault, some = yield from _flush(engine, batch, clock)
    if fault is None:
        fault = yield SendOffsets(batch.plan)
    if fault is None:
        fault = yield EndTransaction()
        if fault is None:
            engine.sent = None
            settlement.settle(engine, batch, clock())
            return True
        if fault.kind is FaultKind.RETRY:
            fault = Fault(FaultKind.DOUBT, fault.text)
    blamed = refused_places.blamed(batch.plan, fault, some=some)
    if fault.kind in (FaultKind.FENCED, FaultKind.DOUBT):
        _doubtful(engine, batch, fault, certain=bool(blamed))
    else:
        answer = yield AbortTransaction()
        if answer is not None:
            _doubtful(engine, batch, answer, certain=bool(blamed))
        else:
            engine.sent = None
            engine.effects.append(Note("transaction_aborted", {"fault": fault.kind.value, "why": fault.text}))
            settlement.aborted(engine, batch, record=fault.kind is FaultKind.RECORD)
    if blamed:
        set_aside.set_aside(engine, blamed, fault.text, clock())
    return False


def _flush(engine: Engine, batch: Batch, clock: Clock) -> Generator[Ask, Answer, tuple[Fault | None, bool]]:
    """Flush in slices, for as long as a batch of its size may take. Returns (answer, whether any record was acknowledged)."""
    size, began = engine.size, clock().mono_ms
    moved, left, produced = began, -1, 0
    while True:
        answer = yield Flush(batch.plan, SLICE_MS, last=False)
        now = clock().mono_ms
        if isinstance(answer, Waiting):
            if answer.left != left:
                moved = began if left < 0 else now
                left, produced = answer.left, answer.produced
            still = size.stall_ms(batch.bytes) if left < produced else size.silent_ms(batch.bytes)
            if now - moved < still and now - began < size.patience_ms(batch.bytes):
                continue
            answer = yield Flush(batch.plan, 0, last=True)
        if answer is None:
            size.taken(batch.bytes, now - began)
        elif answer.kind is FaultKind.FENCED:
            size.not_taken(batch.bytes, 1 - left / produced if produced else 0.0, now - began)
        return answer, left < produced


def _doubtful(engine: Engine, batch: Batch, fault: Fault, *, certain: bool = False) -> bool:
    """The id is no longer usable. The batch is kept, with its id and sequences, until a read-back shows its fate.

    certain  it was never ended and never will be: nothing of it can land
    """
    engine.fenced = True
    engine.sent = None
    if not batch.closing and not certain:  # a shard that is handed over is forgotten; its next owner reads what landed
        assert engine.doubt is None, "a batch was sent while another one was in doubt"
        engine.doubt = batch
    engine.effects.append(Note("producer_lost", {"fault": fault.kind.value, "why": fault.text}))
    return False
