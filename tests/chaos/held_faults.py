"""A worker held in the middle of a step until its session is over, and one whose wall clock jumps."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.acceptance.harness import SESSION_MS
from tests.chaos.control import POINTS
from tests.chaos.faults import Acting, Draw, Fault
from tests.chaos.fleet import Host
from tests.chaos.stage import Stage

REACH_S = 20.0
LEAVE_S = 5.0  # to leave, and for its shards to be dealt
SESSION_S = SESSION_MS / 1_000
HELD = frozenset({"held"})


def hold(point: str) -> Callable[[Stage, Mapping[str, Any]], Acting]:
    moves = {"claim": _others_leave, "revoke": _others_join}.get(point.partition("_")[0])

    def act(stage: Stage, args: Mapping[str, Any]) -> Acting:
        host = _held(stage)
        if host is None or host.control is None:
            return
        pid, hosts = host.running.pid, len(stage.fleet.wanted())
        moving: Acting | None = None
        try:
            if moves is not None:
                moving = moves(stage)
                yield from _until_ready(moving)
            host.control.point = point
            deadline = time.monotonic() + REACH_S
            while not stage.fleet.stands(pid):
                if time.monotonic() > deadline or host.running.pid != pid or not host.alive:
                    stage.note(f"worker {pid} did not come by: {point}")
                    return
                if moving is not None:
                    next(moving, None)
                yield 0.02
            stage.fleet.freeze(pid)  # it did so itself; now it is known
            stage.say(f"worker {pid} of host {host.number} held for {args['hold_s']} s at: {point}")
            yield float(args["hold_s"])
            stage.fleet.thaw(pid)
            stage.say(f"worker {pid} goes on", undone=True)
        finally:
            host.control.point = ""
            stage.fleet.thaw(pid)
            while len(stage.fleet.wanted()) < hosts:
                stage.fleet.start()

    return act


def _held(stage: Stage) -> Host | None:
    return next((host for host in stage.fleet.wanted() if host.held and host.alive), None)


# What makes the group deal anew: steps before the point is armed, a yield of READY, then one for each further look.
READY = -1.0


def _until_ready(moving: Acting) -> Acting:
    while (wait_s := next(moving)) != READY:
        yield wait_s


def _others_leave(stage: Stage) -> Acting:
    """Their shards come to the held one, which has to claim them."""
    yield READY
    for host in stage.fleet.supervised():
        stage.note(f"host {host.number} leaves")
        stage.fleet.drain(host)
        until = time.monotonic() + LEAVE_S
        while time.monotonic() < until:
            yield 0.0


def _others_join(stage: Stage) -> Acting:
    """First the held one gets more than its share, then it has to give some back."""
    for host in stage.fleet.supervised():
        stage.note(f"host {host.number} leaves")
        stage.fleet.drain(host)
        yield from stage.gone(host)
    yield LEAVE_S
    yield READY
    stage.note(f"hosts {stage.fleet.start().number} and {stage.fleet.start().number} join")


def jump_clock(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Ahead or back, at once, and back again."""
    host = _held(stage)
    if host is None or host.control is None:
        return
    pid, ms = host.running.pid, int(args["ms"])
    stage.say(f"clock of worker {pid} jumps by {ms} ms for {args['hold_s']} s")
    stage.fleet.suffers(pid, "clock", ms)
    host.control.clock_ms = ms
    try:
        until = time.monotonic() + float(args["hold_s"])
        while time.monotonic() < until:
            if host.running.pid != pid:  # started again meanwhile: the same strip of memory, the same clock
                pid = host.running.pid
                stage.fleet.suffers(pid, "clock", ms)
            yield 0.1
    finally:
        host.control.clock_ms = 0
        stage.fleet.over(pid, "clock")
    stage.say("its clock is right again", undone=True)


def _zombie(rng: random.Random) -> dict[str, Any]:
    return {"hold_s": round(rng.uniform(SESSION_S + 2, SESSION_S + 6), 1)}


def _jump(rng: random.Random) -> dict[str, Any]:
    size = rng.choice((2_000, 60_000, 3_600_000, 40 * 24 * 3_600_000))
    return {"ms": rng.choice((-1, 1)) * size, "hold_s": round(rng.uniform(3, 15), 1)}


def _faults() -> tuple[Fault, ...]:
    draw: Draw = _zombie
    held = [
        Fault(
            f"hold_{point}",
            f"a worker stops itself at `{point}` and sleeps beyond its session",
            "SIGCONT",
            hold(point),
            draw,
            frozenset({"frozen", "workers"}) if point.startswith(("claim", "revoke")) else frozenset({"frozen"}),
            2,
            needs=HELD,
        )
        for point in POINTS[1:]
    ]
    clock = Fault(
        "jump_clock",
        "the wall clock of one worker jumps by 2 s to 40 days, ahead or back",
        "it jumps back",
        jump_clock,
        _jump,
        frozenset({"clock"}),
        1,
        needs=HELD,
    )
    return (*held, clock)


FAULTS = _faults()
