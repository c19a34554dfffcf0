"""The code of the how-to guides on a real Kafka: each page in a folder of its own, by a test run of its own.

The worker runs in that test run, by the pytest plugin. The pages read STREAMTASK_* like any service: `at` sets them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from streamtask.testing import GIVEN, Broker
from tests.acceptance.test_plugin import run_pytest
from tests.unit.test_pages import code_of, files_of, module_of

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]

AT = '''

import asyncio
import pytest


@pytest.fixture
def at(streamtask_app, monkeypatch):
    """A worker of the page's App, which clients of the page find."""

    def run(app):
        running = streamtask_app(app)
        monkeypatch.setenv("STREAMTASK_BOOTSTRAP_SERVERS", running.bootstrap)
        monkeypatch.setenv("STREAMTASK_PREFIX", running.prefix)
        return running

    return run
'''

MIGRATE = """

def test_what_the_page_asks_for(at):
    running = at(app)
    for task_id in [asyncio.run(ask()), ask_from_plain_code(), asyncio.run(ask_urgently())]:
        assert list(running.client.events(task_id))[-1].status == "completed"
"""

NIGHTLY = """

def test_the_id_of_a_day_is_the_same(at):
    running = at(app)
    first = nightly()
    assert list(running.client.events(first))[-1].result == "sales is written"
    assert nightly() == first
"""

CANCEL = """

def test_it_ends_and_another_one_is_stopped(at):
    from datetime import UTC, datetime, timedelta

    running = at(app)
    assert running.client.wait(asyncio.run(order()), 60).result == 1
    later = resize.options(not_before=datetime.now(UTC) + timedelta(minutes=30)).submit_sync(["b.png"])
    stop(later.task_id)
    end = later.wait(timeout=60)
    assert (end.status, end.error_details.code) == ("cancelled", "cancelled")
"""

PRIORITIES = """

def test_each_lies_in_its_band(at):
    running = at(app)
    high, low = running.client.wait(asyncio.run(now()), 60), running.client.wait(by_name(), 60)
    assert (high.priority, high.origin.split("-")[0]) == (10, "high")
    assert (low.priority, low.origin.split("-")[0]) == (2, "low")
    default = invoice.submit_sync("4712").wait(timeout=60)
    assert (default.priority, default.origin.split("-")[0]) == (8, "high")
"""

ORDERING = """

def test_they_run_one_after_the_other(at):
    running = at(app)
    ends = [running.client.wait(task_id, 60) for task_id in [*transfer(), asyncio.run(from_the_app())]]
    assert [end.result for end in ends] == ["A-17: 500", "A-17: -200", "A-17: 500"]
    assert all(one.finished_at <= next.started_at for one, next in zip(ends, ends[1:]))
"""

RETRIES = """

def test_an_empty_name_fails_at_once(at):
    at(app)
    end = charge.submit_sync("").wait(timeout=60)
    assert (end.status, end.attempt, end.error_details.code) == ("failed", 1, "handler_error")
"""

FASTAPI = """

def test_a_greeting_is_ordered_and_looked_up(at):
    import uuid

    from starlette.testclient import TestClient

    import api
    import tasks

    running = at(tasks.app)
    with TestClient(api.api) as browser:
        ordered = browser.post("/greetings", params={"name": "Ada"})
        assert ordered.status_code == 202
        task_id = ordered.json()["task_id"]
        running.client.wait(task_id, 60)
        assert browser.get(f"/greetings/{task_id}").json() == {
            "status": "completed", "progress": 1.0, "greeting": "Hello, Ada!", "error": None
        }
        assert browser.get(f"/greetings/{uuid.uuid4()}").status_code == 404
"""

DJANGO = """

def test_a_user_is_welcomed_once_the_row_is_there(at, monkeypatch, tmp_path):
    from shop.worker import app
    from django.core.management import call_command
    from django.db import connections
    from django.test import RequestFactory

    from shop.progress import state
    from shop.tasks import welcome
    from shop.views import register

    call_command("migrate", verbosity=0)
    running, handles, submit = at(app), [], welcome.submit_sync
    monkeypatch.setattr(welcome, "submit_sync", lambda *args: handles.append(submit(*args)))
    answer = register(RequestFactory().post("/register", {"name": "ada"}))
    assert answer.status_code == 201
    assert handles[0].result(timeout=60) == "Welcome, ada!"
    shown = state(RequestFactory().get("/"), handles[0].task_id)
    assert shown.content == b'{"status": "completed", "progress": 1.0, "result": "Welcome, ada!"}'
    connections.close_all()
"""

NOTEBOOK = """

def test_the_cells_run_from_top_to_bottom(at, capsys):
    import ast
    from streamtask import App, Context

    app = App("notebook")

    @app.task
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    @app.task
    async def countdown(ctx: Context, steps: int) -> str:
        return f"{steps} done"

    at(app)
    names = {}

    async def run():
        for cell in CELLS:
            code = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, names)
            if running is not None:
                await running

    asyncio.run(run())
    assert names["results"] == ["Hello, Ada!", "Hello, Grace!", "Hello, Edsger!"]
    assert "completed 1.0" in capsys.readouterr().out
"""

PAGES = {
    "migrate-from-celery": (MIGRATE, 3),
    "migrate": (NIGHTLY, 1),
    "cancel": (CANCEL, 1),
    "priorities": (PRIORITIES, 1),
    "ordering": (ORDERING, 1),
    "retries": (RETRIES, 2),
    "fastapi": (FASTAPI, 1),
}


def passes(folder: Path, broker: Broker, count: int, **environment: str) -> None:
    done = run_pytest(folder, **{GIVEN: broker.bootstrap}, **environment)
    assert f"{count} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_runs_on_a_real_kafka(page: str, broker: Broker, tmp_path: Path) -> None:
    more, count = PAGES[page]
    for path, text in files_of(f"how-to/{page}").items():
        (tmp_path / path).write_text(text)
    (tmp_path / "test_page.py").write_text(module_of(f"how-to/{page}") + AT + more)
    passes(tmp_path, broker, count)


def test_the_tests_of_the_page_about_development_run(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "test_page.py").write_text(module_of("development"))
    passes(tmp_path, broker, 2)


def test_the_cells_of_the_page_about_notebooks_run(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "test_page.py").write_text(f"CELLS = {code_of('how-to/notebooks')!r}" + AT + NOTEBOOK)
    passes(tmp_path, broker, 1)


def test_the_django_project_of_the_page_runs(broker: Broker, tmp_path: Path) -> None:
    pytest.importorskip("django", reason="django is missing: make install")
    (tmp_path / "shop").mkdir()
    for path, text in files_of("how-to/django").items():
        (tmp_path / path).write_text(text)
    settings = """
        SECRET_KEY = "of a test"
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}}
        INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
        """
    (tmp_path / "shop" / "settings.py").write_text(textwrap.dedent(settings))
    (tmp_path / "test_page.py").write_text(AT + DJANGO)
    passes(tmp_path, broker, 1, DJANGO_SETTINGS_MODULE="shop.settings")
