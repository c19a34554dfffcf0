"""Client and command line against the whole service, as processes on a real Kafka; the worker's part is played by hand."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from streamtask.client import Client
from streamtask.codec import encode_dead
from streamtask.config import TopicNames, load_settings
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.identity import Origin, new_task_id
from streamtask.domain.model import DeadLetter, RequestRecord, TaskStatus
from streamtask.errors import ConfigError, RequestRefused, TaskFailed, UnknownTask, Unreachable, WaitTimeout
from streamtask.kafka import admin
from streamtask.kafka.producer import ClientProducer
from streamtask.testing import Broker
from tests.contract.test_client import COMPLETED, CREATED, RUNNING, WAIT_S, Worker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]
KEY = "a key for the test"
SERVE = (sys.executable, "-m", "streamtask", "serve", "--port", "0")
WATCH = (sys.executable, "-m", "streamtask", "watch")


@dataclass
class Place:
    """A prefix of its own with a query service."""

    bootstrap: str
    names: TopicNames
    url: str
    worker: Worker

    def cli(self, *arguments: str, url: bool = True, stdin: str = "") -> tuple[int, str, str]:
        """Run the command line in a process of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")}
        environment |= {
            "STREAMTASK_BOOTSTRAP_SERVERS": self.bootstrap,
            "STREAMTASK_PREFIX": self.names.prefix,
            "STREAMTASK_API_KEY": KEY,
            "COLUMNS": "100",
        }
        if url:
            environment["STREAMTASK_URL"] = self.url
        done = subprocess.run(
            [sys.executable, "-m", "streamtask", *arguments],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def place(broker: Broker) -> Iterator[Place]:
    names = TopicNames(f"t{secrets.token_hex(5)}")
    kafka = {"bootstrap.servers": broker.bootstrap}
    admin.ensure_topics(kafka, names, partitions=4)
    environment = {**os.environ, "STREAMTASK_API_KEY": KEY}
    service = subprocess.Popen(
        [*SERVE, "--bootstrap", broker.bootstrap, "--prefix", names.prefix],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert service.stdout is not None
        line = next(line for line in service.stdout if line.startswith("ready: "))
        yield Place(broker.bootstrap, names, line.split()[1], Worker(broker.bootstrap, names))
        service.send_signal(signal.SIGTERM)
        assert service.wait(WAIT_S) == 0
    finally:
        if service.poll() is None:
            service.kill()
        service.communicate()
        admin.delete_topics(kafka, names)


@pytest.fixture
def client(place: Place) -> Iterator[Client]:
    """Submits through Kafka, asks the service."""
    settings = load_settings(bootstrap_servers=place.bootstrap, prefix=place.names.prefix, url=place.url, api_key=KEY)
    with Client(settings=settings) as opened:
        yield opened


@pytest.fixture
def remote(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Knows the service alone."""
    monkeypatch.delenv("STREAMTASK_BOOTSTRAP_SERVERS", raising=False)
    with Client(settings=load_settings(url=place.url, api_key=KEY)) as opened:
        yield opened


# --- The client through the service -----------------------------------------------------------------------------------


def test_what_was_just_submitted_is_known_at_once(client: Client) -> None:
    receipt = client.submit("census", priority=8)
    found = receipt.status()
    assert (found.status, found.origin, found.priority) == (CREATED, receipt.origin, 8)


def test_a_result_comes_by_long_poll(client: Client, place: Place) -> None:
    receipt = client.submit("census")
    with pytest.raises(WaitTimeout):
        receipt.wait(0.3)
    place.worker.say(receipt, CREATED, RUNNING, COMPLETED, result=b'{"lines":3}')
    assert receipt.result(WAIT_S) == {"lines": 3}
    assert client.wait(receipt.task_id, WAIT_S).status is COMPLETED


def test_a_failure_comes_with_its_details(client: Client, place: Place) -> None:
    receipt = client.submit("census")
    place.worker.say(receipt, CREATED, RUNNING, TaskStatus.FAILED, error="no", error_code="timeout")
    with pytest.raises(TaskFailed) as failed:
        receipt.result(WAIT_S)
    assert failed.value.code == "timeout"


@pytest.mark.parametrize("scheme", ["http", "ws"])
@pytest.mark.parametrize("broker_too", [True, False], ids=["broker and service", "service alone"])
def test_events_follow_the_task_to_its_end_over_either(
    place: Place, scheme: str, broker_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STREAMTASK_BOOTSTRAP_SERVERS", raising=False)
    url = scheme + place.url.removeprefix("http")
    bootstrap = place.bootstrap if broker_too else None
    settings = load_settings(bootstrap_servers=bootstrap, prefix=place.names.prefix, url=url, api_key=KEY)
    with Client(settings=settings) as client:
        receipt = client.submit("census")
        events = receipt.events()
        assert next(events).status is CREATED
        place.worker.say(receipt, CREATED, RUNNING, progress=0.5)
        assert any(event.progress == 0.5 for event in events)
        place.worker.say(receipt, COMPLETED, result=b"1")
        assert [event.status for event in events] == [COMPLETED]
        assert [event.status for event in client.events(receipt.task_id)] == [COMPLETED], "where it stands"
        with pytest.raises(UnknownTask):
            next(client.events(new_task_id()))


def test_a_client_that_knows_the_service_alone_submits_there(remote: Client, place: Place) -> None:
    receipt = remote.submit("census", {"path": "a"}, priority=2, ordering_key="k")
    assert receipt.band == "low"
    place.worker.say(receipt, CREATED, RUNNING, COMPLETED, result=b"2")
    assert receipt.result(WAIT_S) == 2
    assert [r.band for r in remote.submit_many([{"task_type": "x", "priority": 9}, {"task_type": "x"}])] == [
        "high",
        "normal",
    ]
    with pytest.raises(ConfigError, match="Bulk submission needs"):
        remote.submit_bulk([{"task_type": "x"}])


def test_problems_become_our_errors(client: Client, remote: Client, place: Place) -> None:
    with pytest.raises(UnknownTask):
        client.status(new_task_id())
    with pytest.raises(UnknownTask):
        client.wait(new_task_id(), WAIT_S)
    receipt = client.submit("census")
    client.cancel(receipt.task_id, "not needed")
    place.worker.say(receipt, CREATED, TaskStatus.CANCELLED, error_code="cancelled")
    receipt.wait(WAIT_S)
    with pytest.raises(RequestRefused, match="cancelled"):
        client.cancel(receipt.task_id)
    with pytest.raises(RequestRefused, match="The limit is"):
        remote.submit("census", {"text": "x" * 1_100_000})


def test_a_wrong_key_and_a_wrong_address_are_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMTASK_BOOTSTRAP_SERVERS", raising=False)
    wrong_key = Client(settings=load_settings(url=place.url, api_key="another"))
    with wrong_key, pytest.raises(ConfigError, match="STREAMTASK_API_KEY"):
        wrong_key.status(new_task_id())
    with Client(url="http://127.0.0.1:1") as nowhere, pytest.raises(Unreachable, match="streamtask serve"):
        nowhere.wait(new_task_id(), WAIT_S)


# --- The command line -------------------------------------------------------------------------------------------------


def test_a_task_from_the_command_line(place: Place, client: Client) -> None:
    code, out, err = place.cli("submit", "census", '{"path": "a.py"}', "--priority", "8", "--json")
    assert (code, err) == (0, "")
    receipt = json.loads(out)
    assert receipt["band"] == "high"
    code, out, err = place.cli("status", receipt["task_id"], "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["status"] == "created"
    code, out, _ = place.cli("status", receipt["task_id"])
    assert code == 0
    assert receipt["task_id"] in out
    assert "created" in out
    code, out, _ = place.cli("cancel", receipt["task_id"], "--reason", "not needed")
    assert code == 0
    assert "Cancel requested" in out


def test_submit_and_wait_ends_with_the_end_of_the_task(place: Place, client: Client) -> None:
    code, out, err = place.cli("submit", "census", "-", "--wait-timeout", "0.2", stdin='{"a": 1}')
    assert code == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("Error: Task ")
    assert "streamtask watch" in err.splitlines()[-1]


def test_list_filters_and_says_when_there_are_more(place: Place, client: Client) -> None:
    receipts = [client.submit("listed", labels={"n": str(n)}) for n in range(5)]
    place.worker.say(receipts[0], CREATED, RUNNING, COMPLETED, result=b"1", task_type="listed")
    receipts[0].wait(WAIT_S)
    receipts[-1].status()
    for url in (True, False):
        code, out, err = place.cli("list", "--type", "listed", "--json", url=url)
        assert code == 0
        assert ("reading the topics" in err) is not url
        assert {task["task_id"] for task in json.loads(out)["tasks"]} == {receipt.task_id for receipt in receipts}
        code, out, _ = place.cli("list", "-t", "listed", "-s", "completed", "--json", url=url)
        assert [task["task_id"] for task in json.loads(out)["tasks"]] == [receipts[0].task_id]
        code, out, err = place.cli("list", "-t", "listed", "--limit", "2", "--since", "1h", url=url)
        assert code == 0
        assert len(out.splitlines()) == 3
        assert "There are more" in err
        assert place.cli("list", "-t", "never", url=url)[2].endswith("No tasks match.\n")


def test_watch_follows_to_the_end_with_and_without_a_service(place: Place, client: Client) -> None:
    good, bad = client.submit("census"), client.submit("census")
    place.worker.say(good, CREATED, RUNNING, progress=0.5, message="half")
    place.worker.say(good, COMPLETED, result=b"1")
    place.worker.say(bad, CREATED, RUNNING, TaskStatus.FAILED, error="broken", error_code="handler_error")
    good.wait(WAIT_S)
    bad.wait(WAIT_S)
    code, out, _ = place.cli("watch", good.task_id, "--url", f"ws{place.url.removeprefix('http')}")
    assert (code, "completed" in out.splitlines()[-1]) == (0, True)
    for url in (True, False):
        code, out, _ = place.cli("watch", good.task_id, url=url)
        assert code == 0
        assert "completed" in out.splitlines()[-1]
        code, out, _ = place.cli("watch", bad.task_id, "--json", url=url)
        assert code == 1
        assert json.loads(out.splitlines()[-1])["error"] == "broken"
    code, _, err = place.cli("status", new_task_id(), url=False)
    assert code == 2
    assert "No task" in err.splitlines()[-1]


def test_ctrl_c_leaves_a_watch_cleanly(place: Place, client: Client) -> None:
    receipt = client.submit("census")
    place.worker.say(receipt, CREATED, RUNNING)
    for url in ([], ["--url", place.url, "--api-key", KEY]):
        watching = subprocess.Popen(
            [*WATCH, receipt.task_id, "--bootstrap", place.bootstrap, "--prefix", place.names.prefix, *url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert watching.stdout is not None
            assert "running" in next(line for line in watching.stdout if "running" in line)
            watching.send_signal(signal.SIGINT)
            _, err = watching.communicate(timeout=WAIT_S)
            assert watching.returncode == 130
            assert "Traceback" not in err
        finally:
            if watching.poll() is None:
                watching.kill()
                watching.communicate()


def test_dead_letters_are_listed_and_shown(place: Place) -> None:
    record = RequestRecord(0, 1, 7, 1_000, "", None, 9, 1_000, b"\xffnot json", key=b"k")
    letter = DeadLetter(record, "invalid_request", "not JSON: unexpected character", str(Origin("high", 1, 7)))
    key, value, headers = encode_dead(
        letter, place.names, value_bytes_max=1_000_000, worker="w", failed_at_ms=1_700_000_000_000
    )
    with ClientProducer(KafkaSettings(place.bootstrap)) as producer:
        producer.send(place.names.dead, key, value, headers)
        assert producer.flush(20) == 0
    code, out, _ = place.cli("dead", "list")
    assert code == 0
    assert "high-1@7" in out
    assert "invalid_request" in out
    code, out, _ = place.cli("dead", "show", "high-1@7", "--json")
    assert code == 0
    shown = json.loads(out)
    assert (shown["value"], shown["key"], shown["topic"]) == ("\\xffnot json", "k", place.names.requests[0])
    assert place.cli("dead", "list", "--code", "timeout")[2].startswith("No dead letter")
    assert place.cli("dead", "show", "high-1@8")[0] == 2


def test_the_topics_are_checked_and_created(place: Place, prefix: str) -> None:
    code, out, _ = place.cli("topics", "check")
    assert code == 0
    assert "No errors" in out
    code, out, err = place.cli("topics", "check", "--prefix", prefix)
    assert code == 1
    assert f"streamtask topics create --prefix {prefix}" in out
    for command in (["serve", "--port", "0"], ["submit", "x"]):
        code, out, err = place.cli(*command, "--prefix", prefix)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "streamtask topics create" in err
    try:
        code, out, _ = place.cli("topics", "create", "--prefix", prefix, "--partitions", "2", "--json")
        assert code == 0
        assert len(json.loads(out)["created"]) == 7
        code, out, _ = place.cli("topics", "create", "--prefix", prefix)
        assert code == 0
        assert "exist already" in out
        code, out, _ = place.cli("doctor", "--prefix", prefix, "--json")
        assert code == 0
        assert json.loads(out)["ok"] is True
        code, out, _ = place.cli("audit", "--prefix", prefix, "--json")
        assert code == 0
    finally:
        admin.delete_topics({"bootstrap.servers": place.bootstrap}, TopicNames(prefix))


def test_without_a_broker_that_answers_it_is_one_line(place: Place) -> None:
    code, out, err = place.cli("list", "--bootstrap", "127.0.0.1:1", url=False)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("Error: No ")
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err
