"""Every role with exactly the ACLs of its table (docs/security.md), all at work on a broker that enforces them.

Who is allowed what, row by row: tests/contract/test_acls.py. Here real processes do their whole work with it, and a worker
that may not fence another one is taken through the worst that can happen to it.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from streamtask.client import Client
from streamtask.config import TopicNames, load_settings
from streamtask.kafka import admin
from streamtask.kafka.acls import Acl, Resource, Role, acls_of
from tests.acceptance import harness
from tests.acceptance.harness import ROOT, Bench, Running
from tests.secure_broker import SecureBroker

pytest.importorskip("kafka.admin", reason="needs the extra `failover`")
pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

PASSWORD = "of the role"
COMMAND_S = 90.0  # of 2 s on an idle machine
WAIT_S = 90.0
until = functools.partial(harness.until, timeout_s=WAIT_S)
UNFENCED_S = 90.0  # session 3 s, then up to transaction.timeout.ms and the broker's look at it: 13-14 s


@dataclass
class Users:
    """A user for every role of one prefix, each with exactly the ACLs of its role."""

    kafka: SecureBroker
    names: TopicNames

    def user(self, name: str, acls: Iterable[Acl]) -> dict[str, str]:
        """The environment of a process of a user who may do exactly this."""
        self.kafka.add_user(f"{name}-{self.names.prefix}", PASSWORD)
        self.kafka.allow(f"{name}-{self.names.prefix}", acls)
        return self.environment(name)

    def environment(self, name: str) -> dict[str, str]:
        bootstrap, settings = self.kafka.scram(f"{name}-{self.names.prefix}", PASSWORD)
        return {"STREAMTASK_BOOTSTRAP_SERVERS": bootstrap, "STREAMTASK_KAFKA": json.dumps(settings)}

    def client(self, role: Role) -> Client:
        told = self.environment(role.value)
        return Client(
            settings=load_settings(
                bootstrap_servers=told["STREAMTASK_BOOTSTRAP_SERVERS"],
                prefix=self.names.prefix,
                kafka=json.loads(told["STREAMTASK_KAFKA"]),
            )
        )

    def command(self, role: Role, *arguments: str, expected: int = 0) -> str:
        """What a command says in the name of this role."""
        done = subprocess.run(
            [sys.executable, "-m", "streamtask", *arguments, "--prefix", self.names.prefix],
            cwd=ROOT,
            env={**os.environ, **self.environment(role.value)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == expected, f"{role.value}: {arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def users(secured: SecureBroker) -> Iterator[Users]:
    """The topics were made by the admin."""
    users = Users(secured, TopicNames(f"acl{secrets.token_hex(4)}"))
    for role in Role:
        users.user(role.value, acls_of(role, users.names))
    users.command(Role.ADMIN, "topics", "create", "--partitions", "4")
    yield users
    admin.delete_topics({"bootstrap.servers": secured.bootstrap}, users.names)


@pytest.fixture
def bench(users: Users, tmp_path: Path) -> Iterator[Bench]:
    """It looks on by the administrator's door."""
    with harness.bench(users.kafka.bootstrap, users.names, tmp_path) as one:
        yield one


def _serve(bench: Bench, users: Users) -> tuple[Running, str]:
    argv = [sys.executable, "-m", "streamtask", "serve", "--port", "0"]
    view = bench._start(argv, users.environment(Role.VIEW.value))
    ready = until(lambda: [line for line in view.text().splitlines() if line.startswith("ready: ")], view.text)
    return view, ready[0].split()[1]


