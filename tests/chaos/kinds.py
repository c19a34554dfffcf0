"""What a chaos run submits: kinds of requests, how often each, and how it may end when the system keeps its promises.

Any task may also be cancelled if somebody asked for it, and worker_lost if its workers were taken away three times;
checks.py wants to see the wish, and those deaths.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.chaos.payload import PAYLOAD_MAX, PAYLOAD_MIN, payload, spread

COMPLETED = "completed"
LARGE = 30_000  # bytes of a result: more than a narrowed status topic takes
LONG_S = 10.0  # of a run of 5 minutes or more; a shorter one scales it
LONGEST_S = 600.0  # of a run of 20 minutes or more, likewise
LONGEST = "async_long"  # hundreds of them run at any time; those that are left at the end are cancelled
WEIGHS = "async_weighs"


@dataclass(frozen=True)
class Kind:
    """weight: of 1,000 requests; ends: `completed`, or the code of a failure; draw: parameters; limits: per minute of
    the run, those that cost the whole worker something (None: only the weight)."""

    task_type: str
    weight: int
    ends: frozenset[str]
    draw: Callable[[random.Random], dict[str, Any]]
    per_minute: float | None = None


def _ms(low: int, high: int) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {"ms": rng.randint(low, high)}


def _nothing(_rng: random.Random) -> dict[str, Any]:
    return {}


def _failures(rng: random.Random) -> dict[str, Any]:
    return {"failures": rng.randint(0, 3)}


def _weighs(rng: random.Random) -> dict[str, Any]:
    """What goes in and what comes out, each of 10 bytes to 900 kB."""
    salt = rng.randrange(1 << 30)
    return {
        "size": spread(rng, PAYLOAD_MIN, PAYLOAD_MAX),
        "text": payload(spread(rng, PAYLOAD_MIN, PAYLOAD_MAX), salt),
        "salt": salt,
    }


def kinds(long_s: float = LONG_S, longest_s: float = LONGEST_S) -> tuple[Kind, ...]:
    """All kinds. long_s: how long the long ones take; longest_s: the longest."""
    done = frozenset({COMPLETED})
    failed, timeout = frozenset({"handler_error"}), frozenset({"timeout"})
    long, longest = int(long_s * 1_000), int(longest_s * 1_000)
    return (
        Kind(LONGEST, 300, done, lambda rng: {"ms": spread(rng, 1_000, max(longest, 2_000))}),
        Kind(WEIGHS, 15, done, _weighs, 40),
        Kind("async_nap", 200, done, _ms(1, 1)),
        Kind("thread_nap", 80, done, _ms(1, 1)),
        Kind("process_nap", 80, done, _ms(1, 1)),
        Kind("async_nap", 160, done, _ms(40, 60)),
        Kind("thread_nap", 80, done, _ms(40, 60)),
        Kind("process_nap", 60, done, _ms(40, 60)),
        Kind("async_nap", 25, done, _ms(long, long), 30),
        Kind("thread_nap", 8, done, _ms(long, long), 12),
        Kind("process_nap", 4, done, _ms(long, long), 4),
        Kind("async_waits", 8, frozenset(), _nothing, 8),
        Kind("thread_waits", 4, frozenset(), _nothing, 4),
        Kind("process_waits", 4, frozenset(), _nothing, 4),
        Kind("async_counts", 60, done, _ms(100, 600)),
        Kind("async_large", 15, done, lambda rng: {"size": rng.choice((1_000, LARGE))}),
        Kind("async_flaky", 50, done, _failures),
        Kind("thread_flaky", 25, done, _failures),
        Kind("process_flaky", 15, done, _failures),
        Kind("async_raises", 20, failed, _nothing),
        Kind("async_garbage", 10, frozenset({"not_serializable"}), _nothing),
        Kind("async_nap", 10, frozenset({"invalid_parameters"}), lambda _rng: {"ms": "soon"}),
        Kind("nobody_knows", 6, frozenset({"unknown_task_type"}), _nothing, 12),
        Kind("async_hangs", 10, timeout, _nothing, 30),
        Kind("thread_hangs", 4, timeout, _nothing, 6),
        Kind("process_hangs", 4, timeout, _nothing, 6),
        Kind("async_ignores", 6, timeout, _nothing, 12),
        Kind("async_blocks", 6, done, _ms(100, 900), 8),
        Kind("async_exits", 2, frozenset({"worker_lost"}), _nothing, 1),
        Kind("process_segfaults", 3, frozenset({"worker_lost"}), _nothing, 3),
        Kind("process_exits", 3, frozenset({"worker_lost"}), _nothing, 3),
        Kind("process_eats", 4, failed, _nothing, 4),
        Kind("process_forks", 6, done, _nothing, 6),
        Kind("process_prints", 4, done, _nothing, 2),
    )
