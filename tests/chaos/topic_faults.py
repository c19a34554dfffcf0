"""What happens to topics and offsets under running work: grown, narrowed, cut, forgotten, made anew.

Only tasks.control and tasks.dead are made anew. Where a request topic is, the audit is not clean by its own rule
(docs/audit.md): events of two requests name one origin. Where tasks.status is, the histories are gone that a run is judged by.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from streamtask.errors import StreamtaskError, Unreachable
from streamtask.kafka import admin
from streamtask.kafka.offset_queries import topic_ends
from tests.acceptance.harness import SESSION_MS
from tests.chaos.faults import PARTS, Acting, Fault, lasting, pick
from tests.chaos.fleet import FOREVER_MS, Host, now_ms
from tests.chaos.stage import PARTITIONS, Stage

TOPICS = frozenset({"topics", "brokers"})  # the admin client's questions want all of them there
ANSWER_S = 30.0
PARTITIONS_MAX = 12
SMALL_BYTES = 20_000
TRIES = 5
LEADER_TRIES = 60
MAKE_TRIES = 60
SETTLED_S = 6.0
ASK_S = 3.0


def _admin(stage: Stage) -> AdminClient:
    return AdminClient({"bootstrap.servers": stage.kafka.bootstrap, "log_level": 0})


def _surely(stage: Stage, change: Callable[[], object]) -> Acting:
    """Also where the controller has just moved; a change that was made though its answer was lost is made."""
    for left in reversed(range(TRIES)):
        try:
            yield from stage.aside(change)
            return
        except KafkaException as error:
            if error.args[0].code() == KafkaError.INVALID_PARTITIONS:
                return
            if not left:
                raise
            yield 2.0


def add_partitions(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """One more of each topic, the lead band last, with time between."""
    names, count = stage.bench.names, stage.partitions + 1
    if count > PARTITIONS_MAX:
        return
    client = _admin(stage)
    stage.say(f"partitions from {stage.partitions} to {count}, topic by topic")
    stage.partitions, stage.grown = count, True
    for topic in (names.status, names.schedule, *names.requests[1:], names.requests[0]):

        def grow(topic: str = topic) -> None:
            client.create_partitions([NewPartitions(topic, count)])[topic].result(ANSWER_S)

        yield from _surely(stage, grow)
        yield float(args["hold_s"]) / 4
    for _ in range(LEADER_TRIES):  # the new ones have no leader yet
        try:
            yield from stage.aside(stage.bench.find_partitions)
            return
        except Unreachable:
            yield 1.0
    raise AssertionError("the new partitions get no leader")


def lower_max_bytes(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Of the status topic, while larger results are under way."""
    client, topic = _admin(stage), stage.bench.names.status

    def set_to(value: str | None) -> None:
        operation = AlterConfigOpType.SET if value is not None else AlterConfigOpType.DELETE
        entry = ConfigEntry("max.message.bytes", value, incremental_operation=operation)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        client.incremental_alter_configs([resource])[resource].result(ANSWER_S)

    stage.say(f"max.message.bytes of {topic} = {SMALL_BYTES} for {args['hold_s']} s")
    since_ms = now_ms()
    stage.narrow.append((since_ms, FOREVER_MS))
    try:
        yield from stage.aside(lambda: set_to(str(SMALL_BYTES)))
        yield float(args["hold_s"])
    finally:
        for left in reversed(range(TRIES)):
            try:
                set_to(None)
                break
            except KafkaException:
                if not left:
                    raise
        stage.narrow[-1] = (since_ms, now_ms())
    stage.say("max.message.bytes restored", undone=True)


