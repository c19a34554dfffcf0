"""A schema registry that dies under real workers, or is reached over TLS only: whom it holds up, and what becomes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Producer

from streamtask.client import Client
from streamtask.codec.confluent import header
from streamtask.config import Settings, load_settings
from streamtask.schema_registry import Formats, open_registry
from tests import certificates
from tests.acceptance.harness import PATIENT, ROOT, WAIT_S, Bench, until
from tests.acceptance.test_formats import FOREIGN, REGISTRY_WAIT_S, _first_bytes, _foreign, _until_known
from tests.acceptance.test_live import a_service
from tests.fake_registry import fake_registry
from tests.registry import Registry, running_registry

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A real one."""
    yield from running_registry()


def settings_of(bench: Bench, url: str, output: str, **registry: object) -> Settings:
    return load_settings(
        bootstrap_servers=bench.settings.bootstrap_servers,
        prefix=bench.names.prefix,
        format=output,
        registry_url=url,
        registry={"timeout": 5, **registry},
    )


def environment(url: str, output: str, **registry: object) -> dict[str, str]:
    return {
        "STREAMTASK_FORMAT": output,
        "STREAMTASK_REGISTRY_URL": url,
        "STREAMTASK_REGISTRY": json.dumps({"timeout": 5, **registry}),
        "STREAMTASK_REGISTRY_WAIT_S": str(REGISTRY_WAIT_S),
    }


def cancel_in(bench: Bench, task_id: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bench.settings.bootstrap()})
    producer.produce(bench.names.control, value, task_id.encode())
    assert producer.flush(WAIT_S) == 0


@pytest.mark.slow
def test_a_real_registry_that_is_killed_holds_up_neither_worker_nor_service_nor_client(
    bench: Bench, registry: Registry
) -> None:
    path = str(bench.directory / "go")
    settings = settings_of(bench, registry.url, "confluent")
    with closing(open_registry(registry.url, {"timeout": 10})) as asked:
        foreign = asked.register("acme-value", json.dumps(FOREIGN))
    ids = [str(uuid.uuid4()) for _ in range(4)]
    with closing(Formats(settings)) as known, Client(settings=settings) as client:
        known.encoder()  # our ids are learnt, and theirs
        known.insisting.json("task_request", _foreign(foreign, "noop", ids[0], 0))
        bench.reader = known.waiting  # what nobody can read is no reason to stop here
        bench._environment |= environment(registry.url, "confluent")
        first = bench.worker()
        _, url = a_service(bench)
        _until_known(bench, foreign)
        held = bench.client.submit("wait_for", {"path": path})
        in_confluent = client.submit("wait_for", {"path": path})
        doomed = client.submit("wait_for", {"path": str(bench.directory / "never")})
        for one in (held, in_confluent, doomed):
            bench.until_status(one.task_id, "running")

        registry.kill()
        lost = bench.produce(header(9_999) + b"\x02x", ids[1].encode(), partition=0)
        cancel_in(bench, doomed.task_id, header(9_998) + b"\x02x")  # nobody can say what it means
        bench.produce(_foreign(foreign, "noop", ids[2], 2), ids[2].encode(), partition=0)
        assert bench.end(ids[2]).event.result == 2, "behind it, by an id that is known"
        assert client.submit("noop", {"n": 7}).result(timeout=WAIT_S) == 7
        client.cancel(doomed.task_id)
        assert bench.end(doomed.task_id).status == "cancelled", "behind a cancel that cannot be read"
        end = bench.end(ids[1])
        assert (end.status, end.code) == ("failed", "schema_unavailable")
        assert "cannot be reached" in bench.letter(lost).text
        for task_id, status in ((ids[1], "failed"), (ids[2], "completed"), (doomed.task_id, "cancelled")):
            assert httpx.get(f"{url}/tasks/{task_id}", params={"wait": 20}, timeout=WAIT_S).json()["status"] == status
        assert httpx.get(f"{url}/health", timeout=WAIT_S).status_code == 200

        # Whoever starts now knows no id at all. It reads JSON, and says so of what it cannot read.
        first.kill()
        bench._environment |= environment(registry.url, "json")
        bench.worker(PATIENT)
        bench.until_status(held.task_id, "running", 2)
        Path(path).touch()
        assert bench.end(held.task_id).event.attempt == 2
        end = bench.end(in_confluent.task_id)
        assert (end.status, end.code) == ("failed", "schema_unavailable")
        assert client.wait(in_confluent.task_id, WAIT_S).status == "failed"
        bench.finish()


@pytest.mark.slow
def test_what_an_outage_sent_to_the_dead_letters_is_redriven_when_the_registry_is_back(bench: Bench) -> None:
    with fake_registry() as registry:
        schema_id = registry.held.register("acme-value", json.dumps(FOREIGN))
        bench._environment |= environment(registry.url, "json")
        bench.worker()
        registry.mode = "500"
        old = [str(uuid.uuid4()) for _ in range(5)]
        for n, one in enumerate(old):
            bench.produce(_foreign(schema_id, "noop", one, n), one.encode())
        assert {end.code for end in bench.ends(old).values()} == {"schema_unavailable"}
        registry.mode = "well"
        redrive = [
            sys.executable,
            "-m",
            "streamtask",
            "dead",
            "redrive",
            "--code",
            "schema_unavailable",
            "--yes",
            "--json",
        ]
        done = subprocess.run(
            redrive, cwd=ROOT, env=bench._environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

        def new() -> list[str]:
            firsts = ((task_id, events[0].event.labels or {}) for task_id, events in bench.histories().items())
            return [task_id for task_id, labels in firsts if "redrive_of" in labels]

        until(lambda: len(new()) == len(old), "all are redriven")
        ends = bench.ends(new())
        assert sorted(end.event.result for end in ends.values()) == list(range(5)), ends
        bench.finish()


def test_a_registry_that_asks_for_a_certificate_serves_worker_and_client(bench: Bench, tmp_path: Path) -> None:
    pem = certificates.make(tmp_path)
    tls = {"ssl.ca.location": str(pem.ca), "ssl.certificate.location": str(pem.client)}
    with fake_registry(pem.serving(asks_for_one=True)) as registry:
        settings = settings_of(bench, registry.url, "confluent", **tls)
        with closing(Formats(settings)) as known, Client(settings=settings) as client:
            bench.reader = known.insisting
            bench.worker(environment(registry.url, "confluent", **tls))
            receipts = [client.submit("noop", {"n": n}) for n in range(3)]
            assert [receipt.result(timeout=WAIT_S) for receipt in receipts] == [0, 1, 2]
            assert _first_bytes([seen for one in receipts for seen in bench.history(one.task_id)]) == {0x00}
            stranger = bench.worker(environment(registry.url, "confluent"))
            stranger.expected = None
            assert stranger.wait() != 0
            assert "ssl.ca.location" in stranger.text()
            bench.finish()
