"""What happens to brokers: killed, frozen, all of them at once, and those that coordinate.

One broker is a whole outage; of three, one may be away (min ISR 2).
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamtask.errors import DevBrokerUnavailable
from tests.chaos.administrator import limit_producers
from tests.chaos.faults import Acting, Fault, lasting, picked_for
from tests.chaos.layout import starved_by
from tests.chaos.load import CLIENTS
from tests.chaos.stage import Stage

BROKERS = frozenset({"brokers"})
RATES = (100_000, 300_000, 1_000_000)  # bytes a second, of each producer to each broker
FREE = 1_000_000_000
LIFT_TRIES = 30
ANSWER_S = 10.0
IN_SYNC_S = 40.0  # the broker's session of 3 s, its start, and what it missed: 2 to 10 s on a quiet machine


def kill_broker(stage: Stage, args: Mapping[str, Any]) -> Acting:
    node = stage.pick([node for node in stage.kafka.nodes if stage.kafka.alive(node)], args)
    if node is not None:
        stage.say(f"SIGKILL broker {node} for {args['hold_s']} s")
        yield from _away(stage, node, float(args["hold_s"]))


def _away(stage: Stage, node: int, hold_s: float) -> Acting:
    try:
        yield from stage.aside(lambda: stage.kafka.kill(node))
        yield hold_s
        yield from stage.aside(lambda: _bring_back(stage, node))
    finally:
        _bring_back(stage, node)
    stage.say(f"broker {node} is back", undone=True)
    yield from _in_sync(stage)


def _in_sync(stage: Stage) -> Acting:
    """Until all replicas are in sync, as whoever restarts brokers one after the other waits.

    Else the next fault may take the last replica of a partition that has two, and Kafka 4.3.1 never writes the marker of a
    transaction that it completes while a partition has no leader (tests/contract/test_kafka_markers.py, decision 0019).
    """
    lagging = ["not asked yet"]
    admin = AdminClient({"bootstrap.servers": stage.kafka.bootstrap, "log_level": 0})

    def look() -> None:
        nonlocal lagging
        try:
            topics = admin.list_topics(timeout=ANSWER_S).topics
        except KafkaException as error:
            lagging = [str(error)]
            return
        lagging = [
            f"{name}-{number}"
            for name, topic in topics.items()
            for number, one in topic.partitions.items()
            if len(one.isrs) < len(one.replicas)
        ]

    deadline = time.monotonic() + IN_SYNC_S
    while lagging and time.monotonic() < deadline:
        yield from stage.aside(look)
        if lagging:
            yield 0.2
    if lagging:
        stage.note(f"not in sync after {IN_SYNC_S:g} s: {lagging[:5]}")


def _bring_back(stage: Stage, node: int) -> None:
    """Start it; once more where a machine with other work took longer than a DevBroker waits."""
    if stage.kafka.alive(node):
        return
    try:
        stage.kafka.start(node)
    except DevBrokerUnavailable:
        stage.note(f"broker {node} is not up in time: once more")
        if stage.kafka.alive(node):
            stage.kafka.kill(node)
        stage.kafka.start(node)


def stop_broker(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """In good order: it hands its partitions over first."""
    node = stage.pick([node for node in stage.kafka.nodes if stage.kafka.alive(node)], args)
    if node is None:
        return
    stage.say(f"SIGTERM broker {node}")
    try:
        yield from stage.aside(lambda: stage.kafka.stop(node))
        yield float(args["hold_s"])
        yield from stage.aside(lambda: _bring_back(stage, node))
    finally:
        _bring_back(stage, node)
    stage.say(f"broker {node} is back", undone=True)
    yield from _in_sync(stage)


def freeze_broker(stage: Stage, args: Mapping[str, Any]) -> Acting:
    node = stage.pick(list(stage.kafka.nodes), args)
    if node is None:
        return
    stage.say(f"SIGSTOP broker {node} for {args['hold_s']} s")
    stage.kafka.freeze(node)
    try:
        yield float(args["hold_s"])
    finally:
        stage.kafka.thaw(node)
    stage.say(f"SIGCONT broker {node}", undone=True)
    yield from _in_sync(stage)


def freeze_all_brokers(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """A whole outage with open connections."""
    stage.say(f"SIGSTOP all brokers for {args['hold_s']} s")
    for node in stage.kafka.nodes:
        stage.kafka.freeze(node)
    try:
        yield float(args["hold_s"])
    finally:
        for node in stage.kafka.nodes:
            stage.kafka.thaw(node)
    stage.say("SIGCONT all brokers", undone=True)
    yield from _in_sync(stage)


def move_group_coordinator(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Its broker is killed: another replica of the partition of __consumer_offsets takes the group over."""
    group = stage.bench.names.group
    node = None

    def ask() -> None:
        nonlocal node
        admin = AdminClient({"bootstrap.servers": stage.kafka.bootstrap, "log_level": 0})
        told = admin.describe_consumer_groups([group], request_timeout=ANSWER_S)[group].result(ANSWER_S)
        node = told.coordinator.id

    yield from stage.aside(ask)
    if node is not None and stage.kafka.alive(node):
        stage.say(f"SIGKILL broker {node}, coordinator of {group}, for {args['hold_s']} s")
        yield from _away(stage, node, float(args["hold_s"]))


