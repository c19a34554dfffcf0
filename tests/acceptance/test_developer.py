"""The developer's day, as it is lived: a new project, its tests, a session with reload, Ctrl-C, and a kill of it all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamtask.audit import run_audit
from streamtask.client import Client
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.testing import GIVEN, Broker
from tests.acceptance.harness import ROOT, WAIT_S, Bench, until
from tests.processes import gone

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

READY_S = 90.0
APP = '''\
import asyncio
import time

from streamtask import App, Context

VERSION = 1
app = App("day")


@app.task
def version() -> int:
    return VERSION


@app.task
async def stay(ctx: Context, path: str) -> list[int]:
    """Until the new code comes: that one does not wait."""
    if VERSION == 1:
        ctx.progress(0.5, "it runs")
        await asyncio.sleep(3_600)
    return [VERSION, ctx.attempt]


@app.task
def block(ctx: Context) -> None:
    ctx.progress(0.5, "it runs")
    time.sleep(3_600)
'''


def environment(**more: str) -> dict[str, str]:
    ours = ("STREAMTASK_", "PYTEST_", "PYTHONDONTWRITEBYTECODE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, "PYTHONPATH": str(ROOT), **more}


class Dev:
    """A `streamtask dev --json` in a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._log = folder / "dev.log"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamtask", "dev", "app:app", "--json", *options],
                cwd=folder,
                env=environment(),
                stdout=out,
                stderr=out,
                process_group=0,
            )

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def told(self, **wanted: Any) -> list[dict[str, Any]]:
        """Its documents that say all of this."""
        documents = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
        return [one for one in documents if all(one.get(name) == value for name, value in wanted.items())]

    def until_told(self, count: int = 1, timeout_s: float = READY_S, **wanted: Any) -> dict[str, Any]:
        def enough() -> list[dict[str, Any]] | None:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.text()}"
            return self.told(**wanted) if len(self.told(**wanted)) >= count else None

        return until(enough, lambda: f"{wanted} is told {count} times:\n{self.text()}", timeout_s)[-1]

    def tree(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


@contextmanager
def dev(folder: Path, *options: str) -> Iterator[Dev]:
    """Ready, and gone at the end whatever happens."""
    session = Dev(folder, *options)
    try:
        session.until_told(event="ready")
        yield session
    finally:
        if session.process.poll() is None:
            session.process.kill()
            session.process.wait()


def until_gone(tree: list[psutil.Process]) -> None:
    until(
        lambda: all(gone(one.pid) for one in tree),
        lambda: f"all are gone; {[x for x in tree if x.is_running()]} are not",
    )


def cli(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamtask", *arguments],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def bump(app: Path, version: int) -> None:
    app.write_text(app.read_text().replace(f"VERSION = {version - 1}", f"VERSION = {version}"))


def own(bench: Bench) -> tuple[str, ...]:
    """Options for a session on the broker that the tests share."""
    return ("--bootstrap", bench.kafka.bootstrap, "--prefix", bench.names.prefix, "--port", "0")


# --- A session --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reload_takes_the_new_code_and_goes_on_with_what_ran(bench: Bench, tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP)
    written = app.stat().st_mtime
    with dev(tmp_path, *own(bench), "--grace", "0.5") as session:
        assert bench.client.submit("version").result(WAIT_S) == 1
        stays = bench.client.submit("stay", {"path": "x"})
        bench.until_status(stays.task_id, "running", count=2)

        # A file that the app does not import is nothing to it. Changes are seen in order, so the next one proves that.
        (tmp_path / "notes.py").write_text("x = 1\n")

        # A syntax error is told in one line with the end of the traceback; the old code goes on.
        broken = app.read_text() + "def (\n"
        app.write_text(broken)
        wrong = session.until_told(event="import_failed")
        assert "SyntaxError" in wrong["message"]
        assert "notes.py" not in session.text()
        assert "\n" not in wrong["message"]
        assert any(f'app.py", line {broken.count(chr(10))}' in line for line in wrong["trace"]), wrong
        assert bench.client.submit("version").result(WAIT_S) == 1
        assert bench.statuses(stays.task_id).count("running") == 2, "what runs was left alone"

        # The same size and the time of what ran: a .pyc of it would still look right.
        app.write_text(APP)
        bump(app, 2)
        os.utime(app, (written, written))
        session.until_told(event="reloaded")
        assert bench.client.submit("version").result(WAIT_S) == 2
        assert stays.result(WAIT_S) == [2, 2], "it began again under the new code, as its next attempt"

        tree = session.tree()
        session.process.send_signal(signal.SIGINT)
        assert session.process.wait(READY_S) == 0, session.text()
        until_gone(tree)
    bench.finish(drain=False)


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with dev(tmp_path, *own(bench), "--grace", "600") as session:
        blocks = bench.client.submit("block")
        bench.until_status(blocks.task_id, "running", count=2)
        tree = session.tree()
        session.process.send_signal(signal.SIGINT)
        until(lambda: "stopping:" in session.text(), "it ends in order")
        assert session.process.poll() is None
        session.process.send_signal(signal.SIGINT)
        assert session.process.wait(WAIT_S) == 130, session.text()
        until_gone(tree)
    bench.client.cancel(blocks.task_id)
    bench.worker(app="tests.acceptance.apps:app")
    assert bench.end(blocks.task_id).code == "cancelled"
    bench.finish()


def test_what_cannot_begin_says_so_in_one_line_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    def refused(*words: str) -> None:
        done = cli(tmp_path, "dev", "app:app", *own(bench))
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert all(word in done.stderr for word in words), done.stderr

    refused("no module 'app'")
    (tmp_path / "app.py").write_text("import os\nos._exit(3)\n")
    refused("ended its process (code 3)")
    (tmp_path / "app.py").write_text("import sys\nsys.exit('no database')\n")
    refused("SystemExit", "no database")
    (tmp_path / "app.py").write_text("from streamtask import App\napp = App('x')\n")
    refused("no task")
    (tmp_path / "app.py").write_text("1 / 0\n")
    done = cli(tmp_path, "dev", "app:app", *own(bench))
    assert "ZeroDivisionError" in done.stderr
    assert 'app.py", line 1' in done.stdout, "the end of the traceback"
    assert not list((tmp_path / ".streamtask" / "dev").glob("run-*"))


# --- A whole day ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_new_project_passes_its_test_and_is_developed(broker: Broker, tmp_path: Path) -> None:
    made = cli(tmp_path, "new", "shop")
    assert made.returncode == 0, made.stderr
    shop = tmp_path / "shop"
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=shop,
        env=environment(**{GIVEN: broker.bootstrap}),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "3 passed" in tested.stdout

    with dev(shop, "--kafka-port", "0", "--port", "0") as session:
        (started,) = session.told(event="started")
        elsewhere = {
            "STREAMTASK_BOOTSTRAP_SERVERS": started["bootstrap_servers"],
            "STREAMTASK_URL": started["url"],
        }
        asked = cli(shop, "submit", "greet", '{"name": "Ada"}', "--wait", "--json", **elsewhere)
        assert json.loads(asked.stdout)["result"] == "Hello, Ada!", asked.stderr
        second = cli(shop, "dev", "app:app")
        assert second.returncode == 2
        assert "Another `streamtask dev` runs" in second.stderr
        app = shop / "app.py"
        app.write_text(app.read_text().replace("Hello, {name}!", "Bye, {name}!"))
        session.until_told(event="reloaded")
        with Client(started["bootstrap_servers"], url="") as client:
            assert client.submit("greet", {"name": "Ada"}).result(WAIT_S) == "Bye, Ada!"
        session.until_told(count=2, part="task")
        report = run_audit(KafkaSettings(started["bootstrap_servers"], client_id="audit"), TopicNames())
        assert report.finished, report.to_text()
        tree = session.tree()
        session.process.send_signal(signal.SIGTERM)
        assert session.process.wait(READY_S) == 0, session.text()
        until_gone(tree)
    assert not list((shop / ".streamtask" / "dev").glob("run-*")), "its data is temporary"


@pytest.mark.slow
def test_a_killed_session_leaves_no_process_and_its_data_goes_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        APP.replace("@app.task\nasync def stay", '@app.task(executor="process")\nasync def stay')
    )
    folder = tmp_path / ".streamtask" / "dev"
    with dev(tmp_path, "--kafka-port", "0", "--port", "0") as session:
        (started,) = session.told(event="started")
        with Client(started["bootstrap_servers"], url="") as client:
            stays = client.submit("stay", {"path": "x"})
            until(lambda: (client.status(stays.task_id).progress or 0) > 0, "the child of a child is at work")
        tree = session.tree()
        assert len(tree) >= 6, "java, its guard, service, supervisor, worker, child"
        session.process.kill()
        session.process.wait()
        until_gone(tree)
    (left,) = folder.glob("run-*")
    with dev(tmp_path, "--kafka-port", "0", "--port", "0") as session:
        assert not left.exists()
        session.process.send_signal(signal.SIGINT)
        assert session.process.wait(READY_S) == 0, session.text()
    assert not list(folder.glob("run-*"))
