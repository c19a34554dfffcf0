"""streamtask.kafka.admin against a real Kafka: topics are made as needed, drift is seen and mended."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from streamtask.config import TopicNames
from streamtask.errors import ClusterError, TopicsMissing, Unreachable
from streamtask.kafka import admin
from streamtask.kafka.topic_checks import Finding, Fix
from streamtask.kafka.topics import DEAD_ROOM_BYTES, Severity, config_of, rules_of
from streamtask.testing import Broker

pytestmark = pytest.mark.broker

Properties = dict[str, str | int | float | bool]  # of a client


@pytest.fixture
def settings(broker: Broker) -> Properties:
    return {"bootstrap.servers": broker.bootstrap}


def set_config(settings: Properties, topic: str, name: str, value: str) -> None:
    client = AdminClient(settings)
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for future in client.incremental_alter_configs([resource]).values():
        future.result(10)
    deadline = time.monotonic() + 60  # the controller knows first, the broker a little later
    while client.describe_configs([resource])[resource].result(10)[name].value != value:
        assert time.monotonic() < deadline


def codes(findings: Iterable[Finding]) -> dict[str, Severity]:
    return {finding.code: finding.severity for finding in findings}


def test_topics_are_created_with_every_setting_that_the_rules_name(settings: Properties, topics: TopicNames) -> None:
    facts = admin.cluster_facts(settings, topics)
    assert set(facts.topics) == set(topics.all)
    for name, rules in rules_of(topics).items():
        assert len(facts.topics[name].partitions) == 4
        for key, value in config_of(rules).items():
            assert facts.topics[name].config[key] == value, (name, key)


def test_the_dead_topic_takes_a_little_more_than_the_bands_do(settings: Properties, topics: TopicNames) -> None:
    bands = admin.smallest_max_message_bytes(settings, topics.requests)
    assert admin.smallest_max_message_bytes(settings, (topics.dead,)) == bands + DEAD_ROOM_BYTES
    assert admin.smallest_max_message_bytes(settings, (topics.status, topics.dead)) == bands


def test_a_fresh_prefix_on_one_broker_has_one_warning_only(settings: Properties, topics: TopicNames) -> None:
    found = admin.check_topics(settings, topics)
    if len(admin.cluster_facts(settings, topics).brokers) < 3:
        assert codes(found) == {"brokers": Severity.WARNING}
    else:
        assert found == []


def test_checking_names_missing_topics_and_creates_none(settings: Properties, prefix: str) -> None:
    names = TopicNames(prefix)
    found = admin.check_topics(settings, names)
    assert found[0].code == "topics_missing"
    assert found[0].command == f"streamtask topics create --prefix {prefix}"
    with pytest.raises(TopicsMissing, match=f"{prefix}.status.*streamtask topics create --prefix {prefix}"):
        admin.partition_count(settings, names)
    with pytest.raises(TopicsMissing):
        admin.topic_ids(settings, names.all)
    assert admin.cluster_facts(settings, names).topics == {}


def test_creating_again_changes_nothing(settings: Properties, topics: TopicNames) -> None:
    ids = admin.topic_ids(settings, topics.all)
    again = admin.ensure_topics(settings, topics, partitions=9)
    assert (again.created, again.grown, again.fixed) == ((), (), ())
    assert admin.partition_count(settings, topics) == 4
    assert admin.topic_ids(settings, topics.all) == ids


def test_two_processes_may_create_at_once(
    settings: Properties, make_topics: Callable[[int], TopicNames], prefix: str
) -> None:
    names = TopicNames(prefix)
    made: list[admin.Ensured] = []
    threads = [
        threading.Thread(target=lambda: made.append(admin.ensure_topics(settings, names, partitions=2)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(name for one in made for name in one.created) == sorted(names.all)
    assert make_topics(2) == names


def test_a_topic_that_was_lost_is_made_with_as_many_partitions_as_the_others(
    settings: Properties, topics: TopicNames
) -> None:
    client = AdminClient(settings)
    client.delete_topics([topics.schedule])[topics.schedule].result(10)
    deadline = time.monotonic() + 60
    while topics.schedule in admin.cluster_facts(settings, topics).topics:
        assert time.monotonic() < deadline
    assert admin.ensure_topics(settings, topics, partitions=12).created == (topics.schedule,)
    assert admin.partition_count(settings, topics) == 4


def test_unequal_partition_counts_are_an_error_that_growing_mends(settings: Properties, topics: TopicNames) -> None:
    client = AdminClient(settings)
    client.create_partitions([NewPartitions(topics.requests[1], 6)])[topics.requests[1]].result(10)
    deadline = time.monotonic() + 60
    while not (found := [f for f in admin.check_topics(settings, topics) if f.code == "partition_counts"]):
        assert time.monotonic() < deadline
    assert {finding.where for finding in found} == {*topics.requests, topics.status, topics.schedule} - {
        topics.requests[1]
    }
    assert all("--partitions 6" in (finding.command or "") for finding in found)
    assert admin.partition_count(settings, topics) == 4
    grown = admin.ensure_topics(settings, topics, partitions=6, grow=True).grown
    assert grown == (topics.status, topics.schedule, topics.requests[2], topics.requests[0])  # the lead band last
    assert admin.partition_count(settings, topics) == 6


def test_settings_that_drifted_are_found_and_fixed_and_others_are_left_alone(
    settings: Properties, topics: TopicNames
) -> None:
    set_config(settings, topics.status, "cleanup.policy", "delete")
    set_config(settings, topics.requests[0], "retention.ms", "3600000")
    set_config(settings, topics.requests[0], "unclean.leader.election.enable", "true")
    set_config(settings, topics.dead, "compression.type", "zstd")
    found = codes(admin.check_topics(settings, topics))
    assert found["cleanup.policy"] is Severity.ERROR
    assert found["unclean.leader.election.enable"] is Severity.ERROR
    assert found["retention.ms"] is Severity.WARNING
    fixed = admin.ensure_topics(settings, topics, fix=True)
    assert Fix(topics.status, "cleanup.policy", "compact,delete") in fixed.fixed
    assert len(fixed.fixed) == 3
    assert "cleanup.policy" not in codes(admin.check_topics(settings, topics))
    assert admin.cluster_facts(settings, topics).topics[topics.dead].config["compression.type"] == "zstd"


def test_a_second_group_that_reads_the_requests_is_named_with_its_client_id(
    settings: Properties, topics: TopicNames
) -> None:
    group = f"{topics.prefix}.intruder"
    consumer = Consumer({**settings, "group.id": group, "client.id": "someone@host"})
    try:
        consumer.subscribe([topics.requests[0]])
        deadline = time.monotonic() + 60
        while not consumer.assignment():
            assert time.monotonic() < deadline
            consumer.poll(0.1)
        found = [finding for finding in admin.check_topics(settings, topics) if finding.code == "second_group"]
        assert [finding.where for finding in found] == [f"group {group}"]
        assert "someone@host" in found[0].value
    finally:
        consumer.close()


def test_the_cluster_has_an_id_and_topics_made_again_have_another(
    settings: Properties, broker: Broker, topics: TopicNames
) -> None:
    assert admin.cluster_id(settings) == admin.cluster_facts(settings, topics).cluster_id != ""
    before = admin.topic_ids(settings, topics.all)
    assert len(set(before.values())) == len(topics.all)
    admin.delete_topics(settings, topics)
    deadline = time.monotonic() + 60
    while admin.cluster_facts(settings, topics).topics:
        assert time.monotonic() < deadline
    admin.ensure_topics(settings, topics, partitions=1)
    assert not set(before.values()) & set(admin.topic_ids(settings, topics.all).values())


def test_what_the_broker_refuses_is_a_cluster_error_with_its_words(settings: Properties) -> None:
    with pytest.raises(ClusterError, match=r"INVALID_TOPIC|TOPIC_EXCEPTION"):
        admin.topic_ids(settings, ["no topic/name"])


@pytest.mark.parametrize("silent", [True, False], ids=["takes connections and says nothing", "refuses connections"])
def test_a_broker_that_does_not_answer_is_unreachable_within_the_time_given(silent: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(Unreachable, match=address):
            admin.cluster_facts({"bootstrap.servers": address}, TopicNames(), timeout_s=2)
        assert time.monotonic() - began < 15
