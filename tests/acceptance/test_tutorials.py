"""The tutorials, as a reader does them: the files of the page in an empty folder, its commands, and what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from streamtask.dev.place import any_port
from streamtask.testing import GIVEN, Broker
from tests.acceptance.harness import ROOT, Bench, until
from tests.acceptance.test_developer import dev, environment, own
from tests.acceptance.test_languages import needs
from tests.acceptance.test_plugin import run_pytest
from tests.unit.test_docs import blocks
from tests.unit.test_pages import files_of

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]

FILM, NODE = "tutorials/fastapi-progress", "tutorials/another-language"


# --- A service with live progress -------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """The reader's folder after step 6. Without its streamtask.toml: the ports that it names may be taken here."""
    for path, text in files_of(FILM).items():
        (tmp_path / path).write_text(text)
    (page,) = blocks(ROOT / "docs" / f"{FILM}.md", "html")
    (tmp_path / "page.html").write_text(page)
    return tmp_path


def test_the_tests_of_the_tutorial_pass(film: Path, broker: Broker) -> None:
    done = run_pytest(film, **{GIVEN: broker.bootstrap})
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@contextmanager
def served(film: Path, **settings: str) -> Iterator[str]:
    """The URL of the tutorial's service, run by the tutorial's command."""
    (command,) = re.findall(r"^granian .*$", (ROOT / "docs" / f"{FILM}.md").read_text(), re.M)
    port = any_port()
    arguments = command.replace("8000", str(port)).split()[1:]
    log = film / "service.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "granian", *arguments],
            cwd=film,
            env=environment(**settings),
            stdout=out,
            stderr=out,
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(url, timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, log.read_text, 60)
        yield url
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def test_a_browser_sees_the_progress_of_a_film_until_its_end(film: Path, bench: Bench) -> None:
    with dev(film, *own(bench), "--no-reload") as session:
        (started,) = session.told(event="started")
        settings = {
            "STREAMTASK_BOOTSTRAP_SERVERS": bench.kafka.bootstrap,
            "STREAMTASK_PREFIX": bench.names.prefix,
            "STREAMTASK_URL": started["url"],
        }
        with served(film, **settings) as url, httpx.Client(base_url=url, timeout=60) as browser:
            assert "EventSource" in browser.get("/").text
            task_id = browser.post("/films", params={"title": "Metropolis", "frames": 20}).json()["task_id"]
            with browser.stream("GET", f"/films/{task_id}/events") as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                seen = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
            assert (seen[-1]["status"], seen[-1]["result"]) == ("completed", "Metropolis.mp4")
            # A reader that is slow gets the latest event in place of several: not every frame, but some.
            assert [event["message"] for event in seen if event["message"].endswith(" of 20")]

            task_id = browser.post("/films", params={"title": "Nosferatu", "frames": 900}).json()["task_id"]
            bench.until_status(task_id, "running", count=2)
            assert browser.delete(f"/films/{task_id}").status_code == 202
            ended = browser.get(f"/films/{task_id}/events").text
            assert '"status":"cancelled"' in ended
    bench.finish(drain=False)


# --- A producer in another language -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder after step 5, with the clients that step 1 installs."""
    needs("node")
    folder = tmp_path_factory.mktemp("node")
    page = (ROOT / "docs" / f"{NODE}.md").read_text()
    (install,) = re.findall(r"^npm init -y\nnpm install .*$", page, re.M)
    done = subprocess.run(
        ["bash", "-ec", install], cwd=folder, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for block in blocks(ROOT / "docs" / f"{NODE}.md", "js"):
        found = re.match(r"// (\w+\.mjs)\n", block)
        assert found, block
        (folder / found[1]).write_text(block)
    return folder


def node(programs: Path, bench: Bench, command: str) -> subprocess.CompletedProcess[str]:
    settings = {"STREAMTASK_BOOTSTRAP_SERVERS": bench.kafka.bootstrap, "STREAMTASK_PREFIX": bench.names.prefix}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=programs,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def shown(first: str, having: str) -> str:
    """The block of the page that begins with this line and has that one."""
    (found,) = [one for one in blocks(ROOT / "docs" / f"{NODE}.md", "text") if one.startswith(first) and having in one]
    return found


def test_a_program_in_node_submits_a_task_and_follows_it_to_its_end(programs: Path, bench: Bench) -> None:
    worker = bench.supervised(app="examples.quickstart.app:app")
    done = node(programs, bench, "node follow.mjs $(node submit.mjs 3)")
    assert (done.returncode, done.stdout) == (0, shown("created", "completed")), done.stderr
    assert not worker.events("partitioner_differs")
    bench.finish()


def test_a_mistake_of_the_program_is_an_event(programs: Path, bench: Bench) -> None:
    bench.supervised(app="examples.quickstart.app:app")
    wrong = (programs / "submit.mjs").read_text().replace("steps:", "stepz:")
    (programs / "wrong.mjs").write_text(wrong)
    done = node(programs, bench, "node follow.mjs $(node wrong.mjs)")
    assert (done.returncode, done.stdout) == (1, shown("created", "failed")), done.stderr
    bench.finish()


def test_a_program_in_node_cancels_a_task(programs: Path, bench: Bench) -> None:
    bench.supervised(app="examples.quickstart.app:app")
    (command,) = re.findall(r"^ID=.*$", (ROOT / "docs" / f"{NODE}.md").read_text(), re.M)
    done = node(programs, bench, command)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "cancelled"
    bench.finish()


def test_the_tutorial_installs_the_clients_of_the_example() -> None:
    """One version of each client in the whole repository."""
    wanted = json.loads((ROOT / "examples" / "node" / "package.json").read_text())["dependencies"]
    (line,) = re.findall(r"^npm install (.*)$", (ROOT / "docs" / f"{NODE}.md").read_text(), re.M)
    assert dict(one.split("@") for one in line.split()) == wanted
