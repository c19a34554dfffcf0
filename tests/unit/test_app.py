"""App and its tasks: registering, calling, asking; and how an app is found by name."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from streamtask.app import App, AsyncTask, PlainTask, load_app
from streamtask.domain.model import HandlerKind
from streamtask.errors import ConfigError, RequestRefused
from streamtask.handlers.options import Retry
from streamtask.handlers.registry import Context


@dataclass
class Census:
    path: str
    depth: int = 3


def census_app() -> App:
    return App("census", bootstrap_servers="127.0.0.1:1")


def test_a_bare_decorator_takes_the_functions_name() -> None:
    app = census_app()

    @app.task
    def file_census(path: str) -> int:
        """Counts."""
        return len(path)

    @app.task()
    async def other() -> None: ...

    assert list(app.registry) == ["file_census", "other"]
    assert isinstance(file_census, PlainTask)
    assert isinstance(other, AsyncTask)
    assert (file_census.__name__, file_census.__doc__) == ("file_census", "Counts.")
    assert list(inspect.signature(file_census).parameters) == ["path"]


def test_a_decorator_with_arguments_sets_the_policy() -> None:
    app = census_app()

    @app.task("counts", timeout=30, timeout_max=60, retry=Retry(attempts=3), concurrency=4, priority=5, lost_max=0)
    async def file_census(ctx: Context, path: str) -> int:
        return 1

    policy = app.registry.policies()["counts"]
    assert (policy.kind, policy.timeout_ms, policy.timeout_max_ms) == (HandlerKind.ASYNC, 30_000, 60_000)
    assert (policy.retry.attempts, policy.concurrency, policy.lost_max) == (3, 4, 0)
    assert file_census.request("x").priority == 5


def test_handlers_inside_a_function_may_use_its_local_types() -> None:
    app = census_app()

    @dataclass
    class Local:
        n: int

    @app.task
    def local(params: Local) -> Local:
        return params

    assert local.handler.arguments({"n": 1}) == ((Local(1),), {})
    assert local.handler.result_type is Local


def test_two_tasks_of_one_name_are_refused() -> None:
    app = census_app()
    app.task("same")(lambda: None)
    with pytest.raises(ConfigError, match="registered twice"):
        app.task("same")(lambda: None)


def test_a_task_called_as_a_function_just_runs_with_a_faked_context() -> None:
    app = census_app()

    @app.task
    def plain(ctx: Context, params: Census) -> tuple[str, int]:
        ctx.progress(0.5)
        return params.path, ctx.attempt

    @app.task
    async def asynchronous(ctx: Context, path: str, *, deep: bool = False) -> tuple[str, bool]:
        return path, deep

    assert plain(Census("x")) == ("x", 1)
    ctx = Context.fake(attempt=3)
    assert plain(ctx, Census("x")) == ("x", 3)
    assert ctx.reports == [(0.5, None)]
    assert asyncio.run(asynchronous("x", deep=True)) == ("x", True)
    assert asyncio.run(asynchronous(Context.fake(), "x")) == ("x", False)


def test_an_option_that_there_is_none_of_is_named_with_the_nearest_one() -> None:
    app = census_app()
    with pytest.raises(
        TypeError, match=r"App.task\(\) got an unexpected keyword argument 'timeot'. Did you mean 'timeout'"
    ):
        app.task("census", timeot=30)  # type: ignore[call-overload]
    task = app.task("census", timeout=30)(lambda: None)
    with pytest.raises(TypeError, match=r"PlainTask.options\(\) got .* 'priorty'. Did you mean 'priority'"):
        task.options(priorty=8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'\.$"):
        task.options(zzz=8)  # type: ignore[call-arg]


def test_an_option_that_is_none_keeps_the_value_that_the_task_had() -> None:
    task = census_app().task("census", priority=9)(lambda: None)
    assert task.options(priority=None, timeout=None).request().priority == 9


@pytest.mark.parametrize("priority", [50, 0, -1, 5.0, True, "high"])
def test_a_priority_that_no_request_may_have_is_refused_at_import(priority: Any) -> None:
    with pytest.raises(ConfigError, match="must be an integer from 1 to 10"):
        census_app().task("count", priority=priority)(lambda: None)


def test_options_make_a_copy_and_become_fields_of_the_request() -> None:
    app = census_app()

    @app.task
    def plain(params: Census) -> None: ...

    at = datetime(2026, 11, 24, tzinfo=UTC)
    bound = plain.options(priority=8, timeout=2.5, labels={"a": "b"}, tenant="t", not_before=at)
    bound = bound.options(priority=9, idempotency_key="k", expires_at=at, description="d")
    request = bound.request(Census("x"))
    assert request.task_type == "plain"
    assert request.parameters == {"path": "x", "depth": 3}
    assert (request.priority, request.timeout_seconds, request.labels) == (9, 2.5, {"a": "b"})
    assert (request.tenant, request.idempotency_key, request.description) == ("t", "k", "d")
    assert (request.not_before, request.expires_at) == (at, at)
    untouched = plain.request(Census("x"))
    assert (untouched.priority, untouched.timeout_seconds) == (None, None)


def test_what_the_handler_would_refuse_is_refused_before_it_is_sent() -> None:
    app = census_app()

    @app.task
    def plain(n: int) -> None: ...

    with pytest.raises(RequestRefused, match="n: "):
        plain.request("many")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        plain.request(1, 2)  # type: ignore[call-arg]
    with pytest.raises(RequestRefused, match="priority"):
        plain.options(priority=11).request(1)
    with pytest.raises(RequestRefused, match="timeout_seconds"):
        plain.options(timeout=0).request(1)


def test_settings_come_from_arguments_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMTASK_PREFIX", "from.environment")
    monkeypatch.setenv("STREAMTASK_THREADS", "3")
    assert App("x").settings.prefix == "from.environment"
    app = App("x", prefix="from.argument", concurrency=7)
    assert (app.settings.prefix, app.settings.threads, app.settings.concurrency) == ("from.argument", 3, 7)
    app.configure(prefix=None, concurrency=9)
    assert (app.settings.prefix, app.settings.concurrency) == ("from.argument", 9)
    with pytest.raises(ConfigError, match="did you mean 'concurrency'"):
        App("x", concurency=7)
    with pytest.raises(ConfigError):
        App("")


def test_clients_belong_to_their_loop_and_one_whose_loop_has_ended_is_forgotten() -> None:
    app = census_app()

    async def forgets() -> Any:
        assert app.async_client() is app.async_client()
        return app.async_client()

    first, second = asyncio.run(forgets()), asyncio.run(forgets())
    assert first is not second
    app.configure(prefix="other")  # neither counts as open

    async def closes() -> None:
        async with app:
            app.async_client()
            with pytest.raises(ConfigError, match="client is open"):
                app.configure(prefix="third")

    asyncio.run(closes())
    app.configure(prefix="third")
    with app:
        assert app.client() is app.client()
        with pytest.raises(ConfigError, match="client is open"):
            app.configure(prefix="fourth")
    app.configure(prefix="fourth")


def test_the_lifespan_yields_the_users_state_and_closes_the_loops_client() -> None:
    order = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        order.append("open")
        yield "pool"
        order.append("close")

    app = App("x", lifespan=lifespan, bootstrap_servers="127.0.0.1:1")

    async def lives() -> None:
        async with app.lifespan() as state:
            order.append(state)
            app.async_client()

    asyncio.run(lives())
    assert order == ["open", "pool", "close"]
    assert app._async_clients == {}


def test_importing_app_brings_no_kafka_library_in() -> None:
    code = "import sys, streamtask.app; sys.exit('confluent_kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


MODULES = {
    "good.py": "from streamtask.app import App\napp = App('x')\nother = App('y')\nnumber = 3\nclass Deep:\n    app = app\n",
    "bare.py": "number = 3\n",
    "needs.py": "import not_installed_anywhere\n",
    "breaks.py": "1 / 0\n",
    "wrong.py": "from streamtask.app import App\napp = App('x', prefix='no spaces please')\n",
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "apps_of_this_test"
    package.mkdir()
    for name, text in MODULES.items():
        (package / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in [name for name in sys.modules if name.startswith("apps_of_this_test")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("modules")
def test_an_app_is_found_in_the_working_directory() -> None:
    assert load_app("apps_of_this_test.good:other").name == "y"
    assert load_app("apps_of_this_test.good:Deep.app").name == "x"


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("good", r"'good' does not name an app\. Write MODULE:NAME, such as good:app"),
        (":app", "does not name an app"),
        ("", "does not name an app"),
        ("nowhere_at_all:app", "no module 'nowhere_at_all'"),
        ("apps_of_this_test.nowhere:app", r"no module 'apps_of_this_test\.nowhere'"),
        ("apps_of_this_test.needs:app", "imports 'not_installed_anywhere', which is not installed"),
        ("apps_of_this_test.breaks:app", "importing apps_of_this_test.breaks failed: ZeroDivisionError"),
        ("apps_of_this_test.wrong:app", "prefix='no spaces please'"),
        (
            "apps_of_this_test.good:ap",
            r"has no 'ap'\. It has: apps_of_this_test\.good:app, apps_of_this_test\.good:other",
        ),
        ("apps_of_this_test.good:number", r"is a int, not an App\. It has: "),
        ("apps_of_this_test.bare:app", r"has no 'app'\. It has no App"),
        ("..:app", "does not name an app|failed"),
    ],
)
def test_an_app_that_cannot_be_had_is_a_config_error_that_says_why(path: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_app(path)
