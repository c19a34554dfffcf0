"""Every client of every role over every way into a secured Kafka, and what somebody is told who is not let in."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamtask import App, Context
from streamtask.client import Client
from streamtask.config import Settings, TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import Unreachable
from streamtask.kafka import admin
from streamtask.kafka.consumer import ShardConsumer
from streamtask.kafka.producer import ClientProducer
from streamtask.kafka.tail import Tail
from streamtask.projection.source import KafkaSource, gather
from streamtask.projection.store import MemoryStore
from streamtask.projection.topic_scan import read_dead
from streamtask.projection.view import ViewService
from streamtask.testing.running import running
from streamtask.worker.failover import mapped, remove_members
from tests.secure_broker import SecureBroker, Way

pytest.importorskip("kafka.admin", reason="needs the extra `failover`")
pytestmark = pytest.mark.broker

USER, PASSWORD = "anna", "p,=; 'ss"
ROOT = Path(__file__).parents[2]
CALLBACK = "tests.contract.test_security:token"
_TOKENS: dict[str, SecureBroker] = {}


def token(_config: str) -> tuple[str, float]:
    """What a user's own function returns: the token, and when it expires."""
    return _TOKENS["broker"].identities.token(USER), time.time() + 300


@pytest.fixture(scope="module")
def kafka(secured: SecureBroker) -> SecureBroker:
    """With a user who may do everything: what is tested here is who is let in, not what they may do."""
    secured.add_user(USER, PASSWORD)
    secured.identities.clients[USER] = PASSWORD
    secured.allow_everything(USER)
    secured.allow_everything("plain")
    _TOKENS["broker"] = secured
    return secured


A_FUNCTION = "OAUTHBEARER, a function of the user's"  # confluent-kafka waits for its token at each admin client: 45 s
WAYS = {
    "TLS": lambda kafka: kafka.tls(),
    "mTLS, certificate inside the settings": lambda kafka: kafka.mtls(USER),
    "mTLS, certificate in files": lambda kafka: kafka.mtls(USER, as_files=True),
    "SASL/PLAIN": lambda kafka: kafka.plain(),
    "SASL/SCRAM": lambda kafka: kafka.scram(USER, PASSWORD),
    "OAUTHBEARER, OIDC": lambda kafka: kafka.oidc(USER, PASSWORD),
    A_FUNCTION: lambda kafka: kafka.oauth_callback(CALLBACK),
}


app = App("secured")


@app.task
async def double(ctx: Context, n: int) -> int:
    return 2 * n


@app.task
async def fails(ctx: Context) -> None:
    raise ValueError("as it is told to")


@asynccontextmanager
async def a_view(settings: Settings) -> AsyncIterator[ViewService]:
    kafka = KafkaSettings(settings.bootstrap(), extra=settings.kafka)
    store, facts = MemoryStore(), await asyncio.to_thread(gather, kafka, settings.topics)
    service = ViewService(
        store, lambda: KafkaSource(kafka, settings.topics, store, service.note), settings.topics, facts.cluster_id
    )
    async with service.running():
        async with asyncio.timeout(60):
            await service.caught_up.wait()
        yield service
    assert not service.notes, list(service.notes)


async def seen_by_a_view(settings: Settings, task_id: str) -> str:
    async with a_view(settings) as view:
        row = view.get(task_id)
        assert row is not None
        return row.status


