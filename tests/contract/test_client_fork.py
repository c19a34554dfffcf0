"""A client that was used before a fork works in the child, and the parent's goes on: see client/forking.py."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamtask import App
from streamtask.testing import Broker, Running, running

pytestmark = [
    pytest.mark.broker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0
app = App("forks")


@app.task("greet")
async def greet(name: str) -> str:
    return f"Hello, {name}!"


@pytest.fixture(scope="module")
def shop(broker: Broker) -> Iterator[Running]:
    with running(app, broker.bootstrap, partitions=1) as runs:
        yield runs


def environment(shop: Running, **more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")}
    return {**own, "STREAMTASK_BOOTSTRAP_SERVERS": shop.bootstrap, "STREAMTASK_PREFIX": shop.prefix, **more}


@pytest.mark.parametrize(
    "way", ["fork", "unused", "async", "multiprocessing-fork", "multiprocessing-forkserver", "multiprocessing-spawn"]
)
def test_a_client_that_was_used_before_a_fork_works_in_the_child(shop: Running, way: str) -> None:
    """Bug: submit waited for ever in the child, for an event loop and threads that only the parent had."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.contract.forking_app", way],
        cwd=ROOT,
        env=environment(shop),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_without_the_hook_the_child_hangs(shop: Running) -> None:
    """So the tests above prove something: a client that forgets nothing waits for the parent's threads."""
    code = (
        "import os, sys, runpy; os.register_at_fork = lambda **_: None; sys.argv[1:] = ['hung'];"
        "runpy.run_module('tests.contract.forking_app', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(shop), timeout=60, check=False)
    assert done.returncode == 0


@contextlib.contextmanager
def server(shop: Running, *command: str, **more: str) -> Iterator[str]:
    """A running web server with two worker processes; its URL."""
    port = free_port()
    argv = [sys.executable, "-m", *(part.replace("PORT", str(port)) for part in command)]
    process = subprocess.Popen(
        argv, cwd=ROOT, env=environment(shop, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the server does not listen"
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        process.wait(READY_S)  # a worker that cannot end would hold its master
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "no preload"])
def test_gunicorn_workers_submit_and_end(shop: Running, preload: bool) -> None:
    pytest.importorskip("gunicorn", reason="pip install 'streamtask-kafka[dev]'")
    options = ["--workers", "2", "--bind", "127.0.0.1:PORT", "--graceful-timeout", "20", "--timeout", "60"]
    command = ["gunicorn", *options, *(["--preload"] if preload else []), "tests.contract.forking_app:wsgi"]
    with server(shop, *command, FORKING_USES_IT_AT_IMPORT="1") as url:
        for number in range(6):
            with urllib.request.urlopen(f"{url}/{number}", timeout=READY_S) as answer:
                worker, importer = answer.read().decode().split()
            assert (worker != importer) is preload


def test_uvicorn_workers_submit_and_end(shop: Running) -> None:
    pytest.importorskip("uvicorn", reason="pip install 'streamtask-kafka[dev]'")
    with server(shop, "uvicorn", "--workers", "2", "--port", "PORT", "tests.contract.forking_app:asgi") as url:
        for _ in range(6):
            with urllib.request.urlopen(url, timeout=READY_S) as answer:
                assert answer.read() == b"Hello, asgi!"
