"""judge(facts, names): what a cluster has, against what is needed. Every row changes one fact of a sound cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from streamtask.config import TopicNames
from streamtask.kafka import admin_session
from streamtask.kafka.topic_checks import (
    ClusterFacts,
    Finding,
    Fix,
    MemberFacts,
    PartitionFacts,
    TopicFacts,
    app_of,
    judge,
    max_message_bytes,
)
from streamtask.kafka.topics import (
    DAY_MS,
    DEAD_ROOM_BYTES,
    HOUR_MS,
    REFRESH_MS,
    Severity,
    config_of,
    replication,
    rules_of,
    sharded,
)

NAMES = TopicNames()
LIMIT = 1_048_588
BROKER = {"offsets.retention.minutes": "10080", "offset.metadata.max.bytes": "4096"}
Change = Callable[[ClusterFacts], ClusterFacts]


def sound(brokers: int = 3) -> ClusterFacts:
    """A cluster on which nothing is wrong."""
    replicas, in_sync = replication(brokers)
    ids = tuple(range(1, replicas + 1))
    topics = {}
    for name, rules in rules_of(NAMES).items():
        config = config_of(rules) | {
            "min.insync.replicas": str(in_sync),
            "max.message.bytes": str(LIMIT + (DEAD_ROOM_BYTES if name == NAMES.dead else 0)),
            "unclean.leader.election.enable": "false",
        }
        topics[name] = TopicFacts(name, f"id of {name}", (PartitionFacts(1, ids, ids),) * 12, config)
    everyone = tuple(range(1, brokers + 1))
    return ClusterFacts("kafka:9092", "cluster", everyone, topics, dict.fromkeys(everyone, BROKER))


def topic(name: str, **changes: Any) -> Change:
    def change(facts: ClusterFacts) -> ClusterFacts:
        return replace(facts, topics={**facts.topics, name: replace(facts.topics[name], **changes)})

    return change


def config(name: str, key: str, value: str) -> Change:
    def change(facts: ClusterFacts) -> ClusterFacts:
        return topic(name, config={**facts.topics[name].config, key: value})(facts)

    return change


def without(name: str) -> Change:
    return lambda facts: replace(facts, topics={key: value for key, value in facts.topics.items() if key != name})


def partitions(name: str, *parts: PartitionFacts) -> Change:
    return topic(name, partitions=parts)


def broker(key: str, value: str) -> Change:
    return lambda facts: replace(facts, broker_config={**facts.broker_config, 2: {**BROKER, key: value}})


def members(*who: MemberFacts) -> Change:
    return lambda facts: replace(facts, members=who)


WHOLE = PartitionFacts(1, (1, 2, 3), (1, 2, 3))
ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
FIX = "streamtask topics create --fix"

TABLE: list[tuple[str, Change, Severity, str, str, str | None]] = [
    # what, change, severity, code, where, command
    ("a topic is missing", without("tasks.dead"), ERROR, "topics_missing", "tasks.dead", "streamtask topics create"),
    (
        "a band has fewer partitions",
        partitions("tasks.requests.low", *(WHOLE,) * 6),
        ERROR,
        "partition_counts",
        "tasks.requests.low",
        "streamtask topics create --grow --partitions 12",
    ),
    (
        "a band is compacted",
        config("tasks.requests.high", "cleanup.policy", "compact"),
        ERROR,
        "cleanup.policy",
        "tasks.requests.high",
        FIX,
    ),
    (
        "status is deleted only",
        config("tasks.status", "cleanup.policy", "delete"),
        ERROR,
        "cleanup.policy",
        "tasks.status",
        FIX,
    ),
    (
        "schedule is deleted too",
        config("tasks.schedule", "cleanup.policy", "compact,delete"),
        ERROR,
        "cleanup.policy",
        "tasks.schedule",
        FIX,
    ),
    (
        "dead is compacted",
        config("tasks.dead", "cleanup.policy", "compact"),
        ERROR,
        "cleanup.policy",
        "tasks.dead",
        FIX,
    ),
    (
        "a band keeps a day",
        config("tasks.requests.low", "retention.ms", str(DAY_MS)),
        WARNING,
        "retention.ms",
        "tasks.requests.low",
        FIX,
    ),
    (
        "status keeps ten days",
        config("tasks.status", "retention.ms", str(10 * DAY_MS)),
        WARNING,
        "retention.ms",
        "tasks.status",
        FIX,
    ),
    (
        "status forgets a live task before its event is published again",
        config("tasks.status", "retention.ms", str(REFRESH_MS)),
        ERROR,
        "retention.ms",
        "tasks.status",
        FIX,
    ),
    (
        "control keeps an hour",
        config("tasks.control", "retention.ms", str(HOUR_MS)),
        WARNING,
        "retention.ms",
        "tasks.control",
        FIX,
    ),
    (
        "status rolls a segment in a week",
        config("tasks.status", "segment.ms", str(7 * DAY_MS)),
        WARNING,
        "segment.ms",
        "tasks.status",
        FIX,
    ),
    (
        "status is cleaned late",
        config("tasks.status", "min.cleanable.dirty.ratio", "0.9"),
        WARNING,
        "min.cleanable.dirty.ratio",
        "tasks.status",
        FIX,
    ),
    (
        "compaction has no bound",
        config("tasks.schedule", "max.compaction.lag.ms", str(2**63 - 1)),
        WARNING,
        "max.compaction.lag.ms",
        "tasks.schedule",
        FIX,
    ),
    (
        "one copy on three brokers",
        lambda facts: partitions("tasks.status", *(PartitionFacts(1, (1,), (1,)),) * 12)(
            config("tasks.status", "min.insync.replicas", "1")(facts)
        ),
        WARNING,
        "replication",
        "tasks.status",
        None,
    ),
    (
        "an acknowledged request on one disk",
        config("tasks.requests.high", "min.insync.replicas", "1"),
        WARNING,
        "min.insync.replicas",
        "tasks.requests.high",
        FIX,
    ),
    (
        "one broker down stops it",
        config("tasks.status", "min.insync.replicas", "3"),
        WARNING,
        "min.insync.replicas",
        "tasks.status",
        FIX,
    ),
    (
        "no leader",
        partitions("tasks.dead", PartitionFacts(None, (1, 2, 3), ())),
        ERROR,
        "no_leader",
        "tasks.dead",
        None,
    ),
    (
        "too few in sync",
        partitions("tasks.dead", WHOLE, PartitionFacts(1, (1, 2, 3), (1,))),
        ERROR,
        "under_min_isr",
        "tasks.dead",
        None,
    ),
    (
        "a dead letter may not fit",
        config("tasks.dead", "max.message.bytes", str(LIMIT)),
        WARNING,
        "max.message.bytes",
        "tasks.dead",
        FIX,
    ),
    (
        "status takes less than the bands",
        config("tasks.status", "max.message.bytes", "20000"),
        WARNING,
        "max.message.bytes",
        "tasks.status",
        FIX,
    ),
    (
        "unclean election",
        config("tasks.status", "unclean.leader.election.enable", "true"),
        ERROR,
        "unclean.leader.election.enable",
        "tasks.status",
        FIX,
    ),
    (
        "offsets expire before requests",
        broker("offsets.retention.minutes", "1440"),
        WARNING,
        "offsets.retention.minutes",
        "broker 2",
        None,
    ),
    (
        "ledgers do not fit",
        broker("offset.metadata.max.bytes", "1024"),
        ERROR,
        "offset.metadata.max.bytes",
        "broker 2",
        None,
    ),
    ("a reader", members(MemberFacts("audit", "somebody", "/10.0.0.1")), INFO, "second_group", "group audit", None),
    (
        "a worker in a second group",
        members(MemberFacts("mine", "streamtask-a@h-1", "/10.0.0.1")),
        WARNING,
        "second_group",
        "group mine",
        None,
    ),
    (
        "two apps in the group",
        members(
            MemberFacts("tasks.workers", "streamtask-a@h-1", "/10.0.0.1"),
            MemberFacts("tasks.workers", "streamtask-b@h-2", "/10.0.0.2"),
        ),
        WARNING,
        "second_app",
        "group tasks.workers",
        None,
    ),
    (
        "a setting that may not be read",
        lambda facts: replace(facts, unreadable=("broker 1",)),
        INFO,
        "unreadable",
        "broker 1",
        None,
    ),
]


@pytest.mark.parametrize(
    ("change", "severity", "code", "where", "command"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_one_wrong_fact_is_one_finding(
    change: Change, severity: Severity, code: str, where: str, command: str | None
) -> None:
    found = judge(change(sound()), NAMES)
    assert [(one.severity, one.code, one.where) for one in found] == [(severity, code, where)]
    assert found[0].what
    if command is not None:
        assert found[0].command == command


def test_a_sound_cluster_of_three_brokers_has_no_findings() -> None:
    assert judge(sound(), NAMES) == []


def test_one_broker_is_a_warning_and_otherwise_sound() -> None:
    assert [(one.severity, one.code) for one in judge(sound(1), NAMES)] == [(WARNING, "brokers")]


@pytest.mark.parametrize(
    "change",
    [
        config("tasks.status", "retention.ms", "-1"),
        config("tasks.requests.high", "retention.ms", str(90 * DAY_MS)),
        config("tasks.status", "cleanup.policy", "delete,compact"),
        config("tasks.status", "segment.ms", str(HOUR_MS // 2)),
        config("tasks.dead", "max.message.bytes", str(10 * LIMIT)),
        topic("tasks.control", partitions=(WHOLE,)),
        topic("tasks.dead", partitions=(WHOLE,)),
        topic("tasks.status", config={}),
        members(
            MemberFacts("tasks.workers", "streamtask-a@h-1", "/10.0.0.1"),
            MemberFacts("tasks.workers", "streamtask-a@k-7", "/10.0.0.2"),
        ),
    ],
    ids=[
        "kept for ever",
        "offsets are re-committed, but not while all are away",
        "the order of policies",
        "smaller segments",
        "larger dead letters",
        "control has its own count",
        "dead has its own count",
        "settings that may not be read",
        "two workers of one app",
    ],
)
def test_what_is_as_good_as_needed_is_no_error(change: Change) -> None:
    assert [one for one in judge(change(sound()), NAMES) if one.code != "offsets.retention.minutes"] == []


def test_more_copies_in_sync_than_there_are_is_an_error() -> None:
    found = judge(config("tasks.status", "min.insync.replicas", "2")(sound(1)), NAMES)
    assert found[0].severity is ERROR
    assert found[0].fix == Fix("tasks.status", "min.insync.replicas", "1")
    assert {one.code for one in found} == {"min.insync.replicas", "under_min_isr", "brokers"}


def test_longer_kept_requests_need_longer_kept_offsets() -> None:
    found = judge(config("tasks.requests.low", "retention.ms", str(14 * DAY_MS))(sound()), NAMES)
    assert {(one.code, one.needed) for one in found} == {("offsets.retention.minutes", "20160")}
    assert {one.where for one in found} == {"broker 1", "broker 2", "broker 3"}


def test_requests_kept_for_ever_need_no_longer_kept_offsets() -> None:
    assert judge(config("tasks.requests.low", "retention.ms", "-1")(sound()), NAMES) == []


def test_errors_come_first_and_commands_name_the_prefix() -> None:
    names = TopicNames("gpu")
    facts = replace(sound(1), topics={})
    found = judge(facts, names)
    assert found[0].command == "streamtask topics create --prefix gpu"
    assert set(found[0].where.split(", ")) == set(names.all)
    both = judge(config("tasks.status", "cleanup.policy", "delete")(sound(1)), NAMES)
    assert [one.severity for one in both] == [ERROR, WARNING]


def test_a_finding_reads_as_one_line() -> None:
    finding = judge(config("tasks.status", "cleanup.policy", "delete")(sound()), NAMES)[0]
    assert isinstance(finding, Finding)
    assert str(finding).startswith("error: tasks.status: cleanup.policy is delete, must be compact,delete. ")
    assert str(finding).endswith(f"Fix it: {FIX}")
    assert "\n" not in str(finding)


def test_partitions_are_added_to_status_first_and_to_the_lead_band_last() -> None:
    order = [name for name in rules_of(NAMES) if name in sharded(NAMES)]
    assert order[:2] == [NAMES.status, NAMES.schedule]
    assert order[-1] == NAMES.requests[0]
    assert set(rules_of(NAMES)) == set(NAMES.all)


@pytest.mark.parametrize(("brokers", "copies"), [(1, (1, 1)), (2, (1, 1)), (3, (3, 2)), (9, (3, 2))])
def test_three_copies_where_there_are_three_brokers(brokers: int, copies: tuple[int, int]) -> None:
    assert replication(brokers) == copies


def test_the_smallest_limit_counts_and_an_unreadable_one_does_not() -> None:
    facts = topic("tasks.control", config={})(config("tasks.status", "max.message.bytes", "20000")(sound()))
    assert max_message_bytes(facts, (NAMES.status, NAMES.dead)) == 20_000
    assert max_message_bytes(facts, (NAMES.control,)) is None


@pytest.mark.parametrize(
    ("client_id", "app"),
    [("streamtask-census@host-a-17", "census"), ("streamtask-cli", None), ("rdkafka", "rdkafka")],
)
def test_the_app_is_read_from_the_client_id(client_id: str, app: str | None) -> None:
    assert app_of(client_id) == app


def test_a_broker_that_does_not_know_a_new_topic_yet_is_not_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: of three brokers the one asked after `topics create` said that the topics were missing."""
    names = TopicNames()
    known: Any = SimpleNamespace(topics=dict.fromkeys(names.all))
    answers = [SimpleNamespace(topics={}), SimpleNamespace(topics={names.dead: None}), known]
    session = admin_session.Session({"bootstrap.servers": "127.0.0.1:1"}, 30.0)
    monkeypatch.setattr(session, "facts", lambda _names: answers.pop(0))
    assert session.facts_of_all(names) is known
    assert answers == []
