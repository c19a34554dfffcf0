"""Judges what a cluster has by what the topics of a prefix need. Pure.

`judge(facts, names)` depends only on its arguments; admin.py gathers the facts. Every finding says what, where, the current
value, the required value, and the command that fixes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from streamtask.config import TopicNames
from streamtask.config.kafka import CLIENT_ID_PREFIX
from streamtask.kafka.connection_errors import create_command
from streamtask.kafka.topics import (
    DEAD_ROOM_BYTES,
    REFRESH_MS,
    REPLICAS,
    REQUESTS_RETENTION_MS,
    Severity,
    replication,
    rules_of,
    sharded,
)

METADATA_CHARACTERS = 4_000  # the longest ledger
METADATA_BYTES_MIN = 4_096  # Kafka's default; librdkafka sends one character more than it was given
_ERROR = Severity.ERROR


class Fix(NamedTuple):
    """A topic setting that `topics create --fix` sets."""

    topic: str
    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A misconfiguration: what, where, the current value, the required value, the command that fixes it."""

    severity: Severity
    code: str
    what: str
    where: str
    value: str = ""
    needed: str = ""
    command: str | None = None
    fix: Fix | None = None

    def __str__(self) -> str:
        seen = f" is {self.value}, must be {self.needed}" if self.needed else ""
        fix = f"  Fix it: {self.command}" if self.command else ""
        return f"{self.severity.value}: {self.where}: {self.code}{seen}. {self.what}{fix}"


