"""Queries a cluster about the topics of a prefix, creates them, and fixes their settings.

Only `ensure_topics` and `delete_topics` change anything. Every call ends within its time limit: without an answer it raises
`Unreachable`, with the last error that the client saw (the only place where a wrong password shows). What the facts mean is
in topic_checks.py; what the topics need is in topics.py. `settings` is a KafkaSettings, or a plain dict of client settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from confluent_kafka import KafkaError

from streamtask.config import PARTITIONS_DEFAULT, TopicNames
from streamtask.kafka.admin_session import MESSAGE_MAX_BYTES, GroupMember, Settings, conversation
from streamtask.kafka.connection_errors import missing_topics
from streamtask.kafka.topic_checks import ClusterFacts, Finding, Fix, judge
from streamtask.kafka.topics import sharded

TIMEOUT_S = 10.0
CREATE_TIMEOUT_S = 30.0  # three brokers agreeing on 84 partitions on a loaded machine


@dataclass(frozen=True, slots=True)
class Ensured:
    """What ensure_topics did, and what is left for people to decide.

    created, grown  topic names
    fixed           settings that were set
    findings        what still does not meet the requirements
    """

    created: tuple[str, ...]
    grown: tuple[str, ...]
    fixed: tuple[Fix, ...]
    findings: tuple[Finding, ...]


# --- Questions --------------------------------------------------------------------------------------------------------


def cluster_id(settings: Settings, *, timeout_s: float = TIMEOUT_S) -> str:
    """The cluster's own id, which is part of every derived task_id."""
    with conversation(settings, timeout_s) as session:
        return session.cluster()[0]


def topic_ids(settings: Settings, topics: Iterable[str], *, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """{topic: its id}; a topic that was deleted and recreated has a new id. Raises TopicsMissing."""
    wanted = tuple(topics)
    with conversation(settings, timeout_s) as session:
        there = session.topics(wanted)
    _refuse_missing(wanted, there)
    return {name: there[name].topic_id for name in wanted}


def partition_count(settings: Settings, names: TopicNames, *, timeout_s: float = TIMEOUT_S) -> int:
    """The number of complete shards: those whose partitions all exist. Raises TopicsMissing."""
    with conversation(settings, timeout_s) as session:
        there = session.topics(names.all)
    _refuse_missing(names.all, there)
    return min(len(there[name].partitions) for name in sharded(names))


def smallest_max_message_bytes(settings: Settings, topics: Iterable[str], *, timeout_s: float = TIMEOUT_S) -> int:
    """The smallest max.message.bytes of these topics; Kafka's default if none may be read. Raises TopicsMissing."""
    wanted = tuple(topics)
    with conversation(settings, timeout_s) as session:
        there = session.topics(wanted)
        _refuse_missing(wanted, there)
        configs = session.topic_configs(wanted)
    limits = [int(config["max.message.bytes"]) for config in configs.values() if "max.message.bytes" in config]
    return min(limits, default=MESSAGE_MAX_BYTES)


def cluster_facts(settings: Settings, names: TopicNames, *, timeout_s: float = TIMEOUT_S) -> ClusterFacts:
    """Everything that judge() needs. What may not be read is listed, not raised."""
    with conversation(settings, timeout_s) as session:
        return session.facts(names)


def group_members(
    settings: Settings, names: TopicNames, *, timeout_s: float = TIMEOUT_S
) -> tuple[str, tuple[GroupMember, ...]]:
    """(state of the workers' group, its members by client id). A group without any member ever is empty."""
    with conversation(settings, timeout_s) as session:
        return session.group(names)


def check_topics(settings: Settings, names: TopicNames, *, timeout_s: float = TIMEOUT_S) -> list[Finding]:
    """Every finding about the topics of this prefix; errors first, [] if all is well."""
    return judge(cluster_facts(settings, names, timeout_s=timeout_s), names)


# --- Changes ----------------------------------------------------------------------------------------------------------


def ensure_topics(
    settings: Settings,
    names: TopicNames,
    *,
    partitions: int = PARTITIONS_DEFAULT,
    grow: bool = False,
    fix: bool = False,
    timeout_s: float = CREATE_TIMEOUT_S,
) -> Ensured:
    """Create the topics that are missing; with `grow` add partitions, with `fix` correct settings.

    partitions  of new topics, unless some exist already: then new ones get as many as those have. With `grow` every
                sharded topic gets at least this many (this moves keys to other partitions, so only on request)

    Returns when every partition has a leader. Several processes may call it at once.
    """
    with conversation(settings, timeout_s) as session:
        before = session.facts(names)
        existing = [len(before.topics[name].partitions) for name in sharded(names) if name in before.topics]
        count = max([*existing, partitions] if grow or not existing else existing)
        created = session.create(names, before, count)
        grown = session.grow(names, before, count) if grow else ()
        session.await_leaders(names, count if grow or not existing else min(existing))
        facts = session.facts_of_all(names)
        fixed: tuple[Fix, ...] = ()
        if fix:
            fixed = tuple(finding.fix for finding in judge(facts, names) if finding.fix is not None)
            session.set(fixed)
            facts = session.facts_of_all(names) if fixed else facts
    return Ensured(created, grown, fixed, tuple(judge(facts, names)))


def delete_topics(settings: Settings, names: TopicNames, *, timeout_s: float = TIMEOUT_S) -> None:
    """Delete every topic of the prefix with its records; returns when a broker no longer lists them. For tests and demos."""
    with conversation(settings, timeout_s) as session:
        there = session.topics(names.all)
        if there:
            for future in session.client.delete_topics(list(there), request_timeout=session.left()).values():
                session.answer(future, ignore=(KafkaError.UNKNOWN_TOPIC_OR_PART,))
            session.await_gone(tuple(there))


def _refuse_missing(wanted: Iterable[str], there: Mapping[str, object]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise missing_topics(missing)
