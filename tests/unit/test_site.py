"""The documentation site: its map, its links out of docs/, and the pages that were written for it.

What every page is held to (links, tables, blocks that parse) is in test_docs.py.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

import streamtask
from streamtask.app import load_app
from streamtask.cli import app
from streamtask.client import Client
from streamtask.dev.follow import line_of
from streamtask.dev.part import look
from streamtask.dev.screen import Screen
from streamtask.dev.session import Options, Session
from streamtask.domain.model import TaskResponse
from tests.test_architecture import FOLDERS
from tests.unit.test_docs import HANDLER, ROOT, blocks, name_of

DOCS = ROOT / "docs"
INDEX, TUTORIAL, HOW = DOCS / "index.md", DOCS / "tutorials" / "first-task.md", DOCS / "how-it-works.md"
WITH_COMMANDS = [
    INDEX,
    HOW,
    *(path for part in ("tutorials", "how-to", "reference") for path in (DOCS / part).glob("*.md")),
]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("STREAMTASK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_site_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- The site ---------------------------------------------------------------------------------------------------------


def test_the_map_of_the_site_has_every_page_once() -> None:
    class Loader(yaml.SafeLoader):
        """mkdocs.yml with its own tags left unread."""

    Loader.add_multi_constructor("", lambda _loader, _suffix, _node: None)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    home, *sections = site["nav"]
    assert home == {"Home": "index.md"}
    assert [next(iter(one)) for one in sections] == [
        *("Tutorials", "How-to guides", "Operations", "Reference", "Explanation")
    ]
    assert sorted(_pages(site["nav"])) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for one in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages(one)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is missing: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "REPOSITORY": "https://example.com/streamtask"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "reference" / "api" / "index.html").read_text()
    for name in streamtask.__all__:
        assert f'id="streamtask.{name}"' in page, f"{name} is not in the API reference"
    assert 'id="streamtask.Client.submit"' in page
    flow = (tmp_path / "site" / "flow" / "index.html").read_text()
    assert 'href="https://example.com/streamtask/blob/main/streamtask/core/ledger.py"' in flow


@pytest.mark.parametrize(
    ("text", "with_repository", "without"),
    [
        ("[loop](../streamtask/app.py)", "[loop](https://x.org/s/blob/main/streamtask/app.py)", "loop"),
        ("[`core`](../streamtask/core)", "[`core`](https://x.org/s/tree/main/streamtask/core)", "`core`"),
        ("[figures](../README.md#figures)", "[figures](https://x.org/s/blob/main/README.md#figures)", "figures"),
        ("[wire](wire.md#identity)", "[wire](wire.md#identity)", "[wire](wire.md#identity)"),
        ("[there](https://y.org)", "[there](https://y.org)", "[there](https://y.org)"),
        ("[gone](../gone.py)", "[gone](../gone.py)", "[gone](../gone.py)"),  # for the strict build to refuse
        ("```md\n[a](../LICENSE)\n```", "```md\n[a](../LICENSE)\n```", "```md\n[a](../LICENSE)\n```"),
    ],
)
def test_a_link_out_of_docs_leads_to_the_repository(text: str, with_repository: str, without: str) -> None:
    hooks = module_of(DOCS / "_site" / "hooks.py")
    assert hooks.without_links_out(text, "flow.md", "https://x.org/s/") == with_repository
    assert hooks.without_links_out(text, "flow.md", "") == without


def test_two_columns_of_a_docstring_become_a_list() -> None:
    pytest.importorskip("griffe", reason="griffe is missing: make docs")
    to_markdown = module_of(DOCS / "_site" / "docstrings.py").to_markdown
    assert to_markdown("Send.\n\ntimeout  seconds;\n         None: no limit\nid, key  names\n\nRaises X.") == (
        "Send.\n\n- `timeout`: seconds; None: no limit\n- `id`, `key`: names\n\nRaises X."
    )
    for prose in ("Send one request.\nRaises X.", "    with Client() as client:\n        client.wait(1)"):
        assert to_markdown(prose) == prose


# --- Commands and examples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(WITH_COMMANDS), ids=name_of)
def test_every_command_of_a_page_is_one_that_the_command_line_takes(page: Path) -> None:
    for block in blocks(page, "sh"):
        for line in re.split(r"\n|&&", block):
            words = shlex.split(line, comments=True)
            if words[:1] == ["streamtask"] and words[-1] != "--help":
                command: Any = get_command(app)
                rest = words[1:]
                while hasattr(command, "commands"):
                    command = command.commands[rest.pop(0)]
                rest = rest[: rest.index(">")] if ">" in rest else rest
                command.make_context(command.name, rest).close()


def test_the_handler_of_the_home_page_is_the_one_of_the_example() -> None:
    assert blocks(INDEX, "python")[0].strip() == HANDLER.read_text().split('"""', 2)[2].strip()


