"""The faults: what each does, how it is undone, what of the system it needs for itself. docs/chaos.md lists them.

A fault is drawn by schedule.py and acted by run.py. `act` is a generator: it does something, yields the seconds until it
wants to go on, and ends when it has undone what it did; closed early, its `finally` undoes it. While a fault is acted, no
other one that claims the same part of the system begins; parts: workers, frozen, brokers, topics, network, clock, quota.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.chaos.stage import Stage

Acting = Generator[float, None, None]
Draw = Callable[[random.Random], dict[str, Any]]


@dataclass(frozen=True)
class Fault:
    """name: as in --faults; weight: how often beside the others; brokers: the fewest that it needs; most: how often in one
    run at most (None: no limit); needs: `held`, a worker whose steps can be held; `thin`, a layout in which some partitions
    have two replicas."""

    name: str
    does: str
    undone: str
    act: Callable[[Stage, Mapping[str, Any]], Acting]
    draw: Draw
    claims: frozenset[str]
    weight: int = 2
    brokers: int = 1
    most: int | None = None
    needs: frozenset[str] = frozenset()


PARTS = frozenset({"workers", "frozen", "brokers", "topics", "network", "clock", "quota"})


def pick(rng: random.Random) -> dict[str, Any]:
    """Whom: a share of those that are there at the time."""
    return {"pick": round(rng.random(), 3)}


def picked_for(low_s: float, high_s: float) -> Draw:
    """Whom, and for how long."""
    return lambda rng: pick(rng) | {"hold_s": round(rng.uniform(low_s, high_s), 1)}


def lasting(low_s: float, high_s: float) -> Draw:
    return lambda rng: {"hold_s": round(rng.uniform(low_s, high_s), 1)}


def table() -> dict[str, Fault]:
    """Every fault, by its name."""
    from tests.chaos import broker_faults, held_faults, network_faults, topic_faults, worker_faults

    modules = (worker_faults, broker_faults, topic_faults, held_faults, network_faults)
    every = [fault for module in modules for fault in module.FAULTS]
    by_name = {fault.name: fault for fault in every}
    assert len(by_name) == len(every), "two faults of one name"
    return by_name
