"""The accounts of an engine's memory, made up again from all that it holds: whatever happens, they have to agree."""

from __future__ import annotations

from streamtask.core.engine import Engine
from streamtask.core.shard import Phase, Wait


def check(engine: Engine) -> None:
    """Raises AssertionError when a total is not the sum of what is held."""
    memory = engine.memory
    used = [0] * len(memory.waiting.used)
    parked = 0
    claims = {claim for shard in engine.shards.values() for claim in shard.claims.values()}
    for number, shard in engine.shards.items():
        held = [sum(record.weight for record in backlog.records) for backlog in shard.backlogs]
        for record in shard.deferred:
            held[record.band] += record.weight
        for claim in shard.claims.values():
            held[claim.band] += claim.record.weight
            if claim.phase is Phase.WAITING and claim.wait_reason is not Wait.RETRY:
                parked += claim.record.weight
        for refusal in engine.refusals:
            if refusal.shard is shard:
                held[refusal.band] += refusal.letter.record.weight
        assert held == shard.held, f"shard {number} holds {held} bytes, its account says {shard.held}"
        used = [before + now for before, now in zip(used, held, strict=True)]
    assert used == memory.waiting.used, f"{used} bytes wait, the account says {memory.waiting.used}"
    assert parked == memory.parked, f"{parked} bytes are parked, the account says {memory.parked}"
    active = [0] * len(memory.active.used)
    for claim in claims | set(engine.running.values()):
        active[claim.band] += claim.load
    assert active == memory.active.used, f"{active} bytes are active, the account says {memory.active.used}"
    for share in (memory.waiting, memory.active):
        assert share.total == sum(share.used), f"{share.total} is not the sum of {share.used}"
    cells = {(band, number) for number in engine.shards for band in range(len(used))}
    assert memory.heavy <= cells, f"{memory.heavy - cells} are paused and not ours"
    paused = {(band, n) for n, shard in engine.shards.items() for band, b in enumerate(shard.backlogs) if b.paused}
    assert memory.heavy <= paused, f"{memory.heavy - paused} count as paused and are not"