def move_transaction_coordinator(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """The broker that leads one of the partitions of __transaction_state is killed."""
    node = None

    def ask() -> None:
        nonlocal node
        admin = AdminClient({"bootstrap.servers": stage.kafka.bootstrap, "log_level": 0})
        leaders = sorted(
            (number, one.leader)
            for number, one in admin.list_topics("__transaction_state", timeout=ANSWER_S)
            .topics["__transaction_state"]
            .partitions.items()
        )
        node = stage.pick([leader for _, leader in leaders if leader > 0], args)

    yield from stage.aside(ask)
    if node is not None and stage.kafka.alive(node):
        stage.say(f"SIGKILL broker {node}, coordinator of transactions, for {args['hold_s']} s")
        yield from _away(stage, node, float(args["hold_s"]))


def starve_partitions(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Its death leaves some partitions under their min ISR: nothing can be written to them, and to all others."""
    node = stage.pick([node for node in stage.kafka.nodes if stage.kafka.alive(node)], args)
    if node is not None:
        starved = starved_by(node, stage.partitions)
        stage.say(f"SIGKILL broker {node} for {args['hold_s']} s: partitions {starved} are under their min ISR")
        yield from _away(stage, node, float(args["hold_s"]))


def freeze_broker_in_claim(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """A worker dies; while the others claim its shards and read their past, a broker freezes: for longer than any step of a
    claim may take, and, some of the time, longer than the watchdog waits."""
    victim = stage.pick(stage.fleet.workers(), args)
    node = stage.pick(list(stage.kafka.nodes), args)
    if victim is None or node is None:
        return
    host, pid = victim
    stage.say(f"SIGKILL worker {pid} of host {host.number}, then SIGSTOP broker {node} for {args['hold_s']} s")
    stage.fleet.kill(pid)
    yield float(args["apart_s"])
    stage.kafka.freeze(node)
    try:
        yield float(args["hold_s"])
    finally:
        stage.kafka.thaw(node)
    stage.say(f"SIGCONT broker {node}", undone=True)
    yield from _in_sync(stage)


def _in_claim(rng: random.Random) -> dict[str, Any]:
    return picked_for(8, 24)(rng) | {"apart_s": round(rng.uniform(0.2, 3.0), 2)}


def limit_quota(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """What comes above it waits in the broker, which says nothing: the producer only sees late answers."""
    rate = int(args["bytes_per_s"])
    stage.say(f"producers may send {rate} bytes a second for {args['hold_s']} s")

    def limit() -> None:
        for name in CLIENTS:  # the load itself goes on
            limit_producers(stage.kafka.bootstrap, FREE, client_id=name)
        limit_producers(stage.kafka.bootstrap, rate)

    lifted = False
    try:
        yield from stage.aside(limit)
        yield float(args["hold_s"])
        yield from _lift(stage)
        lifted = True
    finally:
        if not lifted:
            for _ in _lift(stage):
                pass
    stage.say("no quota", undone=True)


def _lift(stage: Stage) -> Acting:
    """Surely: a controller that moves does not answer at once. A second time it changes nothing."""
    for left in reversed(range(LIFT_TRIES)):
        try:
            yield from stage.aside(lambda: limit_producers(stage.kafka.bootstrap, None))
            return
        except TimeoutError:
            if not left:
                raise
            yield 1.0


def _rates(rng: random.Random) -> dict[str, Any]:
    return lasting(5, 25)(rng) | {"bytes_per_s": rng.choice(RATES)}


FAULTS = (
    Fault(
        "kill_broker",
        "SIGKILL of a broker",
        "started again on its data",
        kill_broker,
        picked_for(2, 12),
        BROKERS,
        4,
    ),
    Fault("stop_broker", "SIGTERM to a broker", "started again", stop_broker, picked_for(1, 8), BROKERS, 1),
    Fault("freeze_broker", "SIGSTOP of a broker", "SIGCONT", freeze_broker, picked_for(4, 14), BROKERS, 3),
    Fault(
        "freeze_all_brokers",
        "SIGSTOP of all brokers",
        "SIGCONT",
        freeze_all_brokers,
        lasting(3, 12),
        BROKERS,
        1,
    ),
    Fault(
        "move_group_coordinator",
        "SIGKILL of the broker that coordinates the workers' group",
        "started again",
        move_group_coordinator,
        lasting(3, 10),
        BROKERS,
        2,
        brokers=3,
    ),
    Fault(
        "move_transaction_coordinator",
        "SIGKILL of a broker that coordinates transactions",
        "started again",
        move_transaction_coordinator,
        picked_for(3, 10),
        BROKERS,
        2,
        brokers=3,
    ),
    Fault(
        "starve_partitions",
        "SIGKILL of a broker without which some partitions cannot be written to",
        "started again",
        starve_partitions,
        picked_for(5, 20),
        BROKERS,
        3,
        brokers=3,
        needs=frozenset({"thin"}),
    ),
    Fault(
        "freeze_broker_in_claim",
        "SIGKILL of a worker, and SIGSTOP of a broker while its shards are claimed",
        "SIGCONT",
        freeze_broker_in_claim,
        _in_claim,
        BROKERS | {"workers"},
        2,
    ),
    Fault(
        "limit_quota",
        "a quota of 100 kB to 1 MB a second for every producer but the load's",
        "lifted",
        limit_quota,
        _rates,
        frozenset({"quota"}),
        3,
    ),
)
