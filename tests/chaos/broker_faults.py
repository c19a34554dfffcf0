"""What happens to brokers: killed, frozen, all of them at once, and those that coordinate.

One broker is a whole outage; of three, one may be away (min ISR 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka.admin import AdminClient

from streamtask.errors import DevBrokerUnavailable
from tests.chaos.faults import Acting, Fault, lasting, picked_for
from tests.chaos.stage import Stage

BROKERS = frozenset({"brokers"})
ANSWER_S = 10.0


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
)
