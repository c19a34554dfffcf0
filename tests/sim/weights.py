"""Requests and results that weigh something: a fault of every seed, what is promised about it.

Bytes are drawn by a generator of their own, so that a seed's story is the same with and without them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from streamtask.config import EngineConfig
from streamtask.core.engine import Engine
from tests.core.accounts import check

from .handlers import config as default_config

if TYPE_CHECKING:
    from .clients import Wish

FETCH_BYTES = 64_000  # what one fetch brings of a cell, or one record that is larger
WIDE = 1 << 30
SIZES = (2, 2, 2, 2, 2, 2, 200, 2_000, 9_000, 40_000, 90_000)
HEAVIEST = 500_000


class Bytes(bytes):
    """Bytes whose repr is short enough for the report of a broken promise."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def drawn(rng: random.Random) -> EngineConfig:
    """Shares of memory from plenty to less than one request takes."""
    waiting = rng.choice((WIDE, 400_000, 120_000, 30_000))
    active = rng.choice((WIDE, 400_000, 60_000, 5_000))
    return default_config(waiting_bytes_max=waiting, active_bytes_max=active)


def load(wish: Wish, rng: random.Random) -> Wish:
    """The same request with bytes that weigh something, of which half decode to much more than they are."""
    size = HEAVIEST if rng.random() < 0.01 else rng.choice(SIZES)
    if size > 2:
        wish.value = Bytes(b"[]," * (size // 3) if rng.random() < 0.5 else size)
        wish.opens = rng.random() < 0.8
    return wish


def bounded(engine: Engine) -> None:
    """What the engine holds is within its shares, but for what may always come: one fetch of each cell and one request that
    is heavier; the task of each band that was started last; the first results of a type."""
    check(engine)
    memory = engine.memory
    claims = [claim for shard in engine.shards.values() for claim in shard.claims.values()]
    held = [claim.record for claim in claims] + [refusal.letter.record for refusal in engine.refusals]
    for shard in engine.shards.values():
        held += [*shard.deferred, *(record for backlog in shard.backlogs for record in backlog.records)]
    heaviest = max((record.weight for record in held), default=0)
    # Of a shard that is taken over, what lies before the requests that its earlier owner had open has to come in.
    before = sum(
        record.weight for shard in engine.shards.values() if shard.unsettled_cells for record in shard.deferred
    )
    cells = len(engine.shards) * len(memory.waiting.used)
    most = memory.waiting.limit + cells * (2 * FETCH_BYTES + heaviest) + before
    assert memory.waiting.total <= most, f"{memory.waiting.total} bytes wait, {memory.waiting.limit} may"
    # Results are as large as they are: a type's first ones count only once they are there. Then nothing else starts.
    ended = sum(claim.load for claim in claims if claim.final is not None)
    started = max((claim.load for claim in [*claims, *engine.running.values()] if claim.final is None), default=0)
    most = memory.active.limit + len(memory.active.used) * started + ended
    assert memory.active.total <= most, f"{memory.active.total} bytes are active, {memory.active.limit} may be"
