"""What the owner of a worker's shards does and in which order: which facts are taken when, and when effects are handed over.

Generators, as the flows of protocol.py are, which they drive: they yield an ask (ports.py) and are sent its answer. What
performs them decides no order of its own: worker/loop.py on Kafka and real handlers, tests/sim on a model.

    turn                      once around: fetch, take what has come in, one step of the protocol, hand over what follows
    assigned, revoked, lost   the group's callbacks; they run inside a Fetch or a Poll
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from streamtask.core import ownership, protocol, set_aside
from streamtask.core.engine import Engine
from streamtask.core.protocol import Clock, Flow
from streamtask.domain.ports import (
    Answer,
    Ask,
    AwaitEnded,
    AwaitExecutions,
    Executions,
    Facts,
    Fetch,
    Flush,
    HandOver,
    LocalAsk,
    Now,
    TakeExecutions,
    TakeFacts,
    TakeRecords,
)

Turn = Generator[Ask | LocalAsk, Answer, bool]

REVOKE_WAIT_MS = 3_000  # what handlers get to end in when their shard goes elsewhere
AWAIT_MS = 50  # at a time


def turn(engine: Engine, clock: Clock) -> Turn:
    """Once around. True when something came in or was committed: the next turn may have work at once."""
    fetched = yield Fetch()
    # Under load the rest is decoded while a flush is waited for, later in this turn.
    engine.fetched((yield TakeRecords(bands=1 if engine.supplied else None)))
    told = _told(engine, (yield TakeFacts()), clock())
    committed = yield from _performed(engine, protocol.step(engine, clock), clock)
    engine.fetched((yield TakeRecords()))
    yield HandOver(engine.take_effects())
    return bool(fetched or told or committed)


def assigned(engine: Engine, shards: Sequence[int], clock: Clock) -> Turn:
    """on_assign. True when they were claimed; else the next turn claims them."""
    return (yield from _performed(engine, protocol.assigned(engine, shards, clock), clock))


def revoked(engine: Engine, shards: Sequence[int], clock: Clock) -> Turn:
    """on_revoke. True when everything was handed over clean."""
    _executed(engine, (yield TakeExecutions()), clock())
    clean = yield from _performed(engine, protocol.revoked(engine, shards, clock), clock)
    yield HandOver(engine.take_effects())
    return clean


def lost(engine: Engine, shards: Sequence[int]) -> Turn:
    """on_lost: they are forgotten, and what runs for them is told to stop."""
    protocol.lost(engine, shards)
    yield HandOver(engine.take_effects())
    return True


def unfinished(engine: Engine) -> bool:
    """Whether a worker that drains has something to wait for: what runs, and ends that are not committed yet."""
    return bool(engine.running or engine.urgent)


def _performed(engine: Engine, flow: Flow, clock: Clock) -> Turn:
    """A flow of the protocol, with what comes in while it waits. Returns what the flow returns."""
    answer: Answer = None
    while True:
        try:
            ask = flow.send(answer)
        except StopIteration as end:
            return bool(end.value)
        if isinstance(ask, AwaitEnded):
            yield from _await_ended(engine, ask, clock)
            answer = None
            continue
        if isinstance(ask, Flush):  # the broker is busy for 5 to 20 ms: time to decode and to admit what comes next
            engine.fetched((yield TakeRecords()))
            _executed(engine, (yield TakeExecutions()), clock())
            engine.prepare(clock())
        answer = yield ask


def _await_ended(engine: Engine, ask: AwaitEnded, clock: Clock) -> Generator[LocalAsk, Answer, None]:
    yield HandOver(engine.take_effects())  # they have to hear that they are to stop
    deadline_ms = clock().mono_ms + REVOKE_WAIT_MS
    while any(token in engine.running for token in ask.tokens):
        left_ms = deadline_ms - clock().mono_ms
        if left_ms <= 0:
            return
        yield AwaitExecutions(min(left_ms, AWAIT_MS))
        _executed(engine, (yield TakeExecutions()), clock())


def _told(engine: Engine, facts: Facts, now: Now) -> bool:
    """Facts into the engine. True when there were any that another turn may follow from."""
    if facts.cancelled:
        engine.cancel_read(facts.cancelled, now)
    if facts.controlled:
        ownership.control_read(engine, facts.controlled)
    for shard, epoch, recalled, done in facts.recalled:
        ownership.recalled(engine, shard, epoch, recalled, done=done)
    executed = _executed(engine, facts.executions, now)
    for place, why in facts.probed:
        set_aside.probed(engine, place, why, now)
    if facts.hold_ms:
        engine.hold(facts.hold_ms, now)
    return bool(facts.cancelled or facts.controlled or facts.recalled or executed)


def _executed(engine: Engine, executions: Executions, now: Now) -> bool:
    begun, progress, ended = executions
    for token in begun:
        engine.begun(token, now)
    for token, fraction, message in progress:
        engine.progressed(token, fraction, message, now)
    for token, outcome in ended:
        engine.ended(token, outcome, now)
    return bool(begun or progress or ended)
