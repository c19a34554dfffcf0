"""One conversation with a cluster: an AdminClient, a deadline, and the queries and changes that admin.py and permissions.py
are made of.

A question that a broker did not answer is asked again until the deadline: `asked_again`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

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

from streamtask.config import TopicNames
from streamtask.errors import ClusterError, Unreachable
from streamtask.kafka.connection_errors import Heard, hidden_topics
from streamtask.kafka.faults import NO_ANSWER_CODES
from streamtask.kafka.topic_checks import (
    ClusterFacts,
    Fix,
    MemberFacts,
    PartitionFacts,
    TopicFacts,
    max_message_bytes,
)
from streamtask.kafka.topics import DEAD_ROOM_BYTES, config_of, replication, rules_of, sharded

AGAIN_S = 0.05  # between two looks at a cluster that has not reached the awaited state
MESSAGE_MAX_BYTES = 1_048_588  # Kafka's default, used when the broker's own may not be read

BROKER_SETTINGS = (
    "offsets.retention.minutes",
    "offset.metadata.max.bytes",
    "message.max.bytes",
    "group.min.session.timeout.ms",
    "group.max.session.timeout.ms",
    "transaction.max.timeout.ms",
)

# Nothing was refused: the broker that was asked has gone, or what this client knew of the cluster is out of date. Under
# chaos librdkafka ended a question with _DESTROY_BROKER: the broker had just left the cluster's list.
_PASSING = frozenset(
    {
        KafkaError._DESTROY_BROKER,
        KafkaError._TRANSPORT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.NOT_CONTROLLER,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NETWORK_EXCEPTION,
    }
)
_WORKING = {
    ConsumerGroupState.STABLE,
    ConsumerGroupState.PREPARING_REBALANCING,
    ConsumerGroupState.COMPLETING_REBALANCING,
}

P = ParamSpec("P")
T = TypeVar("T")


class AdminSettings(Protocol):
    """The part of KafkaSettings used here."""

    def admin(self) -> dict[str, Any]:
        """Settings for an AdminClient."""
        ...


Settings = AdminSettings | Mapping[str, Any]


class GroupMember(NamedTuple):
    """A member of the workers' group: one worker process."""

    member_id: str
    client_id: str
    host: str
    shards: tuple[int, ...]  # [] while the group is moving them


def asked_again(question: Callable[Concatenate[Session, P], T]) -> Callable[Concatenate[Session, P], T]:
    """A question that changes nothing is repeated, until the deadline, while its error is one that passes."""

    @functools.wraps(question)
    def repeated(session: Session, /, *args: P.args, **named: P.kwargs) -> T:
        while True:
            try:
                return question(session, *args, **named)
            except KafkaException as error:
                if error.args[0].code() not in _PASSING or not session.in_time:
                    raise
            time.sleep(AGAIN_S)

    return repeated


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
        if isinstance(error, FutureTimeout) or error.args[0].code() in NO_ANSWER_CODES | _PASSING:
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

    @asked_again
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

    @asked_again
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

    @asked_again
    def broker_config(self, broker: int) -> dict[str, str]:
        resource = ConfigResource(ResourceType.BROKER, str(broker))  # one broker per call: each answers only for itself
        futures = self.client.describe_configs([resource], request_timeout=self.left())
        found = self.answer(futures[resource], ignore=(KafkaError.CLUSTER_AUTHORIZATION_FAILED,))
        values = _values(found or {})
        return {name: values[name] for name in BROKER_SETTINGS if name in values}

    @asked_again
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

    @asked_again
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