@pytest.mark.slow
def test_every_role_does_its_whole_work_with_exactly_its_acls(bench: Bench, users: Users) -> None:
    """Also when a worker process is killed: its parent takes it out of the group, another one fences and takes over."""
    gate = bench.directory / "gate"
    parent = bench.supervised(2, **users.environment(Role.WORKER.value))
    until(lambda: parent.events("failover_ready"), "the second client has connected")
    with users.client(Role.PRODUCER) as producer:
        held = producer.submit_many([{"task_type": "wait_for", "parameters": {"path": str(gate)}, "priority": 9}] * 16)
        ids = {one.task_id for one in held}
        until(lambda: len({one.pid for one in bench.running() if one.id in ids}) == 2, "both processes work")
        victim = min(one.pid for one in bench.running() if one.id in ids)
        mine = {one.id for one in bench.running() if one.pid == victim}
        os.kill(victim, signal.SIGKILL)
        until(lambda: all(len(bench.starts(one)) == 2 for one in mine), "its tasks run elsewhere")
        until(lambda: parent.events("member_removed"), "its parent took it out of the group")
        cancelled = producer.submit("wait_for", {"path": "never"})
        bench.until_status(cancelled.task_id, "running", timeout_s=WAIT_S)
        producer.cancel(cancelled.task_id)
        gate.touch()
        assert {one.wait(timeout=WAIT_S).status.value for one in held} == {"completed"}
        assert cancelled.wait(timeout=WAIT_S).status.value == "cancelled"
        failed = producer.submit("hopeless")
        assert failed.wait(timeout=WAIT_S).status.value == "failed"
    _the_view_reads_and_may_not_write(bench, users, held[0].task_id)
    assert "streamtask-acceptance@" in users.command(Role.SUPERVISOR, "workers", "list")
    assert failed.task_id in users.command(Role.OPERATOR, "dead", "list", "--json")
    assert "completed" in users.command(Role.OPERATOR, "status", held[0].task_id, "--json")
    assert held[0].task_id in users.command(Role.OPERATOR, "list", "--json")
    users.command(Role.OPERATOR, "dead", "redrive", failed.task_id, "--yes")
    until(lambda: len(bench.letters()) == 2, "it has failed once more")
    for role in Role:
        assert '"acl"' not in users.command(role, "doctor", "--role", role.value, "--json")
    bench.finish()
    users.command(Role.OPERATOR, "audit")


def _the_view_reads_and_may_not_write(bench: Bench, users: Users, task_id: str) -> None:
    view, url = _serve(bench, users)
    with httpx.Client(base_url=url, timeout=30) as http:
        assert http.get(f"/tasks/{task_id}").json()["status"] == "completed"
        assert http.get("/ready").status_code == 200
        for path in ("/tasks", f"/tasks/{task_id}/redrive"):
            refused = http.post(path, json={"task_type": "noop"} if path == "/tasks" else None)
            assert refused.status_code in (404, 409, 503), refused.text
        said = http.post("/tasks", json={"task_type": "noop"}).json()
        assert "may not write" in said["detail"]
        assert "streamtask doctor --role producer" in said["detail"]
    assert view.drain() == 0


@pytest.mark.parametrize(
    "missing", [Resource.TRANSACTIONAL_ID, Resource.GROUP, Resource.TOPIC], ids=lambda one: one.value
)
def test_a_worker_that_may_not_do_what_it_must_says_so_and_does_not_start(
    bench: Bench, users: Users, missing: Resource
) -> None:
    whole = acls_of(Role.WORKER, users.names)
    gone = next(acl for acl in whole if acl.resource is missing and acl.must)
    parent = bench.supervised(1, **users.user("narrow", [acl for acl in whole if acl != gone]))
    parent.expected = None
    assert parent.wait(COMMAND_S) == 2
    (line,) = [line for line in parent.text().splitlines() if "does not " in line]
    assert gone.name in line
    assert "streamtask topics acls worker" in line or "streamtask doctor --role worker" in line


@pytest.mark.slow
def test_a_worker_that_may_not_fence_another_one_waits_for_its_transaction_and_keeps_every_promise(
    bench: Bench, users: Users, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fence ACL is missing: each may use the ids of its own slot alone. One freezes under load, is taken over without
    being fenced, and wakes up as a zombie."""

    def narrow(slot: int) -> dict[str, str]:
        whole = acls_of(Role.WORKER, users.names)
        ids = f"{users.names.group}.{slot}."
        return users.user(
            f"slot-{slot}",
            [replace(acl, name=ids) if acl.resource is Resource.TRANSACTIONAL_ID else acl for acl in whole],
        )

    assert "WRITE on transactional id" in _doctor(users, narrow(0))
    first = bench.worker(narrow(0))
    bench.until_owning(first, 4)
    tasks = bench.client.submit_many([{"task_type": "nap", "parameters": {"ms": 20}}] * 3_000)
    bench.until_begun(tasks, 200)
    first.send(signal.SIGSTOP)
    frozen_s = time.monotonic()
    second = bench.worker(narrow(1))

    def refused() -> list[str]:
        return [
            told["why"]
            for told in second.events("kafka_error")
            if "its open transaction has to time out" in told["why"]
        ]

    until(refused, "it says that it may not fence")
    until(lambda: [one for one in bench.executions() if one.pid == second.pid], "it works")
    with capsys.disabled():
        print(f" [first start elsewhere {time.monotonic() - frozen_s:.1f} s after the freeze]", end="")
    first.send(signal.SIGCONT)
    bench.ends((one.task_id for one in tasks), UNFENCED_S)
    bench.finish()


def _doctor(users: Users, environment: dict[str, str]) -> str:
    """What `doctor --role worker` says to somebody who lacks something."""
    done = subprocess.run(
        [sys.executable, "-m", "streamtask", "doctor", "--role", "worker", "--prefix", users.names.prefix],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout
