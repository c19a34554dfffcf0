"""The clients of the simulation: what they ask for, when, and how badly."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from streamtask.domain.model import BANDS, RequestRecord, TaskRequest

from .handlers import POLICIES, WORDS


@dataclass(slots=True)
class Wish:
    """A request before it is in the log."""

    band: int
    shard: int
    request: TaskRequest | None
    task_id: str
    priority: int = 5
    problem: tuple[str, str] | None = None
    expires_ms: int | None = None
    not_before_ms: int | None = None
    value: bytes = b"{}"
    opens: bool = False  #: its parameters are dropped while it waits (RequestRecord.text)

    def record(self, offset: int, at_ms: int) -> RequestRecord:
        return RequestRecord(
            self.band,
            self.shard,
            offset,
            at_ms,
            self.task_id,
            self.request,
            self.priority,
            at_ms,
            self.value,
            problem=self.problem,
            expires_ms=self.expires_ms,
            not_before_ms=self.not_before_ms,
            text=self.value if self.opens and self.request is not None else None,
        )

    @property
    def lost_max(self) -> int:
        policy = POLICIES.get(self.request.task_type) if self.request is not None else None
        return policy.lost_max if policy is not None else 3


def wish(task_id: str, *script: str, task_type: str = "quick", band: int = 0, shard: int = 0, **fields: Any) -> Wish:
    """A plain request: `script` as in handlers.py."""
    request = TaskRequest.model_construct(
        task_type=task_type,
        description="",
        parameters={"script": list(script)} if script else None,
        priority=fields.pop("priority", None),
        timeout_seconds=fields.pop("timeout_seconds", None),
        ordering_key=fields.pop("ordering_key", None),
        labels=None,
    )
    middle = BANDS[band].middle
    return Wish(band, shard, request, task_id, request.priority or middle, **fields)


@dataclass(slots=True)
class Clients:
    """Draws wishes. `known`: task_ids used so far, for duplicates and cancels."""

    rng: random.Random
    bands: int
    shards: int
    epoch_ms: int
    known: list[tuple[str, int]] = field(default_factory=list)

    def task_id(self) -> str:
        bits = f"{self.rng.getrandbits(128):032x}"
        return f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}"

    def next(self, now_ms: int) -> Wish:
        rng = self.rng
        band = rng.randrange(self.bands)
        if self.known and rng.random() < 0.06:
            task_id, shard = rng.choice(self.known)
        else:
            task_id, shard = self.task_id(), rng.randrange(self.shards)
        kind = rng.random()
        if kind < 0.04:
            return Wish(band, shard, None, "", problem=("invalid_request", "not JSON"))
        self.known.append((task_id, shard))
        if kind < 0.08:
            return Wish(band, shard, None, task_id, problem=("invalid_request", "priority: 11"))
        if kind < 0.13:
            return wish(task_id, task_type="nobody_knows", band=band, shard=shard)
        script = [self._word() for _ in range(rng.choice((1, 1, 2, 3)))]
        task_type = rng.choice(("quick", "quick", "once", "thread", "single", "fragile"))
        if task_type == "quick" and rng.random() < 0.1 and script[-1] not in ("kill", "crash"):
            task_type = "steadfast"
        fields: dict[str, Any] = {"priority": rng.randint(BANDS[band].priority_min, BANDS[band].priority_max)}
        if (task_type != "once" and {"hang", "stubborn"} & set(script)) or rng.random() < 0.1:
            fields["timeout_seconds"] = rng.choice((0.05, 0.3, 1.0))
        if rng.random() < 0.2:
            fields["ordering_key"] = rng.choice("ab")
        elif rng.random() < 0.1:
            fields["not_before_ms"] = self.epoch_ms + now_ms + rng.choice((100, 2_000, 9_000))
        if rng.random() < 0.12:
            fields["expires_ms"] = self.epoch_ms + now_ms + rng.choice((1, 200, 3_000))
        return wish(task_id, *script, task_type=task_type, band=band, shard=shard, **fields)

    def _word(self) -> str:
        return self.rng.choice(WORDS)