class PartitionFacts(NamedTuple):
    """leader: None if the partition has none now. replicas, in_sync: broker ids."""

    leader: int | None
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic that exists. config: effective values; {} if this client may not read them."""

    name: str
    topic_id: str
    partitions: tuple[PartitionFacts, ...]
    config: Mapping[str, str] = field(default_factory=dict)


class MemberFacts(NamedTuple):
    """A member of any consumer group that has partitions of this prefix's request topics."""

    group: str
    client_id: str
    host: str


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What is known of a cluster that concerns one prefix.

    broker_config  effective values by broker id; {} if they may not be read
    unreadable     what could not be read, with the broker's message
    """

    bootstrap: str
    cluster_id: str
    brokers: tuple[int, ...]
    topics: Mapping[str, TopicFacts]
    broker_config: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    members: tuple[MemberFacts, ...] = ()
    unreadable: tuple[str, ...] = ()


def app_of(client_id: str) -> str | None:
    """The app's label in the client.id of a worker, `streamtask-<app>@<host>-<process>`. A foreign client.id is its own label;
    None if there is no label in it.
    """
    if not client_id.startswith(CLIENT_ID_PREFIX):
        return client_id
    name, at, _ = client_id.removeprefix(CLIENT_ID_PREFIX).partition("@")
    return name if at else None


def judge(facts: ClusterFacts, names: TopicNames) -> list[Finding]:
    """Every misconfiguration of the cluster that concerns this prefix; errors first."""
    found = [
        *_missing(facts, names),
        *_partition_counts(facts, names),
        *_configs(facts, names),
        *_copies(facts, names),
        *_availability(facts, names),
        *_sizes(facts, names),
        *_brokers(facts, names),
        *_members(facts, names),
        *_unreadable(facts),
    ]
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def smallest(values: Iterable[int]) -> int | None:
    return min(values, default=None)


def max_message_bytes(facts: ClusterFacts, topics: Iterable[str]) -> int | None:
    """The smallest max.message.bytes of these topics; None if it cannot be read."""
    return smallest(
        int(facts.topics[name].config["max.message.bytes"])
        for name in topics
        if name in facts.topics and "max.message.bytes" in facts.topics[name].config
    )


def topics_create_command(names: TopicNames, *options: str) -> str:
    return " ".join((create_command(names.prefix), *options))


def _missing(facts: ClusterFacts, names: TopicNames) -> Iterator[Finding]:
    missing = [name for name in names.all if name not in facts.topics]
    if missing:
        yield Finding(
            severity=_ERROR,
            code="topics_missing",
            what="Workers, the query service and clients need every topic.",
            where=", ".join(missing),
            value="missing",
            needed="present",
            command=topics_create_command(names),
        )


def _partition_counts(facts: ClusterFacts, names: TopicNames) -> Iterator[Finding]:
    counts = {name: len(facts.topics[name].partitions) for name in sharded(names) if name in facts.topics}
    most = max(counts.values(), default=0)
    for name, count in counts.items():
        if count < most:
            yield Finding(
                severity=_ERROR,
                code="partition_counts",
                what=f"Shards {count}..{most - 1} are idle: a shard needs a partition in every band, status and schedule.",
                where=name,
                value=str(count),
                needed=str(most),
                command=topics_create_command(names, "--grow", f"--partitions {most}"),
            )


def _configs(facts: ClusterFacts, names: TopicNames) -> Iterator[Finding]:
    for name, rules in rules_of(names).items():
        topic = facts.topics.get(name)
        if topic is None:
            continue
        for rule in rules:
            value = topic.config.get(rule.name)
            if value is None or rule.fits(value):
                continue
            severity = rule.severity
            if name == names.status and rule.name == "retention.ms" and int(value) <= REFRESH_MS:
                severity = _ERROR  # even a live task would be forgotten before its event is published again
            yield Finding(
                severity=severity,
                code=rule.name,
                what=rule.why,
                where=name,
                value=value,
                needed=rule.value,
                command=topics_create_command(names, "--fix"),
                fix=Fix(name, rule.name, rule.value),
            )


def _copies(facts: ClusterFacts, names: TopicNames) -> Iterator[Finding]:
    replicas_needed, in_sync_needed = replication(len(facts.brokers))
    if replicas_needed == 1 and facts.topics:
        yield Finding(
            severity=Severity.WARNING,
            code="brokers",
            what="With fewer than three brokers each request is stored on one disk only, and lost with that disk.",
            where="cluster",
            value=str(len(facts.brokers)),
            needed=str(REPLICAS),
        )
    for name in names.all:
        topic = facts.topics.get(name)
        if topic is None:
            continue
        replicas = smallest(len(partition.replicas) for partition in topic.partitions) or 0
        if replicas < replicas_needed:
            yield Finding(
                severity=Severity.WARNING,
                code="replication",
                what="A partition with fewer replicas is lost when their disks are.",
                where=name,
                value=str(replicas),
                needed=str(replicas_needed),
                command=f"kafka-reassign-partitions.sh --bootstrap-server {facts.bootstrap} "
                "--reassignment-json-file FILE --execute",
            )
        if "min.insync.replicas" in topic.config:
            yield from _in_sync(facts, names, topic, replicas, in_sync_needed)


def _in_sync(
    facts: ClusterFacts, names: TopicNames, topic: TopicFacts, replicas: int, needed: int
) -> Iterator[Finding]:
    minimum = int(topic.config["min.insync.replicas"])
    if minimum > replicas:
        severity, wanted = _ERROR, min(needed, replicas)
        what = "More replicas must be in sync than exist: nothing can be written."
    elif minimum == replicas > 1:
        severity, wanted = Severity.WARNING, replicas - 1
        what = "Nothing can be written while one broker is down."
    elif minimum < needed < replicas:
        severity, wanted = Severity.WARNING, needed
        what = "An acknowledged request may be stored on one disk only."
    else:
        return
    yield Finding(
        severity=severity,
        code="min.insync.replicas",
        what=what,
        where=topic.name,
        value=str(minimum),
        needed=str(wanted),
        command=topics_create_command(names, "--fix"),
        fix=Fix(topic.name, "min.insync.replicas", str(wanted)),
    )


def _availability(facts: ClusterFacts, names: TopicNames) -> Iterator[Finding]:
    for name in names.all:
        topic = facts.topics.get(name)
        if topic is None:
            continue
        headless = [number for number, partition in enumerate(topic.partitions) if partition.leader is None]
        minimum = int(topic.config.get("min.insync.replicas", "1"))
        thin = [number for number, partition in enumerate(topic.partitions) if len(partition.in_sync) < minimum]
        for code, what, numbers, needed in (
            ("no_leader", "These partitions can be neither read nor written now.", headless, "a leader"),
            (
                "under_min_isr",
                "These partitions cannot be written now.",
                sorted({*thin} - {*headless}),
                f"{minimum} in sync",
            ),
        ):
            if numbers:
                yield Finding(
                    severity=_ERROR,
                    code=code,
                    what=f"{what} Bring the missing brokers back.",
                    where=name,
                    value=f"partitions {', '.join(map(str, numbers))}",
                    needed=needed,
                )


def _sizes(facts: ClusterFacts, names: TopicNames) -> Iterator[Finding]:
    """Dead letters hold the request's own bytes; a status event above its topic's limit is replaced by a FAILED one."""
    largest = max(
        (
            int(facts.topics[name].config["max.message.bytes"])
            for name in names.requests
            if name in facts.topics and "max.message.bytes" in facts.topics[name].config
        ),
        default=None,
    )
    if largest is None:
        return
    for name, needed, what in (
        (
            names.dead,
            largest + DEAD_ROOM_BYTES,
            "A dead letter that does not fit is replaced by a reference to its request.",
        ),
        (names.status, largest, "A task whose result is larger than this fails with `result_too_large`."),
    ):
        limit = max_message_bytes(facts, (name,))
        if limit is not None and limit < needed:
            yield Finding(
                severity=Severity.WARNING,
                code="max.message.bytes",
                what=what,
                where=name,
                value=str(limit),
                needed=str(needed),
                command=topics_create_command(names, "--fix"),
                fix=Fix(name, "max.message.bytes", str(needed)),
            )


def _brokers(facts: ClusterFacts, names: TopicNames) -> Iterator[Finding]:
    for name in names.all:
        topic = facts.topics.get(name)
        if topic is not None and topic.config.get("unclean.leader.election.enable") == "true":
            yield Finding(
                severity=_ERROR,
                code="unclean.leader.election.enable",
                what="A broker that missed acknowledged records may become leader: they are lost and offsets go back.",
                where=name,
                value="true",
                needed="false",
                command=topics_create_command(names, "--fix"),
                fix=Fix(name, "unclean.leader.election.enable", "false"),
            )
    kept = [facts.topics[name].config.get("retention.ms") for name in names.requests if name in facts.topics]
    longest = max((int(value) for value in kept if value is not None), default=REQUESTS_RETENTION_MS)
    for broker, config in facts.broker_config.items():
        where = f"broker {broker}"
        minutes = config.get("offsets.retention.minutes")
        if minutes is not None and int(minutes) * 60_000 < longest:
            yield Finding(
                severity=Severity.WARNING,
                code="offsets.retention.minutes",
                what="If all workers are down for longer than this, Kafka deletes their positions before the requests "
                "(KIP-211). Workers then recover from the status topic, which takes time.",
                where=where,
                value=minutes,
                needed=str(-(-longest // 60_000)),
                command="set it in server.properties of every broker and restart them one by one",
            )
        metadata = config.get("offset.metadata.max.bytes")
        if metadata is not None and int(metadata) < METADATA_BYTES_MIN:
            yield Finding(
                severity=_ERROR,
                code="offset.metadata.max.bytes",
                what=f"A ledger has up to {METADATA_CHARACTERS} characters; a transaction with one above this limit aborts.",
                where=where,
                value=metadata,
                needed=str(METADATA_BYTES_MIN),
                command="set it in server.properties of every broker and restart them one by one",
            )


def _members(facts: ClusterFacts, names: TopicNames) -> Iterator[Finding]:
    others: dict[str, set[str]] = {}
    apps: dict[str, str] = {}
    for member in facts.members:
        if member.group != names.group:
            others.setdefault(member.group, set()).add(member.client_id)
        elif (app := app_of(member.client_id)) is not None:
            apps.setdefault(app, f"{member.client_id} ({member.host})")
    for group, clients in others.items():
        works = any(client.startswith(CLIENT_ID_PREFIX) for client in clients)
        yield Finding(
            severity=Severity.WARNING if works else Severity.INFO,
            code="second_group",
            what="Another group reads the requests. If its members are workers, they fail this group's tasks "
            "and write to the same histories: give it its own prefix.",
            where=f"group {group}",
            value=", ".join(sorted(clients)),
            needed=f"workers only in {names.group}",
        )
    if len(apps) > 1:
        yield Finding(
            severity=Severity.WARNING,
            code="second_app",
            what="All workers of a prefix must know every task type, or tasks fail with unknown_task_type. Give each app "
            "its own prefix.",
            where=f"group {names.group}",
            value=", ".join(sorted(apps.values())),
            needed="one app",
        )


def _unreadable(facts: ClusterFacts) -> Iterator[Finding]:
    for text in facts.unreadable:
        yield Finding(severity=Severity.INFO, code="unreadable", what="Not checked.", where=text)
