"""What happens between workers and brokers: a network that is cut, deaf, slow, or resets its connections."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from tests.chaos.faults import Acting, Draw, Fault
from tests.chaos.network import NETWORKS
from tests.chaos.stage import Stage

NETWORK = frozenset({"network"})


def disturb(mode: str, says: str) -> Callable[[Stage, Mapping[str, Any]], Acting]:
    def act(stage: Stage, args: Mapping[str, Any]) -> Acting:
        network = stage.network
        assert network is not None, "these workers have no proxies"
        names, hold_s = args["networks"], float(args.get("hold_s", 0.0))
        stage.say(f"network {' and '.join(names)} {says.format(**args)}")
        hit = [host for host in stage.fleet.hosts if host.network in names and mode != "delay"]
        pids = [pid for host in hit for pid in host.workers()]
        for pid in pids:
            stage.fleet.suffers(pid, "cut off")
        for name in names:
            network.order(name, mode, float(args.get("delay_s", 0.0)))
        if mode == "reset":
            for pid in pids:
                stage.fleet.over(pid, "cut off")
            return
        try:
            yield hold_s
        finally:
            for name in names:
                network.order(name, "pass")
            for pid in pids:
                stage.fleet.over(pid, "cut off")
        stage.say(f"network {' and '.join(names)} is whole", undone=True)

    return act


def _networks(rng: random.Random) -> dict[str, Any]:
    """One of them, mostly."""
    return {"networks": list(NETWORKS) if rng.random() < 0.25 else [rng.choice(NETWORKS)]}


def _held(rng: random.Random) -> dict[str, Any]:
    return _networks(rng) | {"hold_s": round(rng.uniform(1, 12), 1)}


def _delayed(rng: random.Random) -> dict[str, Any]:
    return _held(rng) | {"delay_s": rng.choice((0.02, 0.1, 0.4))}


def _fault(name: str, does: str, mode: str, says: str, draw: Draw, weight: int) -> Fault:
    return Fault(name, does, "the network is whole again", disturb(mode, says), draw, NETWORK, weight)


FAULTS = (
    _fault("cut_network", "connections closed, new ones too", "cut", "is cut for {hold_s} s", _held, 2),
    _fault("black_hole", "nothing arrives, connections stay open", "hole", "is a black hole for {hold_s} s", _held, 3),
    _fault("slow_network", "each piece is late", "delay", "is {delay_s} s slow for {hold_s} s", _delayed, 2),
    _fault("reset_network", "every connection is reset", "reset", "resets its connections", _networks, 2),
)
