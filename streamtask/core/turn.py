"""The loop of the owner of a worker's shards: when it takes which facts, and when it hands over effects.

These are generators, like the flows of protocol.py that they drive: they yield an ask (ports.py) and are sent its answer. The
code that performs the asks decides no order of its own: worker/loop.py with Kafka and real handlers, tests/sim with a model.

    turn                      one iteration: fetch, take what has come in, one step of the protocol, hand over the effects
    assigned, revoked, lost   the group's callbacks; they run inside a Fetch or a Poll
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

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

REVOKE_WAIT_MS = 3_000  # how long handlers may take to end when their shard moves
AWAIT_MS = 50  # per wait


def turn(engine: Engine, clock: Clock) -> Turn:
    """One iteration. True when something came in or was committed: the next one may have work at once."""
    fetched = yield Fetch()
    # Under load the rest is decoded later in this turn, while waiting for a flush.
    engine.fetched((yield TakeRecords(bands=1 if engine.supplied else None)))
    changed = _apply_facts(engine, (yield TakeFacts()), clock())
    committed = yield from _performed(engine, protocol.step(engine, clock), clock)
    engine.fetched((yield TakeRecords()))
    yield HandOver(engine.take_effects())
    return bool(fetched or changed or committed)


def drive(flow: Turn | Flow, perform: Callable[[Any], Answer]) -> bool:
    """Run a flow to its end: perform each ask, send the answer back. Returns what the flow returns."""
    answer: Answer = None
    while True:
        try:
            ask = flow.send(answer)
        except StopIteration as end:
            return bool(end.value)
        answer = perform(ask)


def assigned(engine: Engine, shards: Sequence[int], clock: Clock) -> Turn:
    """on_assign. True when the shards were claimed; else the next turn claims them."""
    return (yield from _performed(engine, protocol.assigned(engine, shards, clock), clock))


def revoked(engine: Engine, shards: Sequence[int], clock: Clock) -> Turn:
    """on_revoke. True when everything was handed over clean."""
    _executed(engine, (yield TakeExecutions()), clock())
    clean = yield from _performed(engine, protocol.revoked(engine, shards, clock), clock)
    yield HandOver(engine.take_effects())
    return clean


def lost(engine: Engine, shards: Sequence[int]) -> Turn:
    """on_lost: the shards are forgotten, and their running tasks are stopped."""
    protocol.lost(engine, shards)
    yield HandOver(engine.take_effects())
    return True


def unfinished(engine: Engine) -> bool:
    """Whether a draining worker must still wait: for running tasks, or for ends that are not committed yet."""
    return bool(engine.running or engine.urgent)


def _performed(engine: Engine, flow: Flow, clock: Clock) -> Turn:
    """Perform a flow of the protocol, and take what comes in while it waits. Returns what the flow returns."""
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
        if isinstance(ask, Flush):  # the broker is busy for 5 to 20 ms: time to decode and admit the next records
            engine.fetched((yield TakeRecords()))
            _executed(engine, (yield TakeExecutions()), clock())
            engine.prepare(clock())
        answer = yield ask


def _await_ended(engine: Engine, ask: AwaitEnded, clock: Clock) -> Generator[LocalAsk, Answer, None]:
    yield HandOver(engine.take_effects())  # running tasks must receive their stop first
    deadline_ms = clock().mono_ms + REVOKE_WAIT_MS
    while any(token in engine.running for token in ask.tokens):
        left_ms = deadline_ms - clock().mono_ms
        if left_ms <= 0:
            return
        yield AwaitExecutions(min(left_ms, AWAIT_MS))
        _executed(engine, (yield TakeExecutions()), clock())


def _apply_facts(engine: Engine, facts: Facts, now: Now) -> bool:
    """Pass facts to the engine. True when there were any that may give another turn work."""
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
