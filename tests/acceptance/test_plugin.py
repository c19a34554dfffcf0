"""The pytest plugin as its users meet it: test files of theirs, run by a pytest of their own, on a real Kafka."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamtask.testing import GIVEN, Broker

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

SHOP = """\
import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streamtask import App, Context, Retry

app = App("shop", prefix="production", url="http://127.0.0.1:1", kafka={"security.protocol": "PLAINTEXT"})
GREETING = "Hello"


@app.task
def greet(name: str) -> str:
    return f"{GREETING}, {name}"


@app.task(retry=Retry(attempts=2, backoff=0.1))
async def second(ctx: Context) -> int:
    await asyncio.sleep(0)
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return ctx.attempt


@app.task(executor="process")
def child() -> int:
    return os.getpid()


@asynccontextmanager
async def broken() -> AsyncIterator[None]:
    raise OSError("no database")
    yield


hopeless = App("hopeless", lifespan=broken)


@hopeless.task
def never() -> None: ...
"""

TESTS = """\
import os

import pytest
import shop
from shop import app, child, greet, hopeless, second

from streamtask import ConfigError
from streamtask.errors import LifespanError
from streamtask.testing import Broker, RunApp, running


def test_a_plain_test(streamtask_app: RunApp) -> None:
    one = streamtask_app(app)
    task = greet.submit_sync("Ada")
    assert task.result(timeout=60) == "Hello, Ada"
    assert [event.status.value for event in one.history(task.task_id)] == ["created", "running", "completed"]
    assert one.audit().clean


def test_what_is_patched_is_what_runs(streamtask_app: RunApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop, "GREETING", "Bye")
    one = streamtask_app(app)
    assert one.client.submit("greet", {"name": "Ada"}).result(60) == "Bye, Ada"


def test_each_test_has_topics_of_its_own_and_the_app_is_as_it_was(streamtask_app: RunApp) -> None:
    assert (app.settings.prefix, app.settings.url) == ("production", "http://127.0.0.1:1")
    one = streamtask_app(app)
    assert one.prefix.startswith("test.")
    assert one.client.submit("nobody knows it").wait(60).error_details.code == "unknown_task_type"


async def test_an_async_test_needs_no_other_plugin(streamtask_app: RunApp) -> None:
    streamtask_app(app)
    assert await (await second.submit()).result(timeout=60) == 2


@pytest.mark.parametrize("name", ["Ada", "Eve"])
async def test_an_async_test_with_parameters(streamtask_app: RunApp, name: str) -> None:
    streamtask_app(app)
    assert await (await greet.submit(name)).result(timeout=60) == f"Hello, {name}"


def test_a_process_handler_runs_in_a_child(streamtask_app: RunApp) -> None:
    streamtask_app(app, children=1)
    assert child.submit_sync().result(timeout=60) != os.getpid()


def test_an_app_that_cannot_start_fails_the_test(streamtask_app: RunApp) -> None:
    with pytest.raises(LifespanError):
        streamtask_app(hopeless).client.submit("never").wait(60)
        raise AssertionError("it ran")


def test_what_makes_no_sense_is_said(streamtask_app: RunApp) -> None:
    with pytest.raises(ConfigError, match="is not an App"):
        streamtask_app("shop:app")
    with pytest.raises(ConfigError, match="did you mean 'concurrency'"):
        streamtask_app(app, concurency=3)
    streamtask_app(app)
    with pytest.raises(ConfigError, match="is already running"):
        streamtask_app(app)


async def test_fails(streamtask_app: RunApp) -> None:
    streamtask_app(app)
    assert await (await greet.submit("Ada")).result(timeout=60) == "something else"


@pytest.fixture(scope="module")
def one_for_all(streamtask_broker: Broker):
    with running(app, streamtask_broker.bootstrap, partitions=1) as one:
        yield one


def test_a_worker_for_a_whole_module(one_for_all) -> None:
    assert greet.submit_sync("Ada").result(timeout=60) == "Hello, Ada"
"""

ANYIO = """\
import pytest
from shop import app, greet


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_test_that_another_plugin_runs(streamtask_app) -> None:
    streamtask_app(app)
    assert await (await greet.submit("Ada")).result(timeout=60) == "Hello, Ada"


@pytest.mark.anyio
async def test_and_another_one(streamtask_app) -> None:
    streamtask_app(app)
    assert await (await greet.submit("Eve")).result(timeout=60) == "Hello, Eve"
"""

SHARED = """\
import os
from pathlib import Path

import pytest


@pytest.mark.parametrize("n", range(6))
def test_it(n: int, streamtask_broker) -> None:
    Path(f"seen-{os.environ['PYTEST_XDIST_WORKER']}-{n}").write_text(streamtask_broker.bootstrap)
"""


def run_pytest(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMTASK_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


@pytest.mark.slow
def test_sync_and_async_tests_run_an_app_on_a_real_kafka(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TESTS)
    done = run_pytest(tmp_path, "-p", "no:anyio", **{GIVEN: broker.bootstrap})
    assert "1 failed, 10 passed" in done.stdout, done.stdout + done.stderr
    assert "FAILED test_shop.py::test_fails - AssertionError" in done.stdout


def test_a_test_that_another_plugin_runs_is_left_to_it(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(ANYIO)
    done = run_pytest(tmp_path, **{GIVEN: broker.bootstrap})
    assert "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_the_processes_of_a_run_share_one_broker_that_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "test_shared.py").write_text(SHARED)
    done = run_pytest(tmp_path, "-n", "2")
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    seen = list(tmp_path.glob("seen-*"))
    assert len({path.name.split("-")[1] for path in seen}) == 2, "both took part"
    (bootstrap,) = {path.read_text() for path in seen}
    from streamtask.dev.place import is_free

    assert is_free(int(bootstrap.rsplit(":", 1)[1]))


@pytest.mark.slow
def test_a_broker_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(streamtask_app):\n    from shop import app\n    streamtask_app(app)\n"
    )
    (tmp_path / "shop.py").write_text(SHOP)
    done = run_pytest(tmp_path, **{GIVEN: "127.0.0.1:1"}, STREAMTASK_CACHE=str(tmp_path))
    assert "1 failed" in done.stdout, done.stdout
    assert "Unreachable: No Kafka broker answered at 127.0.0.1:1" in done.stdout
