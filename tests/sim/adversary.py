"""The adversary: a budget of faults and the moments at which it spends them.

Each seed draws its own mix (some runs meet one kind of fault often, some meet all of them), so that rare pairs are met too.
Faults between two asks strike exactly there: before an ask reaches the broker, or after it took effect and before its
answer is known. `calm` ends all of it: from then on everything must become terminal.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamtask.domain.ports import (
    AbortTransaction,
    CommitPlain,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    Fetch,
    Flush,
    ListOffsets,
    Poll,
    Produce,
    ReadSettled,
    RenewProducer,
    SendOffsets,
)

from .handlers import Execution

if TYPE_CHECKING:
    from .cluster import Cluster
    from .process import Process

STRIKES = ("crash", "freeze", "expire", "move", "fence", "timeout", "jump", "drain")
TWISTS = ("retry", "abort", "doubt", "copy", "claim_doubt", "stale", "left")
PLACES = ("retention", "gap", "outage", "sick", "slow", "away", "leaderless")

_RETRY = Fault(FaultKind.RETRY, "the network")
_ABORT = Fault(FaultKind.ABORT, "a broker moved")
_STALE = Fault(FaultKind.STALE, "REBALANCE_IN_PROGRESS")
_RETRIED = (ListOffsets, FenceIds, ReadSettled, SendOffsets, AbortTransaction, RenewProducer, Produce)
_ABORTED = (Produce, Flush, SendOffsets, EndTransaction)
_LEFT = (Flush, SendOffsets)


@dataclass(slots=True)
class Mix:
    """What one run meets. shares: how often each kind is drawn; `strike`, `twist`: chance at one moment."""

    shares: dict[str, float] = field(default_factory=dict)
    strikes_left: int = 0
    strike: float = 0.0
    twist: float = 0.0
    slow_markers: float = 0.0
    skew_ms: int = 0

    @classmethod
    def drawn(cls, rng: random.Random) -> Mix:
        kinds = [k for k in STRIKES + TWISTS + PLACES if rng.random() < rng.choice((0.2, 0.5, 0.8))]
        return cls(
            {k: rng.choice((1.0, 1.0, 3.0)) for k in kinds},
            rng.choice((0, 2, 4, 8, 12)),
            rng.choice((0.01, 0.03, 0.08)),
            rng.choice((0.0, 0.01, 0.04, 0.1)),
            rng.choice((0.0, 0.0, 0.1, 0.5)),
            rng.choice((0, 50, 2_000, 3_600_000)),
        )


class Adversary:
    """Strikes and twists, drawn from a mix. A calm one does nothing."""

    def __init__(self, rng: random.Random, mix: Mix | None = None) -> None:
        self.rng = rng
        self.mix = mix or Mix()
        self.calm = mix is None
        self.struck: dict[str, int] = {}
        self.away_until_ms = 0  # no broker answers anybody before this time
        self._strikes = [k for k in STRIKES if k in self.mix.shares]
        self._weights = [self.mix.shares[k] for k in self._strikes]

    def skew_ms(self) -> int:
        return self.rng.randint(-self.mix.skew_ms, self.mix.skew_ms) if self.mix.skew_ms else 0

    def strikes(self, cluster: Cluster, process: Process, ask: object, *, before: bool) -> bool:
        """Maybe a fault at this moment. True when the process must not go on with what it was about to do."""
        mix = self.mix
        if self.calm or not mix.strikes_left or not self._strikes or not process.alive or process.frozen:
            return False
        chance = mix.strike / 10 if isinstance(ask, Poll | Fetch) else mix.strike
        if self.rng.random() >= chance:
            return False
        kind = self.rng.choices(self._strikes, self._weights)[0]
        if not getattr(self, "_" + kind)(cluster, process):
            return False
        mix.strikes_left -= 1
        self.struck[kind] = self.struck.get(kind, 0) + 1
        if before and process.frozen and type(ask) is not Execution:
            return self.rng.random() < 0.5  # else the ask is on the wire already
        return before and (not process.alive or process.frozen)

    def _crash(self, cluster: Cluster, process: Process) -> bool:
        cluster.crash(process)
        return True

    def _freeze(self, cluster: Cluster, process: Process) -> bool:
        if sum(not p.frozen for p in cluster.processes if p is not None) < 2 and self.rng.random() < 0.7:
            return False
        length = self.rng.choice((50, 400, 3_000, 12_000, 12_000, 40_000, None))
        cluster.freeze(process, length)
        return True

    def _expire(self, cluster: Cluster, process: Process) -> bool:
        return cluster.expire(process)

    def _move(self, cluster: Cluster, process: Process) -> bool:
        group = cluster.broker.group
        held = group.held(process.member or -1)
        others = [m for m in group.members if m != process.member]
        if not held or not others:
            return False
        shard, member = self.rng.choice(held), self.rng.choice(others)
        cluster.note("group", f"moves shard {shard} from {process.name}")
        group.move(shard, member)
        cluster.stir_all()
        return True

    def _fence(self, cluster: Cluster, process: Process) -> bool:
        """Somebody else claims a shard that this id is still recorded for."""
        cluster.note("broker", f"{process.producer.id} is fenced from outside")
        return cluster.broker.init(process.producer.id) or True

    def _timeout(self, cluster: Cluster, process: Process) -> bool:
        return cluster.time_out(process.producer.id)

    def _drain(self, cluster: Cluster, process: Process) -> bool:
        if process.leaving:
            return False
        grace_ms = self.rng.choice((0, 100, 3_000))
        cluster.note(process.name, f"DRAINS within {grace_ms} ms")
        process.drain(grace_ms)
        return True

    def _jump(self, cluster: Cluster, process: Process) -> bool:
        process.skew_ms += self.rng.randint(-2_000, 2_000)
        return True

    def twist(self, process: Process, ask: object) -> Fault | str:
        """What goes wrong with this ask: a fault in place of it, a word that its performer knows, or ""."""
        mix = self.mix
        if isinstance(ask, Poll | Fetch):
            return ""
        if process.cluster.timeline.now < self.away_until_ms:
            return self._unanswered(ask)
        if self.calm or not mix.twist or self.rng.random() >= mix.twist:
            return ""
        shares, rng = mix.shares, self.rng
        if type(ask) is EndTransaction:
            kinds: list[str] = [k for k in ("abort", "doubt", "copy") if k in shares]
            kind = rng.choice(kinds) if kinds else ""
            if kind == "doubt":
                return rng.choice(("applied", "late", "never"))
            return _ABORT if kind == "abort" else kind
        if type(ask) is CommitPlain:
            kinds = [k for k in ("claim_doubt", "copy", "stale") if k in shares]
            kind = rng.choice(kinds) if kinds else ""
            if kind == "claim_doubt":
                return rng.choice(("applied", "late", "never"))
            return _STALE if kind == "stale" else kind
        if type(ask) is SendOffsets and "stale" in shares and rng.random() < 0.3:
            return _STALE
        if isinstance(ask, _LEFT) and "left" in shares and rng.random() < 0.3:
            return "left"
        if isinstance(ask, _ABORTED) and "abort" in shares and rng.random() < 0.5:
            return _ABORT
        if isinstance(ask, _RETRIED) and "retry" in shares:
            return _RETRY
        return ""

    @staticmethod
    def _unanswered(ask: object) -> Fault | str:
        """What an ask comes to while no broker answers: the transaction did not happen, or nobody knows."""
        if type(ask) is EndTransaction:
            return "never"
        if isinstance(ask, _ABORTED):
            return _ABORT
        return _STALE if type(ask) is CommitPlain else _RETRY if isinstance(ask, _RETRIED) else ""
