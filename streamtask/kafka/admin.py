"""Queries a cluster about the topics of a prefix, creates them, and fixes their settings.

Only `ensure_topics` and `delete_topics` change anything. Every call ends within its time limit: without an answer it raises
`Unreachable`, with the last error that the client saw (the only place where a wrong password shows). What the facts mean is
in topic_checks.py; what the topics need is in topics.py. `settings` is a KafkaSettings, or a plain dict of client settings.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from streamtask.config import PARTITIONS_DEFAULT, TopicNames
from streamtask.errors import ClusterError, TopicsMissing, Unreachable
from streamtask.kafka.connection_errors import Heard, hidden_topics
from streamtask.kafka.topic_checks import (
    ClusterFacts,
    Finding,
    Fix,
    MemberFacts,
    PartitionFacts,
    TopicFacts,
    judge,
    max_message_bytes,
    topics_create_command,
)
from streamtask.kafka.topics import DEAD_ROOM_BYTES, config_of, replication, rules_of, sharded

TIMEOUT_S = 10.0
AGAIN_S = 0.05  # between two looks at a cluster that has not reached the awaited state
CREATE_TIMEOUT_S = 30.0  # three brokers agreeing on 84 partitions on a loaded machine
MESSAGE_MAX_BYTES = 1_048_588  # Kafka's default, used when the broker's own may not be read

BROKER_SETTINGS = (
    "offsets.retention.minutes",
    "offset.metadata.max.bytes",
    "message.max.bytes",
    "group.min.session.timeout.ms",
    "group.max.session.timeout.ms",
    "transaction.max.timeout.ms",
)

_UNREACHABLE = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
    }
)
_WORKING = {
    ConsumerGroupState.STABLE,
    ConsumerGroupState.PREPARING_REBALANCING,
    ConsumerGroupState.COMPLETING_REBALANCING,
}

T = TypeVar("T")


class AdminSettings(Protocol):
    """The part of KafkaSettings used here."""

    def admin(self) -> dict[str, Any]:
        """Settings for an AdminClient."""
        ...


Settings = AdminSettings | Mapping[str, Any]


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
    _refuse_missing(names.all, there, names)
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


class GroupMember(NamedTuple):
    """A member of the workers' group: one worker process."""

    member_id: str
    client_id: str
    host: str
    shards: tuple[int, ...]  # [] while the group is moving them


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


def _refuse_missing(wanted: Iterable[str], there: Mapping[str, object], names: TopicNames | None = None) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        command = topics_create_command(names) if names else "streamtask topics create"
        raise TopicsMissing(f"Topics do not exist: {', '.join(missing)}. Create them: {command}")


# --- One conversation with a cluster ----------------------------------------------------------------------------------


@contextmanager
def conversation(settings: Settings, timeout_s: float) -> Iterator[Session]:
    """One conversation with a cluster: its calls share the time limit. Raises Unreachable or another ClusterError."""
    session = Session(settings, timeout_s)
    try:
        yield session
    except (KafkaException, FutureTimeout) as error:
        raise session.translated(error) from error


