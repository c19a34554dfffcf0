"""What happens to worker processes and their parents: killed, frozen, drained, aborted, scaled, deployed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Mapping
from typing import Any

from tests.acceptance.harness import SESSION_MS
from tests.chaos.faults import Acting, Fault, pick, picked_for
from tests.chaos.stage import Stage
from tests.processes import gone

HOSTS_MAX = 6
ORPHANS_S = 60.0  # the kernel's signal takes no time; a machine with other work may take some to let them end
WORKERS = frozenset({"workers"})


def kill_worker(stage: Stage, args: Mapping[str, Any]) -> Acting:
    victim = stage.pick(stage.fleet.workers(), args)
    if victim is None:
        return
    host, pid = victim
    stage.say(f"SIGKILL worker {pid} of host {host.number}")
    stage.fleet.kill(pid)
    yield 0.0


def kill_two_workers(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """The second one within the claim that the first one's death has caused."""
    for share in (args["pick"], (args["pick"] + 0.5) % 1.0):
        victim = stage.pick(stage.fleet.workers(), {"pick": share})
        if victim is not None:
            host, pid = victim
            stage.say(f"SIGKILL worker {pid} of host {host.number}")
            stage.fleet.kill(pid)
        yield float(args["apart_s"])


def freeze_worker(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Beyond the session: it wakes up as a zombie."""
    victim = stage.pick(stage.fleet.workers(), args)
    if victim is None or not stage.fleet.freeze(victim[1]):
        return
    host, pid = victim
    stage.say(f"SIGSTOP worker {pid} of host {host.number} for {args['hold_s']} s")
    try:
        yield float(args["hold_s"])
    finally:
        stage.fleet.thaw(pid)
    stage.say(f"SIGCONT worker {pid}", undone=True)


def blink_worker(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Shorter than the session: nobody takes anything over."""
    yield from freeze_worker(stage, args)


def drain_host(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """SIGTERM to a supervisor; another one takes its place when it has gone."""
    host = stage.pick(stage.fleet.supervised(), args)
    if host is None:
        return
    stage.say(f"SIGTERM host {host.number}")
    stage.fleet.drain(host)
    yield from stage.gone(host)
    stage.say(f"host {stage.fleet.start().number} in its place", undone=True)


def abort_host(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """A second SIGTERM while it drains."""
    host = stage.pick(stage.fleet.supervised(), args)
    if host is None:
        return
    stage.say(f"SIGTERM host {host.number}, twice")
    stage.fleet.drain(host)
    yield float(args["apart_s"])
    if host.alive:
        for pid in host.workers():
            stage.fleet.died(pid)
        host.running.process.send_signal(signal.SIGTERM)
    yield from stage.gone(host)
    stage.say(f"host {stage.fleet.start().number} in its place", undone=True)


def kill_supervisor(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Its workers must die with it; nobody tells the group."""
    host = stage.pick(stage.fleet.supervised(), args)
    if host is None:
        return
    stage.say(f"SIGKILL supervisor of host {host.number}")
    pids = host.workers()
    stage.fleet.abandon(host)
    deadline = time.monotonic() + ORPHANS_S
    while left := [pid for pid in pids if not gone(pid)]:
        assert time.monotonic() < deadline, f"workers {left} outlive their supervisor for {ORPHANS_S:g} s"
        yield 0.1
    stage.say(f"host {stage.fleet.start().number} in its place", undone=True)


def kill_guard(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """The process beside a worker that ends what its children have started."""
    guards = stage.fleet.guards()
    guard = stage.pick(guards, args)
    if guard is None:
        return
    stage.say(f"SIGKILL guard {guard}")
    stage.fleet.kill(guard)
    yield 0.0


def kill_child(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """A process that runs process handlers; its task alone is charged."""
    children = stage.fleet.children()
    child = stage.pick(children, args)
    if child is None:
        return
    stage.say(f"SIGKILL child {child}")
    stage.fleet.kill(child)
    yield 0.0


def scale(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """To n hosts; never back by itself: the next one does."""
    wanted = stage.fleet.wanted()
    count = int(args["hosts"])
    stage.say(f"scale from {len(wanted)} to {count}")
    surplus = [host for host in wanted if not host.held][max(count - sum(host.held for host in wanted), 0) :]
    for host in surplus:
        stage.fleet.drain(host)
    while len(stage.fleet.wanted()) < count:
        stage.fleet.start()
        yield 0.2
    for host in surplus:
        yield from stage.gone(host)


def rolling_restart(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """One host after another is drained and replaced."""
    hosts = stage.fleet.supervised()
    stage.say(f"rolling restart of {len(hosts)} hosts")
    for host in hosts:
        if not host.wanted:
            continue
        stage.fleet.drain(host)
        yield from stage.gone(host)
        stage.fleet.start()
        yield float(args["apart_s"])


def _apart(low_s: float, high_s: float) -> Any:
    return lambda rng: pick(rng) | {"apart_s": round(rng.uniform(low_s, high_s), 2)}


def _hosts(rng: random.Random) -> dict[str, Any]:
    return {"hosts": rng.randint(1, HOSTS_MAX)}


SESSION_S = SESSION_MS / 1_000
_FROZEN = frozenset({"frozen"})

FAULTS = (
    Fault("kill_worker", "SIGKILL of a worker process", "its supervisor starts another", kill_worker, pick, WORKERS, 6),
    Fault(
        "kill_two_workers",
        "two SIGKILLs, the second while the first one's shards are claimed",
        "their supervisors start others",
        kill_two_workers,
        _apart(0.1, 3.0),
        WORKERS,
        2,
    ),
    Fault(
        "freeze_worker",
        "SIGSTOP of a worker process beyond its session: a zombie",
        "SIGCONT",
        freeze_worker,
        picked_for(SESSION_S + 2, SESSION_S + 7),
        _FROZEN,
        4,
    ),
    Fault(
        "blink_worker",
        "SIGSTOP of a worker process for less than its session",
        "SIGCONT",
        blink_worker,
        picked_for(0.2, SESSION_S - 1),
        _FROZEN,
        1,
    ),
    Fault("drain_host", "SIGTERM to a supervisor", "a new host", drain_host, pick, WORKERS, 2),
    Fault(
        "abort_host",
        "a second SIGTERM while the first one drains",
        "a new host",
        abort_host,
        _apart(0.05, 1.5),
        WORKERS,
        2,
    ),
    Fault("kill_supervisor", "SIGKILL of a supervisor", "a new host", kill_supervisor, pick, WORKERS, 2),
    Fault("kill_guard", "SIGKILL of a worker's guard", "the worker starts another", kill_guard, pick, WORKERS, 1),
    Fault(
        "kill_child", "SIGKILL of a child with process handlers", "the worker starts another", kill_child, pick, WORKERS
    ),
    Fault("scale", f"to 1..{HOSTS_MAX} hosts, by SIGTERM and new ones", "the next one", scale, _hosts, WORKERS, 4),
    Fault(
        "rolling_restart",
        "each host in turn: SIGTERM, gone, a new one",
        "nothing to undo",
        rolling_restart,
        _apart(0.2, 2.0),
        WORKERS,
        1,
    ),
)
