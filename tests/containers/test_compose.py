"""The compose file: valid, and the census runs through it while a worker's container is killed."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamtask.audit import run_audit
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from tests.acceptance.harness import until
from tests.containers.compose import with_compose
from tests.containers.daemon import Missing
from tests.containers.host import ROOT, Host, Project

pytestmark = [pytest.mark.docker, pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(900)]


# --- Without a daemon -------------------------------------------------------------------------------------------------


@pytest.fixture
def environment() -> dict[str, str]:
    import os

    try:
        return with_compose(os.environ)
    except Missing as missing:
        pytest.skip(str(missing))


def config(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", "compose", *arguments, "config"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_compose_finds_its_file_valid(environment: dict[str, str], tmp_path: Path) -> None:
    done = config(environment, "--profile", "census")
    assert done.returncode == 0, done.stderr
    assert "level=warning" not in done.stderr, done.stderr
    wrong = tmp_path / "compose.yml"
    wrong.write_text((ROOT / "docker-compose.yml").read_text().replace("stop_grace_period", "stop_grace"))
    assert config(environment, "--file", str(wrong)).returncode != 0, "it would notice a wrong key"


# --- On a daemon ------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(host: Host) -> Iterator[Project]:
    try:
        one = Project(host, host.tag)
    except Missing as missing:
        pytest.skip(str(missing))
    try:
        yield one
    finally:
        one.run("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)


def get(project: Project, path: str) -> Any:
    with urllib.request.urlopen(f"{project.url}{path}", timeout=30) as answer:
        return json.load(answer)


def test_a_census_survives_the_kill_of_a_worker_and_down_leaves_nothing(host: Host, project: Project) -> None:
    before = host.there()
    if host.own:  # the classic builder would build the same image four times at once
        project.run("build", "topics")
    project.run("up", "--detach", "--build", "--wait")
    workers = project.ids("worker")
    assert len(workers) == 2
    assert get(project, "/ready")["state"] == "ready"
    is_published_to_this_machine_alone(host, project)
    runs_confined(host, workers[0])

    census = subprocess.Popen(
        project.command("run", "--rm", "--no-TTY", "census"),
        cwd=ROOT,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with census:
        try:
            # Not a count of ended tasks: nearly all of them end within the second between two counts of the view.
            until(lambda: running(project) or census.poll() is not None, "tasks run", 90)
            assert census.poll() is None, "the census is in the middle"
            host.run("kill", "--signal", "KILL", workers[0])
            said, complaints = census.communicate(timeout=120)
        finally:
            census.kill()
    assert census.returncode == 0, said + complaints
    last = json.loads(said.strip().splitlines()[-1])
    assert last["violations"] == 0
    assert (last["counts"]["failed"], last["counts"]["cancelled"]) == (6, 3), "those that misbehave on purpose"
    report = run_audit(KafkaSettings(project.bootstrap, client_id="test"), TopicNames())
    assert report.finished, report.to_text()
    assert sum(report.counts.values()) == sum(last["counts"].values()) > 400
    assert host.inspect(workers[0])["State"]["ExitCode"] == 137, "it was killed"

    project.run("up", "--detach", "--wait", "--no-build")  # the killed one, again
    assert host.inspect(workers[0])["State"]["Health"]["Status"] == "healthy"
    project.run("stop", "worker", "query")
    codes = {one: host.inspect(one)["State"]["ExitCode"] for one in [*workers, *project.ids("query")]}
    assert set(codes.values()) == {0}, f"SIGTERM drains: {codes}\n{project.run('logs', 'worker').stdout[-3_000:]}"
    project.run("down", "--volumes")
    assert host.there() == before, "down leaves containers, volumes or networks"


def running(project: Project) -> int:
    return int(get(project, "/stats")["tasks"]["running"])


def is_published_to_this_machine_alone(host: Host, project: Project) -> None:
    for service in ("kafka", "worker", "query"):
        for container in project.ids(service):
            ports = host.inspect(container)["NetworkSettings"]["Ports"]
            addresses = {one["HostIp"] for published in ports.values() for one in published or ()}
            assert addresses <= {"127.0.0.1"}, f"{service}: {ports}"
    for port in (project.http_port, project.kafka_port):
        with pytest.raises(OSError, match=r"refused|unreachable"):
            socket.create_connection(("127.0.0.2", port), 2).close()  # this machine by another address


def runs_confined(host: Host, worker: str) -> None:
    """Not root, tini first, nothing to write to but /tmp, and a health that was asked."""
    assert host.out("exec", worker, "id", "-u") == "10001"
    assert host.out("exec", worker, "cat", "/proc/1/comm") == "tini"
    assert host.run("exec", worker, "touch", "/opt/streamtask/x", check=False).returncode != 0
    log = host.inspect(worker)["State"]["Health"]["Log"]
    assert (log[-1]["ExitCode"], log[-1]["Output"].strip()) == (0, "ok")
