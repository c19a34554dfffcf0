"""Handlers of the simulation: what a request of each task type does when it runs, and the policies of those types.

A request may say more in its parameters: {"script": ["ok" | "fail" | "hang" | "kill" | "long" | ...]}, one word for
each attempt, the last one for all later ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from streamtask.config import EngineConfig
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord, Retry, TaskPolicy

STOPPED = Outcome(Ending.STOPPED)
NOT_BEGUN = Outcome(Ending.STOPPED, begun=False)
_RETRY = Retry(attempts=3, backoff_ms=60, backoff_max_ms=300)

POLICIES: dict[str, TaskPolicy] = {
    "quick": TaskPolicy(retry=_RETRY),
    "once": TaskPolicy(timeout_ms=1_500),
    "thread": TaskPolicy(kind=HandlerKind.THREAD, timeout_ms=800, retry=_RETRY),
    "single": TaskPolicy(concurrency=1, retry=_RETRY),
    "fragile": TaskPolicy(retry=_RETRY, lost_max=1),
    "steadfast": TaskPolicy(retry=_RETRY, lost_max=0),
}


def config(**changes: object) -> EngineConfig:
    """Limits small enough that a run of a simulated minute meets all of them."""
    limits: dict[str, object] = {
        "policies": POLICIES,
        "slots": {HandlerKind.ASYNC: 4, HandlerKind.THREAD: 2, HandlerKind.PROCESS: 2},
        "worker": "sim",
        "events_max": 12,
        "backlog_max": 8,
        "backlog_low": 3,
        "progress_ms": 20,
        "ageing_ms": 400,
        "unknown_type_grace_ms": 1_500,
        "not_before_max_ms": 5_000,
        "begin_ms": 3_000,
        "refresh_ms": 6_000,
        "trial_ms": 200,
        "trial_max_ms": 2_000,
        "alone_ms": 600,
        "cancels_max": 1_000,
    }
    limits.update(changes)
    return EngineConfig(**limits)  # type: ignore[arg-type]


def without_children() -> EngineConfig:
    """Suspects stand their trials in the worker itself, one group at a time."""
    return config(slots={HandlerKind.ASYNC: 4, HandlerKind.THREAD: 2, HandlerKind.PROCESS: 0})


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One execution. outcome None: it never ends by itself. kills: after takes_ms it ends its process."""

    takes_ms: int = 0
    outcome: Outcome | None = None
    progress: tuple[tuple[int, float], ...] = ()
    kills: bool = False
    slays: bool = False  #: its worker too, when it has a child of its own
    stubborn: bool = False  #: a thread that does not look at ctx.cancelled


_OK = Outcome(Ending.RETURNED, b'"done"')
_BIG = Outcome(Ending.RETURNED, b'"' + b"x" * 1_000_000 + b'"')
_FAT = Outcome(Ending.RETURNED, b'"' + b"x" * 600_000 + b'"')  # six seconds at 100 kB/s
_FAIL = Outcome(Ending.RAISED, code="handler_error", error="no")
_GIVE_UP = Outcome(Ending.RAISED, code="handler_error", error="never", retryable=False)
_LATER = Outcome(Ending.RAISED, code="handler_error", error="later", after_ms=150)
_INVALID = Outcome(Ending.INVALID, code="invalid_parameters", error="wrong")
LOST = Outcome(Ending.LOST, code="worker_lost", error="its process died")
WORDS: tuple[str, ...] = (
    "ok",
    "ok",
    "ok",
    "fail",
    "give_up",
    "later",
    "invalid",
    "big",
    "progress",
    "long",
    "hang",
    "stubborn",
    "kill",
)
WORDS += ("crash", "fat")
SLAYS_AFTER_MS = {"slay": 0, "slay_late": 500}  #: late: later than a first trial takes


def behaviour_of(record: RequestRecord, attempt: int, rng: random.Random) -> Behaviour:
    """What this attempt does, as its parameters say."""
    parameters = record.request.parameters if record.request is not None else None
    script = (parameters or {}).get("script") or ["ok"]
    word = script[min(attempt, len(script)) - 1]
    short = rng.randint(0, 40)
    if word == "fail":
        return Behaviour(short, _FAIL)
    if word == "give_up":
        return Behaviour(short, _GIVE_UP)
    if word == "later":
        return Behaviour(short, _LATER)
    if word == "invalid":
        return Behaviour(0, _INVALID)
    if word == "big":
        return Behaviour(short, _BIG)
    if word == "fat":
        return Behaviour(short, _FAT)
    if word == "progress":
        steps = tuple((at, round(at / 200, 2)) for at in range(10, 200, rng.randint(15, 60)))
        return Behaviour(200, _OK, steps)
    if word == "long":
        return Behaviour(rng.randint(500, 9_000), _OK, ((100, 0.1),))
    if word == "hang":
        return Behaviour()
    if word == "stubborn":
        return Behaviour(rng.randint(300, 3_000), _OK, stubborn=True)
    if word == "crash":
        return Behaviour(short, LOST)
    if word == "kill":
        return Behaviour(kills=True)
    if word in SLAYS_AFTER_MS:
        return Behaviour(SLAYS_AFTER_MS[word], kills=True, slays=True)
    assert word == "ok", f"unknown word {word!r}"
    return Behaviour(short, _OK)


@dataclass(slots=True)
class Execution:
    """A handler under way. late: it may begin later than it is handed over; begun: its first instruction has run; told: it
    was asked to stop.
    """

    token: int
    record: RequestRecord
    attempt: int
    kind: HandlerKind
    behaviour: Behaviour
    begun: bool = False
    told: bool = False
    group: int = 0
    timeout_ms: int | None = None
    begun_ms: int = 0
    late: bool = False