def test_the_client_of_the_home_page_asks_as_a_client_may(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stand:
        """A client that only checks what it is called with."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            inspect.signature(Client).bind(*args, **kwargs)

        def __enter__(self) -> Stand:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, *args: Any, **kwargs: Any) -> Stand:
            inspect.signature(Client.submit).bind(self, *args, **kwargs)
            return self

        def result(self, timeout: float | None = None) -> str:
            return f"lift-off within {timeout}"

    monkeypatch.setattr(streamtask, "Client", Stand)
    exec(compile(blocks(INDEX, "python")[1], "docs/index.md", "exec"), {})
    assert capsys.readouterr().out == "lift-off within 60\n"


# --- The tutorial -----------------------------------------------------------------------------------------------------


class Described(Session):
    """A session that says what it would say once Kafka and the service are up."""

    def describe(self, facts: dict[str, Any]) -> None:
        self._facts, self._bootstrap, self._url = facts, "127.0.0.1:9092", "http://127.0.0.1:8080"
        self._kafka = object()  # type: ignore[assignment]  # one of its own
        self._tell_header()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    assert CliRunner().invoke(app, ["new", "shop"]).exit_code == 0
    monkeypatch.chdir(tmp_path / "shop")
    yield tmp_path / "shop"
    sys.modules.pop("app", None)


def texts(line: str) -> str:
    """The block of the tutorial that begins with this."""
    (found,) = [block for block in blocks(TUTORIAL, "text") if block.strip().startswith(line)]
    return found


def test_the_project_of_the_tutorial_is_the_one_that_is_made() -> None:
    made = CliRunner().invoke(app, ["new", "shop"])
    assert made.stdout == texts("✓")
    assert blocks(TUTORIAL, "python")[0] == Path("shop/app.py").read_text()


def test_the_session_of_the_tutorial_says_what_it_shows(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = look({"app": "app:app", "overrides": {"bootstrap_servers": "127.0.0.1:9092"}})
    Described(Options(app="app:app"), Screen()).describe(facts)
    assert capsys.readouterr().out.strip() == texts("Kafka").strip()


def test_the_answers_of_the_tutorial_are_those_of_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts("task_id")
    fields = dict(re.split(r" {2,}", line, maxsplit=1) for line in shown.splitlines())
    numbers = {"progress": 1.0, "priority": int(fields["priority"]), "attempt": int(fields["attempt"])}
    task = TaskResponse.model_validate_json(json.dumps({**fields, **numbers}))

    class Stand:
        """A client that knows this one task."""

        async def __aenter__(self) -> Stand:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def status(self, task_id: str) -> TaskResponse:
            return task

    monkeypatch.setattr("streamtask.client.AsyncClient", lambda settings: Stand())
    said = CliRunner().invoke(app, ["status", task.task_id, "--url", "http://127.0.0.1:8080"])
    assert [line.rstrip() for line in said.stdout.splitlines()] == shown.splitlines()
    assert texts("14:08:07 task").rstrip().endswith(line_of(task))


def test_the_handler_of_the_tutorial_fails_once_and_passes_its_test(shop: Path) -> None:
    _, handler, test = blocks(TUTORIAL, "python")
    with (shop / "app.py").open("a") as file:
        file.write(f"\n\n{handler}")
    found = load_app("app:app")
    assert [*found.registry] == ["greet", "countdown", "price"]
    assert found.registry["price"].retry.attempts == 3
    names: dict[str, Any] = {"asyncio": asyncio, "Context": streamtask.Context}  # which the file imports already
    exec(compile(test, "docs/tutorials/first-task.md", "exec"), names)
    names["test_the_second_attempt_knows_the_price"]()
    template = (shop / "tests" / "test_app.py").read_text()
    assert "import asyncio\n" in template
    assert "from streamtask import Context\n" in template
    assert template.count("\ndef test_") + test.count("\ndef test_") == 4, "as the page says"


# --- How it works -----------------------------------------------------------------------------------------------------


def steps() -> list[tuple[str, list[str]]]:
    """(step, the paths that its row names), of the table."""
    rows = re.findall(r"^\| (\d+ [a-z ]+) \|.*\| (.*) \|$", HOW.read_text(), re.M)
    return [(step, re.findall(r"\[(\S+)\]\(\.\./\1\)", where)) for step, where in rows]


def test_every_step_of_a_request_names_files_that_exist() -> None:
    assert len(steps()) == 10
    for step, paths in steps():
        assert paths, f"{step}: no file, or a link that leads elsewhere than it says"
        for path in paths:
            assert (ROOT / path).is_file(), f"{step}: {path}"
            folder = ".".join(Path(path).parts[:2])
            assert folder in FOLDERS, f"{step}: {folder} is in no folder of the architecture"


def test_the_picture_and_the_table_have_the_same_steps() -> None:
    (picture,) = blocks(HOW, "text")
    drawn = re.findall(r"(\d+ [a-z]+(?: [a-z]+)?)(?:\s|$)", picture)
    assert drawn == [step for step, _ in steps()]


def test_every_path_that_the_page_names_exists() -> None:
    for path in re.findall(r"\bstreamtask/[\w/.]*\w", HOW.read_text()):
        assert (ROOT / path).exists(), path