def delete_records(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """The older half of what a band's partition holds, open requests among it."""
    names = stage.bench.names
    places = [(band, partition) for band in range(len(names.requests)) for partition in range(stage.partitions)]
    place = stage.pick(places, args)
    assert place is not None
    band, partition = place
    name, topic = names.bands[band].name, names.requests[band]
    origins = [one for one in list(stage.load.acked) if one.startswith(f"{name}-{partition}@")]
    ended = stage.bench.ended
    open_ = sorted(int(one.partition("@")[2]) for one in origins if one not in ended)
    if not open_:
        return
    below = open_[len(open_) // 2] + 1
    stage.deleted[name, partition] = max(below, stage.deleted.get((name, partition), 0))
    stage.say(f"records of {topic} [{partition}] below {below}, {len(open_) // 2 + 1} of them open")
    client = _admin(stage)
    part = TopicPartition(topic, partition, below)

    def delete() -> None:
        for future in client.delete_records([part]).values():
            future.result(ANSWER_S)

    yield from stage.aside(delete)


def remake_control(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Under running workers. What it said is forgotten, also what is said while they still read the old one; whatever is
    said later is heard."""
    stage.control_anew_ms = FOREVER_MS
    yield from _made_anew(stage, stage.bench.names.control, away_s=0.0)
    yield float(args["hold_s"])
    stage.control_anew_ms = now_ms()
    stage.say("wishes are heard again", undone=True)


def _made_anew(stage: Stage, topic: str, *, away_s: float) -> Acting:
    names, kafka = stage.bench.names, {"bootstrap.servers": stage.kafka.bootstrap}
    client = _admin(stage)
    stage.say(f"{topic} deleted and made anew after {away_s:g} s")
    stage.fleet.missing.add(topic)
    old = admin.topic_ids(kafka, [topic])
    yield from stage.aside(lambda: client.delete_topics([topic])[topic].result(ANSWER_S))
    yield away_s
    for _ in range(MAKE_TRIES):
        try:
            yield from stage.aside(lambda: admin.ensure_topics(kafka, names, partitions=PARTITIONS))
            if admin.topic_ids(kafka, [topic]) != old:
                return
        except (StreamtaskError, KafkaException):  # it is still being deleted
            pass
        yield 0.5
    raise AssertionError(f"{topic} cannot be made again")


def remake_dead(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """Under running workers. Its letters are gone; who fails meanwhile waits, and nobody else."""
    topic = stage.bench.names.dead
    stage.bench.look()
    stage.dead_anew_ms = FOREVER_MS
    yield from _made_anew(stage, topic, away_s=float(args["hold_s"]))
    yield SETTLED_S  # until the last letter that went to the old one has been answered for
    for left in reversed(range(LEADER_TRIES)):
        try:
            stage.bench.read_anew(topic)
            # Whatever lies below may have had its letter in the old one.
            ends = topic_ends(stage.bench.kafka, stage.bench.names.requests, timeout_s=ASK_S)
            break
        except (StreamtaskError, KafkaException):
            assert left, f"nobody answers for {topic}, or for the ends of the requests"
            yield 1.0
    bands = dict(zip(stage.bench.names.requests, (band.name for band in stage.bench.names.bands), strict=True))
    stage.letters_gone = {(bands[name], partition): end for (name, partition), end in ends.items()}
    stage.dead_anew_ms = now_ms()
    stage.say("letters are kept again", undone=True)


def _empty(stage: Stage) -> Acting:
    """Every worker gone, by SIGTERM and SIGKILL in turn, and the group with them."""
    hosts: list[Host] = stage.fleet.wanted()
    for index, host in enumerate(hosts):
        if index % 2:
            stage.fleet.abandon(host)
        else:
            stage.fleet.drain(host)
    for host in hosts:
        yield from stage.gone(host)
    yield SESSION_MS / 1_000  # of those that told nobody


def _again(stage: Stage, hosts: int, held: int) -> None:
    for _ in range(hosts):
        stage.fleet.start()
    for _ in range(held):
        stage.fleet.start(held=True)


def delete_offsets(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """The group with everything that it has committed."""
    yield from _without_workers(stage, "deleted", _delete_group)


def reset_offsets(stage: Stage, args: Mapping[str, Any]) -> Acting:
    """By somebody's tool: to the beginning or to the end of every partition, without metadata of ours."""
    to_end = bool(args["to_end"])
    yield from _without_workers(
        stage, f"set to the {'end' if to_end else 'beginning'}", _reset_to_end if to_end else _reset
    )


def _without_workers(stage: Stage, what: str, change: Any) -> Acting:
    held = sum(host.held for host in stage.fleet.wanted())
    hosts = len(stage.fleet.wanted()) - held
    stage.say(f"all {hosts + held} hosts stopped, the group's offsets {what}")
    stage.offsets_touched_ms = stage.offsets_touched_ms or now_ms()
    try:
        yield from _empty(stage)
        for _ in range(TRIES):
            try:
                yield from stage.aside(lambda: change(stage))
                break
            except (KafkaException, TimeoutError) as error:  # a member that was killed is still there
                stage.note(f"not yet: {error}")
                yield 2.0
        else:
            raise AssertionError(f"the group is not empty after {TRIES} tries")
    finally:
        _again(stage, max(hosts, 1), held)
    stage.say("hosts started again", undone=True)


def _delete_group(stage: Stage) -> None:
    client, group = _admin(stage), stage.bench.names.group  # kept until it has answered: one that goes answers nothing
    client.delete_consumer_groups([group])[group].result(ANSWER_S)


def _reset(stage: Stage, offset: int | None = 0) -> None:
    names = stage.bench.names
    client = _admin(stage)
    parts = []
    for topic in names.requests:
        for partition in client.list_topics(topic, timeout=ANSWER_S).topics[topic].partitions:
            parts.append(TopicPartition(topic, partition, offset if offset is not None else 0))
    if offset is None:
        from confluent_kafka.admin import OffsetSpec

        asked = client.list_offsets({part: OffsetSpec.latest() for part in parts})  # type: ignore[no-untyped-call]
        parts = [TopicPartition(part.topic, part.partition, f.result(ANSWER_S).offset) for part, f in asked.items()]
    request = ConsumerGroupTopicPartitions(names.group, parts)
    answer = client.alter_consumer_group_offsets([request])[names.group].result(ANSWER_S)
    for part in answer.topic_partitions:
        if part.error is not None:
            raise KafkaException(part.error)


def _reset_to_end(stage: Stage) -> None:
    _reset(stage, None)


def _direction(rng: random.Random) -> dict[str, Any]:
    return {"to_end": rng.random() < 0.5}


FAULTS = (
    Fault(
        "add_partitions",
        "one more partition, topic by topic, the lead band last",
        "never",
        add_partitions,
        lasting(2, 12),
        TOPICS,
        2,
        most=PARTITIONS_MAX - PARTITIONS,
    ),
    Fault(
        "lower_max_bytes",
        f"max.message.bytes of the status topic at {SMALL_BYTES}",
        "restored",
        lower_max_bytes,
        lasting(3, 15),
        TOPICS,
        2,
    ),
    Fault(
        "remake_control",
        "tasks.control deleted and made anew under running workers",
        "never: cancels until then may be forgotten",
        remake_control,
        lasting(10, 15),
        TOPICS | {"workers", "frozen", "network"},
        1,
        most=1,
    ),
    Fault(
        "remake_dead",
        "tasks.dead deleted and made anew under running workers",
        "never: its letters are gone",
        remake_dead,
        lasting(0, 15),
        TOPICS | {"workers", "frozen", "network"},
        1,
        most=1,
    ),
    Fault(
        "delete_records",
        "records below an open request deleted",
        "never: what was open there may end or not",
        delete_records,
        pick,
        TOPICS,
        1,
    ),
    Fault(
        "delete_offsets",
        "all workers stopped, the group's offsets deleted",
        "workers started",
        delete_offsets,
        lambda _rng: {},
        PARTS,
        1,
    ),
    Fault(
        "reset_offsets",
        "all workers stopped, the group's offsets set to beginning or end",
        "workers started",
        reset_offsets,
        _direction,
        PARTS,
        1,
    ),
)
