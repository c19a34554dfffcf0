"""The properties that decide about a promise, and what of them a user may change."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from streamtask.config import load_settings
from streamtask.config.kafka import SOCKET_TIMEOUT_MS, ClientRole, KafkaSettings
from streamtask.config.sources import shown
from streamtask.errors import ConfigError
from streamtask.kafka.topic_checks import app_of

SETTINGS = KafkaSettings("127.0.0.1:1")


def test_librdkafka_takes_every_property_of_every_client() -> None:
    Consumer(SETTINGS.consumer("group")).close()
    Consumer(SETTINGS.tail()).close()
    Producer(SETTINGS.transactional("id"))
    Producer(SETTINGS.idempotent())
    Producer(SETTINGS.idempotent(reports=False, linger_ms=0))
    AdminClient(SETTINGS.admin())


def test_every_client_notices_a_frozen_broker_in_six_seconds() -> None:
    kinds = (
        SETTINGS.consumer("g"),
        SETTINGS.transactional("t"),
        SETTINGS.idempotent(),
        SETTINGS.tail(),
        SETTINGS.admin(),
    )
    assert {properties["socket.timeout.ms"] for properties in kinds} == {SOCKET_TIMEOUT_MS} == {6_000}
    assert {properties["retry.backoff.ms"] for properties in kinds} == {1}
    assert {properties["enable.metrics.push"] for properties in kinds} == {False}


def test_a_record_does_not_outlive_its_transaction() -> None:
    properties = SETTINGS.transactional("id")
    assert properties["message.timeout.ms"] <= properties["transaction.timeout.ms"]
    assert 2 * properties["batch.size"] < 1_048_588  # Kafka's default max.message.bytes counts the batch


def test_all_producers_place_keys_as_java_does() -> None:
    assert {p["partitioner"] for p in (SETTINGS.transactional("t"), SETTINGS.idempotent())} == {"murmur2_random"}


def test_the_users_settings_pass_to_every_client_and_win() -> None:
    settings = KafkaSettings("b:1", extra={"security.protocol": "SSL", "linger.ms": 7, "session.timeout.ms": 45_000})
    assert settings.idempotent()["linger.ms"] == 7
    assert settings.consumer("g")["session.timeout.ms"] == 45_000
    for properties in (settings.consumer("g"), settings.transactional("t"), settings.tail(), settings.admin()):
        assert properties["security.protocol"] == "SSL"


@pytest.mark.parametrize("role", get_args(ClientRole))
def test_every_role_names_itself_and_passes_the_security_settings_on(role: ClientRole) -> None:
    security = {"security.protocol": "SASL_SSL", "sasl.username": "alice"}
    kafka = load_settings(bootstrap_servers="b:1", kafka=security).kafka_for(role)
    assert (kafka.bootstrap, kafka.client_id, kafka.extra) == ("b:1", f"streamtask-{role}", security)


def test_a_worker_names_its_process_and_has_a_session() -> None:
    settings = load_settings(bootstrap_servers="b:1", session_timeout_ms=9_000)
    kafka = settings.kafka_for("worker", process="census@host-17")
    assert (kafka.client_id, kafka.session_timeout_ms) == ("streamtask-census@host-17", 9_000)
    assert app_of(kafka.client_id) == "census"


def test_a_session_timeout_that_no_worker_could_use_stops_no_client() -> None:
    settings = load_settings(bootstrap_servers="b:1", session_timeout_ms=500)
    assert settings.kafka_for("client").client_id == "streamtask-client"
    with pytest.raises(ConfigError, match="session_timeout_ms=500"):
        settings.kafka_for("worker")


def test_without_a_broker_no_role_has_settings() -> None:
    with pytest.raises(ConfigError, match="No Kafka broker is configured"):
        load_settings(bootstrap_servers="").kafka_for("client")


def test_what_a_client_is_cannot_be_overridden() -> None:
    """Without these the promises do not hold, whatever anybody sets."""
    extra: dict[str, str | int | float | bool] = {
        "group.id": "x",
        "enable.auto.commit": True,
        "isolation.level": "read_uncommitted",
        "auto.offset.reset": "latest",
        "partition.assignment.strategy": "range",
        "transactional.id": "x",
        "enable.idempotence": False,
    }
    settings = KafkaSettings("b:1", extra=extra)
    consumer, producer = settings.consumer("g"), settings.transactional("t")
    assert (consumer["group.id"], consumer["enable.auto.commit"], consumer["isolation.level"]) == (
        "g",
        False,
        "read_committed",
    )
    assert (consumer["auto.offset.reset"], consumer["partition.assignment.strategy"]) == ("error", "cooperative-sticky")
    assert (producer["transactional.id"], producer["enable.idempotence"]) == ("t", True)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"bootstrap": ""}, "bootstrap"),
        ({"session_timeout_ms": 1_000}, "session_timeout_ms"),
        ({"max_poll_interval_ms": 5_000}, "max_poll_interval_ms"),
        ({"batch_bytes": 100_000_000}, "batch_bytes"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        KafkaSettings(**{"bootstrap": "b:1", **wrong})  # type: ignore[arg-type]


def test_a_short_max_poll_interval_of_the_users_is_taken_by_every_client() -> None:
    """Bug: beside librdkafka's own session of 45 s it refused whatever only reads, and the worker died with a traceback."""
    settings = KafkaSettings("127.0.0.1:1", extra={"max.poll.interval.ms": "10000", "session.timeout.ms": 10_000})
    Consumer(settings.consumer("group")).close()
    Consumer(settings.tail()).close()
    Producer(settings.transactional("id"))
    AdminClient(settings.admin())


@pytest.mark.parametrize("extra", [{"max.poll.interval.ms": 5_999}, {"session.timeout.ms": "60001"}])
def test_a_poll_interval_below_the_session_is_refused_by_name(extra: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"max\.poll\.interval\.ms=\d+ is below session\.timeout\.ms=\d+"):
        KafkaSettings("b:1", extra=extra).consumer("group")


def test_secrets_are_not_shown() -> None:
    given = {
        "bootstrap.servers": "b:1",
        "sasl.username": "alice",
        "sasl.password": "s1",
        "ssl.key.pem": "s2",
        "ssl.key.password": "s3",
        "ssl.keystore.password": "s4",
        "ssl.certificate.pem": "s5",
        "sasl.oauthbearer.client.secret": "s6",
        "sasl.oauthbearer.config": "s7",
        "sasl.oauthbearer.assertion.private.key.passphrase": "s8",
    }
    told = {name: shown(name, value) for name, value in given.items()}
    assert not any(str(value).startswith("s") and str(value)[1:].isdigit() for value in told.values())
    assert (told["bootstrap.servers"], told["sasl.username"]) == ("b:1", "alice")


def test_a_function_may_be_named_and_is_found_when_the_settings_are_made() -> None:
    kafka = KafkaSettings("b:1", extra={"oauth_cb": "json:loads"})
    assert all(one["oauth_cb"] is json.loads for one in (kafka.consumer("g"), kafka.tail(), kafka.admin()))


@pytest.mark.parametrize("path", ["nowhere_at_all:f", "json:nothing", "json", ":f", "json:decoder.x"])
def test_a_function_that_cannot_be_found_is_refused_by_name(path: str) -> None:
    with pytest.raises(ConfigError, match=r"kafka\.oauth_cb"):
        KafkaSettings("b:1", extra={"oauth_cb": path})
