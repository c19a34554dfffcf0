"""The schedule of a run, a pure function of its seed: which fault begins when, with which arguments.

Whom a fault hits is drawn as a share of those that are there at the time, and a fault waits while another one acts on the
same part of the system; so the plan of a seed is always the same, and what the machine makes of it is not.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tests.chaos.faults import Fault, table

FIRST_S = 2.0
GAP_S = (3.0, 12.0)  # from one fault to the next
CALM_S = 3.0  # before the end nothing begins


@dataclass(frozen=True)
class Planned:
    """at_s: from the beginning of the run; arguments: what the fault's draw returned."""

    at_s: float
    fault: str
    arguments: Mapping[str, Any]


def possible(brokers: int, only: Collection[str] = ()) -> list[Fault]:
    """The faults that a run with so many brokers may have. only: names; none: all. Raises ValueError: an unknown name."""
    faults = table()
    unknown = sorted(set(only) - faults.keys())
    if unknown:
        raise ValueError(f"no such fault: {', '.join(unknown)}. There are: {', '.join(faults)}")
    found = [one for one in faults.values() if one.brokers <= brokers and (not only or one.name in only)]
    if not found:
        raise ValueError(f"none of {', '.join(sorted(only))} is possible with {brokers} broker(s)")
    return found


def schedule(seed: int, minutes: float, brokers: int, only: Collection[str] = ()) -> list[Planned]:
    """The whole plan. Each possible fault comes once before any comes again; then by weight."""
    rng = random.Random(f"schedule {seed}")
    faults = possible(brokers, only)
    left = {fault.name: fault.most for fault in faults}
    bag = rng.sample(faults, len(faults))
    planned: list[Planned] = []
    at_s = FIRST_S
    while at_s < minutes * 60 - CALM_S:
        if not bag:
            again = [fault for fault in faults if left[fault.name] != 0]
            if not again:
                break
            bag = rng.choices(again, [fault.weight for fault in again], k=len(again))
        fault = bag.pop()
        allowed = left[fault.name]
        if allowed == 0:
            continue
        left[fault.name] = None if allowed is None else allowed - 1
        planned.append(Planned(round(at_s, 1), fault.name, fault.draw(rng)))
        at_s += rng.uniform(*GAP_S)
    return planned
