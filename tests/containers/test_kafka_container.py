"""Workers on a Kafka that testcontainers brings up (extra `docker`), one of them killed at work."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import TaskRequest
from streamtask.kafka.admin import ensure_topics
from tests.acceptance import harness
from tests.acceptance.harness import Bench, until
from tests.containers.host import Host
from tests.containers.images import CONFLUENT

pytestmark = [pytest.mark.docker, pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def bootstrap(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As in docs/containers.md."""
    pytest.importorskip("testcontainers", reason="pip install 'streamtask-kafka[docker]'")
    for name in ("DOCKER_HOST", "DOCKER_CONFIG"):
        if name in host.environment:
            monkeypatch.setenv(name, host.environment[name])
    if host.own:  # its image registry is nowhere: no reaper, which would be pulled
        monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    # In a container itself testcontainers would hand out the gateway's address, where nothing is published.
    monkeypatch.setenv("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    from testcontainers.community.kafka import KafkaContainer

    one = KafkaContainer(CONFLUENT).with_kraft()
    one.with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")  # one broker: else no transaction ever begins
    one.with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    one.with_env("KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS", "500")  # the bench's workers have a short one
    try:
        yield one.start(timeout=300).get_bootstrap_server()  # its own 30 s are short on a busy machine
    finally:
        one.stop()


@pytest.fixture
def bench(bootstrap: str, tmp_path: Path) -> Iterator[Bench]:
    names = TopicNames(f"t{secrets.token_hex(5)}")
    ensure_topics(KafkaSettings(bootstrap, client_id="test"), names, partitions=4)
    with harness.bench(bootstrap, names, tmp_path) as one:
        yield one


def test_workers_on_a_kafka_in_a_container_keep_their_promises_when_one_is_killed(bench: Bench) -> None:
    parent = bench.supervised(2)
    until(lambda: len(parent.children()) == 2, "two workers")
    gate = bench.directory / "gate"
    held = [TaskRequest(task_type="wait_for", parameters={"path": str(gate)}, priority=10) for _ in range(10)]
    requests = [TaskRequest(task_type="nap", parameters={"ms": 100}) for _ in range(290)]
    submitted = [one.task_id for one in bench.client.submit_many([*held, *requests])]
    until(lambda: {one.id for one in bench.running()} >= set(submitted[:10]), "ten run until the gate is there")
    (killed, *_) = {one.pid for one in bench.running() if one.type == "wait_for"} & set(parent.children())
    psutil.Process(killed).kill()
    gate.touch()
    ends = bench.ends(submitted, 120)
    assert {end.status for end in ends.values()} == {"completed"}
    assert bench.finish().requests == 300
