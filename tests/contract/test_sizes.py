"""Our clients take what the topics take: no limit of their own stands below a limit that was raised."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from streamtask import App, RequestRefused
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import Unreachable
from streamtask.kafka.admin import smallest_max_message_bytes
from streamtask.testing import Broker
from streamtask.testing.running import running
from tests.contract.member import wait_until
from tests.contract.test_view_broker import Process
from tests.payloads import incompressible

pytestmark = pytest.mark.broker
TAKEN, LARGE = 4_000_000, 3_000_000
app = App("sizes")


@app.task
async def echo(text: str) -> str:
    return text


@pytest.fixture
def raised(broker: Broker, topics: TopicNames) -> TopicNames:
    """The topics, each with a max.message.bytes of 4 MB."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    limit = ConfigEntry("max.message.bytes", str(TAKEN), incremental_operation=AlterConfigOpType.SET)
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[limit]) for name in topics.all]
    for future in admin.incremental_alter_configs(resources).values():
        future.result(10)
    # A broker tells a new limit a moment after it has taken it, and a worker asks at most every five seconds.
    settings = KafkaSettings(broker.bootstrap)
    wait_until(lambda: smallest_max_message_bytes(settings, topics.all) == TAKEN)
    return topics


@pytest.fixture
def service(broker: Broker, raised: TopicNames, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    monkeypatch.setenv("STREAMTASK_BODY_BYTES_MAX", str(TAKEN))
    process = Process(broker.bootstrap, raised.prefix)
    yield process
    process.close()


def in_time(submit: Any, *passing: type[Exception]) -> Any:
    """A broker applies a topic's limit, and has leaders of new topics, a little after it has them."""
    until = time.monotonic() + 30
    while True:
        try:
            return submit()
        except passing:
            if time.monotonic() > until:
                raise


def test_a_request_and_a_result_of_3_mb_run_and_are_looked_up_where_the_topics_take_4(
    broker: Broker, raised: TopicNames, service: Process
) -> None:
    """Bug: our producers refused what was larger than 1 MB, whatever the topics took."""
    large = incompressible(LARGE)
    with running(app, broker.bootstrap, partitions=4, prefix=raised.prefix) as worker:
        task = in_time(lambda: echo.submit_sync(large), RequestRefused, Unreachable)
        assert task.result(timeout=60) == large
        service.line()
        url = service.line().removeprefix("ready: ")
        with httpx.Client(base_url=url, timeout=60) as http:
            found = http.get(f"/tasks/{task.task_id}?wait=30").json()
            assert (found["status"], found["result"]) == ("completed", large)
            posted = http.post("/tasks", json={"task_type": "echo", "parameters": {"text": large}})
            assert posted.status_code == 202, posted.text
            ended = http.get(f"{posted.headers['location']}?wait=30").json()
            assert (ended["status"], len(ended["result"])) == ("completed", LARGE)
        assert worker.audit().clean


def test_what_the_topics_do_not_take_is_refused_by_the_client_with_the_name_of_the_field(
    broker: Broker, raised: TopicNames
) -> None:
    with app.configured(bootstrap_servers=broker.bootstrap, prefix=raised.prefix, url=""):
        try:
            with pytest.raises(RequestRefused) as refusal:
                in_time(lambda: echo.submit_sync(incompressible(TAKEN + 1_000_000)), Unreachable)
        finally:
            app.close()
    assert refusal.value.fields == {"parameters": "too large"}
