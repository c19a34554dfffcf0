"""What the pytest plugin costs those who do not use it, and what it does to an App while it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamtask.app import App
from streamtask.errors import ConfigError
from streamtask.testing.running import path_of

CONFTEST = """\
import json, sys
def pytest_sessionfinish(session):
    open("modules.json", "w").write(json.dumps(sorted(sys.modules)))
"""


def test_a_run_that_does_not_use_it_imports_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    modules = json.loads((tmp_path / "modules.json").read_text())
    # The plugin itself, by its entry point, and the package that holds it: which loads its names when they are used.
    own = [name for name in modules if name.startswith("streamtask")]
    assert own == ["streamtask", "streamtask.distribution", "streamtask.pytest_plugin"]
    heavy = {"pydantic", "confluent_kafka", "structlog", "typer", "rich", "orjson", "fastavro", "msgspec"}
    assert not heavy & set(modules)


# --- An App while a test runs it --------------------------------------------------------------------------------------


def test_an_app_has_its_own_settings_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMTASK_PREFIX", raising=False)
    app = App("shop", prefix="shop", threads=3)
    assert app.given == {"prefix": "shop", "threads": 3}
    with app.configured(prefix="test", bootstrap_servers="x:1") as settings:
        assert (settings.prefix, settings.threads, app.settings) == ("test", 3, settings)
    assert app.given == {"prefix": "shop", "threads": 3}
    assert (app.settings.prefix, app.settings.bootstrap_servers) == ("shop", None)


def test_an_app_cannot_be_run_twice_at_once_and_a_wrong_setting_leaves_it_alone() -> None:
    app = App("shop")
    with app.configured(prefix="one"):
        with pytest.raises(ConfigError, match="'shop' is already running"), app.configured(prefix="two"):
            pass
        assert app.settings.prefix == "one"
    with pytest.raises(ConfigError, match="prefix='a b'"), app.configured(prefix="a b"):
        pass
    with app.configured(prefix="two"):
        assert app.settings.prefix == "two"


def test_an_app_is_found_by_its_name_in_the_module_of_its_handlers() -> None:
    from examples.quickstart.app import app

    assert path_of(app) == "examples.quickstart.app:app"
    nameless = App("nameless")

    @nameless.task
    def handler() -> None: ...

    assert path_of(nameless) is None