@pytest.mark.parametrize(
    "way", [way if way != A_FUNCTION else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_all_clients_come_in_by(kafka: SecureBroker, way: str) -> None:
    bootstrap, settings = WAYS[way](kafka)
    with running(app, bootstrap, local=False, kafka=settings) as here:  # topics, group, transactions
        with Client(settings=here.settings) as client:
            receipt = client.submit("double", {"n": 21})
            assert receipt.result(timeout=60) == 42
            failed = client.submit("fails")
            assert failed.wait(timeout=60).status.value == "failed"
            client.cancel(client.submit("double", {"n": 1}).task_id)
        assert asyncio.run(seen_by_a_view(here.settings, receipt.task_id)) == "completed"
        assert [letter.task_id for letter in read_dead(here.settings)] == [failed.task_id]
        assert here.audit().clean
        own = KafkaSettings(bootstrap, extra=settings)
        state, members = admin.group_members(own, here.settings.topics)
        assert (state, len(members)) == ("stable", 1)
        if not mapped(own.admin())[1]:  # the second client, where it has a counterpart of each setting
            assert remove_members(own, here.settings.topics.group, ["stranger"], reason="test") == {"stranger": False}


# --- Who is not let in ------------------------------------------------------------------------------------------------

GUESS = "a guess that nobody prints"
WITHIN_S = 90.0  # every question has 10 s; the rest is for a loaded machine


def _other(way: Way, **more: str) -> Way:
    return way[0], way[1] | {name.replace("_", "."): value for name, value in more.items()}


# way in → (settings that are wrong, what is said of it)
WRONG: dict[str, tuple[Callable[[SecureBroker], Way], str]] = {
    "password": (lambda kafka: kafka.scram(USER, GUESS), "rejected the credentials: check sasl.mechanism"),
    "PLAIN password": (lambda kafka: kafka.plain(GUESS), "rejected the credentials: check sasl.mechanism"),
    "user": (lambda kafka: kafka.scram("nobody", GUESS), "rejected the credentials: check sasl.mechanism"),
    "mechanism": (lambda kafka: _other(kafka.scram(USER, GUESS), sasl_mechanism="SCRAM-SHA-256"), "sasl.mechanism"),
    "client secret": (lambda kafka: kafka.oidc(USER, GUESS), "No token: check sasl.oauthbearer"),
    "token": (lambda kafka: kafka.oauth_callback("tests.contract.test_security:old_token"), "credentials"),
    "authority": (
        lambda kafka: _other(kafka.tls(), ssl_ca_location=kafka.other_ca),
        "not signed by the authority in ssl.ca.location",
    ),
    "no certificate": (lambda kafka: kafka.without_certificate(), "requires a client certificate from an authority"),
    "certificate of another authority": (
        lambda kafka: kafka.foreign_certificate(USER),
        "client certificate",
    ),
    "no TLS": (lambda kafka: (kafka.tls()[0], {}), "a TLS port closes"),
    "TLS where there is none": (lambda kafka: (kafka.bootstrap, kafka.tls()[1]), "that this port uses TLS"),
}


def old_token(_config: str) -> tuple[str, float]:
    return _TOKENS["broker"].identities.token(USER, seconds=-300), time.time() + 300


Question = Callable[[KafkaSettings, float], object]  # (…, seconds)


def _by_a_producer(own: KafkaSettings, timeout_s: float) -> None:
    with ClientProducer(own, linger_ms=0) as producer:
        producer.partitions("tasks.requests.high", timeout_s)


# One of each kind of client that asks before it does anything.
QUESTIONS: dict[str, Question] = {
    "admin": lambda own, timeout_s: admin.cluster_id(own, timeout_s=timeout_s),
    "producer": _by_a_producer,
    "tail": lambda own, timeout_s: Tail(own, ["tasks.status"], timeout_s=timeout_s),
}


def _told(question: Question, way: Way, expected: str) -> str:
    """What is said, at last on a machine that takes its time."""
    text = ""
    for timeout_s in (3.0, 10.0, 30.0):
        try:
            question(KafkaSettings(way[0], extra=way[1]), timeout_s)
        except Unreachable as error:
            text = str(error)
        else:
            raise AssertionError("it was let in")
        if expected in text:
            break
    return text


def test_whoever_is_not_let_in_is_told_why_and_what_to_look_at(kafka: SecureBroker) -> None:
    with ThreadPoolExecutor(len(WRONG) * len(QUESTIONS)) as pool:
        asked = {
            (wrong, client): pool.submit(_told, question, way(kafka), expected)
            for wrong, (way, expected) in WRONG.items()
            for client, question in QUESTIONS.items()
        }
    answers = {place: answer.result() for place, answer in asked.items()}
    silent = {str(place): text for place, text in answers.items() if WRONG[place[0]][1] not in text}
    assert not silent, json.dumps(silent, indent=1)
    assert not [text for text in answers.values() if GUESS in text]


@pytest.mark.slow
def test_no_command_waits_for_ever_for_a_broker_that_does_not_let_it_in(kafka: SecureBroker, tmp_path: Path) -> None:
    """worker, serve, submit, doctor: exit code 2 and one line that says why."""
    bootstrap, settings = kafka.scram(USER, GUESS)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")},
        "STREAMTASK_BOOTSTRAP_SERVERS": bootstrap,
        "STREAMTASK_KAFKA": json.dumps(settings),
    }
    commands = (
        ["worker", "tests.contract.test_security:app"],
        ["serve", "--port", "0"],
        ["submit", "double", '{"n": 1}'],
        ["doctor"],
        ["doctor", "--role", "worker"],
        ["topics", "create"],
        ["dead", "list"],
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "streamtask", *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        for command, process in zip(commands, started, strict=True):
            out, told = process.communicate(timeout=WITHIN_S)
            assert process.returncode == 2, f"{command}: {out}{told}"
            (line,) = [line for line in told.splitlines() if line.startswith("Error: ")]
            assert WRONG["password"][1] in line
            assert "Traceback" not in told
            assert GUESS not in out + told
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_worker_that_is_let_in_no_more_says_so_and_goes_on_trying(kafka: SecureBroker) -> None:
    bootstrap, settings = kafka.scram(USER, GUESS)
    told: list[str] = []
    nothing: Any = lambda *_: None  # noqa: E731
    listener: Any = SimpleNamespace(member_changed=nothing, shards_lost=nothing, kafka_error=told.append)
    consumer = ShardConsumer(
        KafkaSettings(bootstrap, extra=settings),
        TopicNames("any"),
        decode=nothing,
        listener=listener,
    )
    consumer.join()
    try:
        deadline = time.monotonic() + WITHIN_S
        while not [text for text in told if text.startswith("_AUTHENTICATION") and "sasl.mechanism" in text]:
            consumer.fetch(0.1, 10)
            consumer.take()
            assert time.monotonic() < deadline, told
        seen = len(told)
        for _ in range(20):
            consumer.fetch(0.1, 10)  # it tries several times a second
            consumer.take()
        assert len(told) - seen <= 2, "each kind of trouble is told once a minute"
    finally:
        consumer.close(1.0)
