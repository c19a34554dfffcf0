"""Runs the census: broker, topics, two worker processes, query service, two producers, audit; shows progress and a summary.

Everything that it starts ends with it. The logs of the processes go to files in its folder, which is shown when something
goes wrong; people see one table. On a system that is already running (`census_there`) it only submits, watches and audits.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.live import Live

from streamtask.audit import Report, run_audit
from streamtask.client import Client
from streamtask.config import Settings, load_settings
from streamtask.demo.plan import Plan, make_plan
from streamtask.demo.table import next_steps, progress_table, summary
from streamtask.devbroker.cluster import DevBroker
from streamtask.errors import ClusterError
from streamtask.kafka.admin import ensure_topics

APP = "streamtask.demo.census:app"
PROCESSES = 2  # on any machine, so that what it says and shows is the same everywhere
READY_S, WORK_S, STOP_S = 60.0, 900.0, 40.0
FIRST_S = 60.0  # without any completed task: then no worker handles them
LOOK_S = 0.25
ENDED = ("completed", "failed", "cancelled")


class Demo:
    """The census on one cluster, under one prefix. url: of the query service that runs, or that it starts."""

    def __init__(self, settings: Settings, folder: Path, url: str | None = None) -> None:
        self.bootstrap = settings.bootstrap()
        self.names = settings.topics
        self.kafka = settings.kafka_for("demo")
        self.folder = folder
        self.port = _free_port()
        self.url = (url or f"http://127.0.0.1:{self.port}").rstrip("/")
        self._headers = {"X-API-Key": settings.api_key.get_secret_value()} if settings.api_key is not None else {}
        self._before: dict[str, int] = {}  # tasks that existed before

    @contextlib.contextmanager
    def process(self, name: str, *command: str, stdin: IO[str] | None = None) -> Iterator[subprocess.Popen[str]]:
        """Run one of its processes: SIGTERM at the end, SIGKILL if it does not exit."""
        environment = {
            **os.environ,
            "STREAMTASK_BOOTSTRAP_SERVERS": self.bootstrap,
            "STREAMTASK_PREFIX": self.names.prefix,
            "STREAMTASK_PORT": str(self.port),
        }
        with (self.folder / f"{name}.log").open("w") as log:
            running = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment,
                stdin=stdin,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is handled here: workers drain when the demo says so
            )
            try:
                yield running
            finally:
                _end(running)

    def log_of(self, name: str) -> str:
        text = (self.folder / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-15:])

    def await_ready(self, *processes: tuple[str, subprocess.Popen[str]]) -> None:
        """Wait until the query service has caught up. Raises ClusterError with the log of what failed."""
        deadline = time.monotonic() + READY_S
        while self._get("/ready") is None:
            for name, running in processes:
                if running.poll() is not None:
                    raise ClusterError(f"The {name} exited with code {running.returncode}:\n{self.log_of(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"The query service was not ready after {READY_S:g} s:\n{self.log_of('service')}")
            time.sleep(0.05)

    def _get(self, path: str) -> Any:
        try:
            request = urllib.request.Request(f"{self.url}{path}", headers=self._headers)
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except (OSError, urllib.error.URLError, ValueError):
            return None

    def counts(self) -> dict[str, int]:
        """Tasks by status, as the query service counts them, less those that existed before."""
        stats = self._get("/stats")
        return self.ours(stats["tasks"]) if stats else {}

    def ours(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The counts without the tasks that existed before."""
        return {status: count - self._before.get(status, 0) for status, count in counts.items()}

    def start_from_here(self) -> None:
        """Do not count the tasks that exist now. Raises ClusterError when the query service does not answer."""
        stats = self._get("/stats") if self._get("/ready") else None
        if stats is None:
            raise ClusterError(
                f"The query service at {self.url} is not ready, or rejects the API key. Check {self.url}/health"
            )
        self._before = dict(stats["tasks"])

    def recent(self, status: str, limit: int = 4) -> list[dict[str, Any]]:
        """The latest tasks with this status."""
        page = self._get(f"/tasks?status={status}&limit={limit}")
        return list(page["tasks"]) if page else []

    def submit(self, client: Client, plan: Plan) -> None:
        """Submit with the client, and every fifth file by a service that knows nothing of streamtask."""
        paths = self.folder / "paths.txt"
        paths.write_text("".join(f"{path}\n" for path in plan.foreign))
        with paths.open() as lines:
            command = ("streamtask.demo.other_service", self.bootstrap, self.names.requests[1])
            with self.process("other-service", *command, stdin=lines) as other:
                client.submit_many(plan.own)
                self.endless = client.submit_many(plan.endless)
                if other.wait(60):
                    raise ClusterError(f"The other service failed:\n{self.log_of('other-service')}")

    def watch(self, plan: Plan, console: Console) -> float:
        """Show the progress until every task has ended; cancels the endless ones meanwhile. Returns seconds."""
        began = time.monotonic()
        waiting = list(self.endless)
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            while True:
                counts = self.counts()
                live.update(progress_table(counts, plan.total, time.monotonic() - began, self.recent("running")))
                if waiting and (self._get(f"/tasks/{waiting[0].task_id}") or {}).get("status") == "running":
                    waiting.pop(0).cancel("the demo has seen enough")
                ended = sum(counts.get(status, 0) for status in ENDED)
                if not ended and time.monotonic() - began > FIRST_S:
                    raise ClusterError(f"No task ended within {FIRST_S:g} s. Check that a worker of {APP} is running.")
                if ended >= plan.total:
                    return time.monotonic() - began
                if time.monotonic() - began > WORK_S:
                    raise ClusterError(
                        f"{plan.total - ended} tasks did not end within {WORK_S:g} s. Logs: {self.folder}"
                    )
                time.sleep(LOOK_S)