class Session:
    """An AdminClient (held until its futures are done: dropped earlier they fail with `_DESTROY`) and a deadline."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        given: dict[str, Any] = dict(settings) if isinstance(settings, Mapping) else settings.admin()
        self.bootstrap = str(given.get("bootstrap.servers", ""))
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        given.setdefault("log_level", 0)  # librdkafka prints every refused connection; our errors contain them
        self._heard = Heard(given.get("error_cb"))
        self.client = AdminClient(given | {"error_cb": self._heard})

    def left(self) -> float:
        """Seconds until the deadline, but at least 0.1: the call itself then reports that the time is up."""
        return max(0.1, self._deadline - time.monotonic())

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self._deadline

    def answer(self, future: Future[T], *, ignore: tuple[int, ...] = ()) -> T | None:
        """The answer, or None for an error that is ignored."""
        try:
            return future.result(self.left() + 1.0)  # the client's own limit comes first and says more
        except KafkaException as error:
            if error.args[0].code() in ignore:
                return None
            raise

    def translated(self, error: KafkaException | FutureTimeout) -> ClusterError:
        """Translate the error to a class of errors.py."""
        self.client.poll(0)  # serves error_cb
        if isinstance(error, FutureTimeout) or error.args[0].code() in _UNREACHABLE:
            return Unreachable(
                f"No Kafka broker answered at {self.bootstrap} within {self._timeout_s:g} s{self._heard.why()}. "
                "Check the address (--bootstrap, STREAMTASK_BOOTSTRAP_SERVERS), the broker and the credentials."
            )
        return ClusterError(f"{self.bootstrap}: {error.args[0].str()} ({error.args[0].name()})")

    # -- questions -----------------------------------------------------------------------------------------------------

    def cluster(self) -> tuple[str, tuple[int, ...]]:
        """(cluster id, ids of running brokers), as soon as there are brokers and a controller.

        Call it before DescribeCluster: librdkafka 2.16 aborts the process when that answer names no broker, which happens
        for a moment after a broker has thawed or started. And it waits for a controller without asking again (30 s seen).
        """
        while True:
            found = self.client.list_topics(timeout=self.left())
            if found.cluster_id and found.brokers and found.controller_id >= 0:
                return found.cluster_id, tuple(sorted(found.brokers))
            if not self.in_time:
                raise FutureTimeout
            time.sleep(AGAIN_S)

    def topics(self, wanted: Iterable[str]) -> dict[str, TopicFacts]:
        """The topics that exist. Raises NotAllowed if one may not be seen."""
        out, hidden = {}, []
        futures = self.client.describe_topics(TopicCollection(list(wanted)), request_timeout=self.left())
        for name, future in futures.items():
            try:
                found = self.answer(future, ignore=(KafkaError.UNKNOWN_TOPIC_OR_PART,))
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise
                hidden.append(name)
                continue
            if found is not None:
                out[name] = TopicFacts(name, str(found.topic_id), tuple(map(_partition, found.partitions)))
        if hidden:
            raise hidden_topics(hidden)
        return out

    def topic_configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """{topic: effective settings}: {} if they may not be read; deleted topics are left out."""
        out: dict[str, dict[str, str]] = {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
        if not resources:
            return out
        for resource, future in self.client.describe_configs(resources, request_timeout=self.left()).items():
            try:
                found = self.answer(future, ignore=(KafkaError.TOPIC_AUTHORIZATION_FAILED,))
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                continue  # deleted since it was described
            out[resource.name] = _values(found or {})
        return out

    def broker_config(self, broker: int) -> dict[str, str]:
        resource = ConfigResource(ResourceType.BROKER, str(broker))  # one broker per call: each answers only for itself
        futures = self.client.describe_configs([resource], request_timeout=self.left())
        found = self.answer(futures[resource], ignore=(KafkaError.CLUSTER_AUTHORIZATION_FAILED,))
        values = _values(found or {})
        return {name: values[name] for name in BROKER_SETTINGS if name in values}

    def members(self, names: TopicNames) -> tuple[tuple[MemberFacts, ...], tuple[str, ...]]:
        """(members of any group that hold partitions of the request topics, groups that could not be described)."""
        listing = self.answer(self.client.list_consumer_groups(states=_WORKING, request_timeout=self.left()))
        assert listing is not None
        groups = [group.group_id for group in listing.valid or ()]
        if not groups:
            return (), ()
        out, unreadable = [], []
        for group, future in self.client.describe_consumer_groups(groups, request_timeout=self.left()).items():
            try:
                found = self.answer(future)
            except KafkaException as error:
                unreadable.append(f"group {group}: {error.args[0].str()}")
                continue
            assert found is not None
            for member in found.members:
                if any(part.topic in names.requests for part in member.assignment.topic_partitions):
                    out.append(MemberFacts(group, member.client_id, member.host))
        return tuple(out), tuple(unreadable)

    def group(self, names: TopicNames) -> tuple[str, tuple[GroupMember, ...]]:
        future = self.client.describe_consumer_groups([names.group], request_timeout=self.left())[names.group]
        found = self.answer(future, ignore=(KafkaError.GROUP_ID_NOT_FOUND,))
        if found is None:
            return "dead", ()
        members = [
            GroupMember(
                member.member_id,
                member.client_id,
                member.host.removeprefix("/"),
                tuple(sorted(p.partition for p in member.assignment.topic_partitions if p.topic == names.requests[0])),
            )
            for member in found.members
        ]
        return found.state.name.lower(), tuple(sorted(members, key=lambda member: (member.client_id, member.member_id)))

    def facts(self, names: TopicNames) -> ClusterFacts:
        cluster, brokers = self.cluster()
        there = self.topics(names.all)
        configs = self.topic_configs(there)
        members, unreadable = self.members(names)
        unread = [f"settings of topic {name}" for name, config in configs.items() if not config]
        broker_config = {broker: self.broker_config(broker) for broker in brokers}
        unread += [f"settings of broker {broker}" for broker, values in broker_config.items() if not values]
        return ClusterFacts(
            bootstrap=self.bootstrap,
            cluster_id=cluster,
            brokers=brokers,
            topics={
                name: TopicFacts(name, there[name].topic_id, there[name].partitions, config)
                for name, config in configs.items()
            },
            broker_config=broker_config,
            members=members,
            unreadable=(*unread, *unreadable),
        )

    def facts_of_all(self, names: TopicNames) -> ClusterFacts:
        """The facts, once the answering broker knows every topic: brokers learn of a new one one after the other, and the next
        one asked may not know it yet. At the deadline: what is known then.
        """
        while True:
            facts = self.facts(names)
            if all(name in facts.topics for name in names.all) or not self.in_time:
                return facts
            time.sleep(AGAIN_S)

    # -- changes -------------------------------------------------------------------------------------------------------

    def create(self, names: TopicNames, facts: ClusterFacts, count: int) -> tuple[str, ...]:
        """Create what is missing, each topic with the settings of its rules. Returns the names that this call created."""
        replicas, in_sync = replication(len(facts.brokers))
        wanted = []
        for name, rules in rules_of(names).items():
            if name not in facts.topics:
                config = config_of(rules) | {"min.insync.replicas": str(in_sync)}
                if name == names.dead:
                    config["max.message.bytes"] = str(_largest_request(facts, names) + DEAD_ROOM_BYTES)
                wanted.append(NewTopic(name, num_partitions=count, replication_factor=replicas, config=config))
        if not wanted:
            return ()
        made = []
        for name, future in self.client.create_topics(wanted, request_timeout=self.left()).items():
            try:
                future.result(self.left() + 1.0)
                made.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was first
                    raise
        return tuple(made)

    def grow(self, names: TopicNames, facts: ClusterFacts, count: int) -> tuple[str, ...]:
        """Add partitions, one topic after the other: the lead band last, so that no shard is claimed incomplete."""
        grown = []
        for name in rules_of(names):
            if name in sharded(names) and name in facts.topics and len(facts.topics[name].partitions) < count:
                wanted = [NewPartitions(name, new_total_count=count)]
                for future in self.client.create_partitions(wanted, request_timeout=self.left()).values():
                    self.answer(future)
                grown.append(name)
        return tuple(grown)

    def await_leaders(self, names: TopicNames, count: int) -> None:
        """Wait until all partitions have leaders: at first only the controller knows a new topic."""
        while True:
            there = self.topics(names.all)
            ready = [
                name
                for name, topic in there.items()
                if all(partition.leader is not None for partition in topic.partitions)
                and (name not in sharded(names) or len(topic.partitions) >= count)
            ]
            if len(ready) == len(names.all):
                return
            if not self.in_time:
                waiting = ", ".join(name for name in names.all if name not in ready)
                raise ClusterError(f"{waiting}: some partitions had no leader after {self._timeout_s:g} s.")
            time.sleep(AGAIN_S)

    def await_gone(self, topics: tuple[str, ...]) -> None:
        """Wait until the answering broker no longer lists the topics: at first only the controller has removed them."""
        while left := self.topics(topics):
            if not self.in_time:
                raise ClusterError(f"{', '.join(left)}: deleted, but still listed {self._timeout_s:g} s later.")
            time.sleep(AGAIN_S)

    def set(self, fixes: tuple[Fix, ...]) -> None:
        """Set these topic settings and no others; returns when a broker shows them (the controller knows first)."""
        by_topic: dict[str, list[ConfigEntry]] = {}
        for fix in fixes:
            entry = ConfigEntry(fix.name, fix.value, incremental_operation=AlterConfigOpType.SET)
            by_topic.setdefault(fix.topic, []).append(entry)
        if not by_topic:
            return
        resources = [
            ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
            for topic, entries in by_topic.items()
        ]
        for future in self.client.incremental_alter_configs(resources, request_timeout=self.left()).values():
            self.answer(future)
        while True:
            shown = self.topic_configs(by_topic)
            unseen = [fix for fix in fixes if shown.get(fix.topic, {}).get(fix.name) != fix.value]
            if not unseen:
                return
            if not self.in_time:
                raise ClusterError(f"{unseen[0].topic}: {unseen[0].name} was set, but is not visible yet. Repeat it.")
            time.sleep(AGAIN_S)


def _largest_request(facts: ClusterFacts, names: TopicNames) -> int:
    """The largest record that a band accepts, or will accept once it is created."""
    limits = [limit for name in names.requests if (limit := max_message_bytes(facts, (name,))) is not None]
    defaults = [
        int(config["message.max.bytes"]) for config in facts.broker_config.values() if "message.max.bytes" in config
    ]
    return max([*limits, *defaults], default=MESSAGE_MAX_BYTES)


def _partition(info: Any) -> PartitionFacts:
    leader = info.leader.id if info.leader is not None and info.leader.id >= 0 else None
    return PartitionFacts(leader, tuple(node.id for node in info.replicas), tuple(node.id for node in info.isr))


def _values(entries: Mapping[str, ConfigEntry]) -> dict[str, str]:
    return {name: entry.value for name, entry in entries.items() if entry.value is not None}