def run_demo(directory: Path | None, *, bootstrap: str | None = None, leave: bool = False) -> int:
    """Run the whole demo. Returns the exit code: 0 when every task ended and the audit is clean."""
    console = Console(highlight=False)
    plan = make_plan(directory)
    with contextlib.ExitStack() as held:
        held.enter_context(_terminated_is_interrupted())
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="streamtask-demo-")))
        prefix = f"demo-{secrets.token_hex(3)}".replace("-", ".") if bootstrap else "tasks"
        if bootstrap is None:
            console.print("Starting a local Apache Kafka (the first start downloads it, about 10 s) …")
            bootstrap = held.enter_context(DevBroker()).bootstrap
        one = Demo(load_settings(bootstrap_servers=bootstrap, prefix=prefix), folder)
        ensure_topics(one.kafka, one.names)
        console.print(f"Kafka at {bootstrap}; {PROCESSES} workers and the query service are starting …")
        service = held.enter_context(one.process("service", "streamtask", "serve"))
        command = ("streamtask", "worker", APP, "--processes", str(PROCESSES))
        workers = held.enter_context(one.process("workers", *command))
        one.await_ready(("service", service), ("workers", workers))
        client = held.enter_context(Client(bootstrap, prefix=prefix, url=None))
        report, wall_s = take(one, client, plan, console)
        if not leave:  # otherwise the client could not be used any more
            for what, try_this in next_steps(one.url, bootstrap, prefix, plan):
                console.print(f"[dim]{what:<18}[/] {try_this}", soft_wrap=True)
        if not leave and sys.stdin.isatty():
            console.print("Everything keeps running. Press Ctrl-C to stop it.")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
        held.close()
        return _end_of(report, one, plan, wall_s, leave)


def census_there(directory: Path | None, settings: Settings, *, leave: bool = False) -> int:
    """The census on a running system: its workers have APP and see the same files, and no other client submits meanwhile.

    Starts nothing and stops nothing. Returns the exit code: 0 when every task ended and the audit is clean.
    """
    console = Console(highlight=False)
    plan = make_plan(directory)
    with contextlib.ExitStack() as held:
        held.enter_context(_terminated_is_interrupted())
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="streamtask-demo-")))
        one = Demo(settings, folder, settings.url)
        one.start_from_here()
        client = held.enter_context(Client(settings.bootstrap(), prefix=settings.prefix, url=None))
        report, wall_s = take(one, client, plan, console)
        return _end_of(report, one, plan, wall_s, leave)


def take(one: Demo, client: Client, plan: Plan, console: Console) -> tuple[Report, float]:
    """Submit, watch, audit, sum up. Returns the report of the audit and the seconds that the tasks took."""
    console.print(f"A census of [b]{plan.root}[/b]: {plan.total} tasks", soft_wrap=True)
    one.submit(client, plan)
    wall_s = one.watch(plan, console)
    report = run_audit(one.kafka, one.names)
    console.print(summary(report, one.ours(report.counts), plan, wall_s))
    return report, wall_s


def _end_of(report: Report, one: Demo, plan: Plan, wall_s: float, leave: bool) -> int:
    if leave:
        print(json.dumps(last_line(report, one.ours(report.counts), plan, wall_s)), flush=True)
    return 0 if report.finished else 1


def last_line(report: Report, counts: dict[str, int], plan: Plan, wall_s: float) -> dict[str, Any]:
    """The machine-readable last line for `--exit`."""
    return {
        "counts": counts,
        "wall_s": round(wall_s, 2),
        "tasks_per_s": round(plan.total / wall_s, 1),
        "violations": report.violations_total + report.pending_total,
    }


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Make SIGTERM end the demo like Ctrl-C, together with everything that it started."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(running: subprocess.Popen[str]) -> None:
    if running.poll() is None:
        running.terminate()
        try:
            running.wait(STOP_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
