"""The code of the pages is right: mypy says so here, and what needs no Kafka runs here; the rest runs in tests/acceptance.

Blocks of a page that begin with a path, `# shop/tasks.py`, are files; its other blocks together are one module.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamtask.config import Settings
from streamtask.query_service.metrics import METRICS as OF_THE_SERVICE
from streamtask.worker.endpoint import METRICS as OF_THE_WORKER
from tests.unit.test_docs import blocks
from tests.unit.test_typing import mypy

DOCS = Path(__file__).resolve().parents[2] / "docs"
HOW_TO = sorted(path.stem for path in (DOCS / "how-to").glob("*.md"))
SYSTEMS = ("celery", "dramatiq", "taskiq", "rq", "arq", "faststream")
# Variables that are no settings: of the tests, and of the local Kafka.
OTHER_VARIABLES = {
    "STREAMTASK_CACHE",
    "STREAMTASK_CHAOS_SEED",
    "STREAMTASK_OUTAGE_S",
    "STREAMTASK_TEST_BOOTSTRAP_SERVERS",
}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.name != "changelog.md"]  # which names what there was
FILE = re.compile(r"# ([\w/]+\.py)\n")


def code_of(page: str) -> list[str]:
    """The Python blocks of a page; of one that compares systems, those of streamtask."""
    found = blocks(DOCS / f"{page}.md", "python")
    return [block for block in found if block.startswith("# streamtask\n")] or found


def module_of(page: str) -> str:
    """All of its blocks that are no files, as one module."""
    return "\n\n".join(block for block in code_of(page) if not FILE.match(block))


def files_of(page: str) -> dict[str, str]:
    """{path: text} of its blocks that are files."""
    return {found[1]: block for block in code_of(page) if (found := FILE.match(block))}


# --- Migration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_way_over_is_shown_on_both_sides(system: str) -> None:
    firsts = [block.split("\n")[0] for block in blocks(DOCS / "how-to" / f"migrate-from-{system}.md", "python")]
    theirs, ours = firsts[::2], firsts[1::2]
    assert all(re.match(rf"# {system}\b", first, re.I) for first in theirs), theirs
    assert ours == ["# streamtask"] * 6


def test_the_pages_about_migration_show_the_same_streamtask() -> None:
    assert len({module_of(f"how-to/migrate-from-{system}") for system in SYSTEMS}) == 1


# --- Types and runs ---------------------------------------------------------------------------------------------------


def test_the_code_of_the_pages_is_typed(tmp_path: Path, mypy_cache: Path) -> None:
    folders = [tmp_path / "modules"]
    for page in [*(f"how-to/{page}" for page in HOW_TO), "tutorials/fastapi-progress", "development"]:
        module = module_of(page)
        if page == "how-to/notebooks":  # a cell may await
            module = f"async def cells() -> None:\n{textwrap.indent(module, '    ')}"
        files = {f"page_{Path(page).name.replace('-', '_')}.py": module} if module else {}
        write(folders[0], files)
        if files_of(page):
            folders.append(tmp_path / page)  # apart: two pages have an api.py
            write(folders[-1], files_of(page))
    for folder in folders:
        said = mypy(folder, mypy_cache, "--disable-error-code=import-untyped")
        assert said.returncode == 0, said.stdout + said.stderr


def write(folder: Path, files: dict[str, str]) -> None:
    """These files; a folder of theirs is a package."""
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if "/" in path:
            (file.parent / "__init__.py").touch()


@pytest.mark.parametrize("page", [page for page in HOW_TO if page != "notebooks" and module_of(f"how-to/{page}")])
def test_the_code_of_the_page_runs_without_kafka_as_far_as_it_can(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module can be imported, and its tests that need no fixture pass."""
    for name in [name for name in os.environ if name.startswith("STREAMTASK_")]:
        monkeypatch.delenv(name)
    if page == "observe":
        pytest.importorskip("sentry_sdk", reason="sentry-sdk is missing: make install")
    names: dict[str, Any] = {"__name__": f"page_{page}"}
    exec(compile(module_of(f"how-to/{page}"), f"docs/how-to/{page}.md", "exec"), names)
    for name, value in names.items():
        if name.startswith("test_") and not value.__code__.co_argcount:
            value()


# --- Settings, metrics, files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_variable_and_metric_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    settings = {f"STREAMTASK_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    assert set(re.findall(r"\bSTREAMTASK_[A-Z_]+[A-Z]\b", text)) <= settings
    metrics = {*OF_THE_WORKER, *OF_THE_SERVICE}
    named = re.findall(r"`?\b(streamtask_[a-z_]+_(?:total|seconds|tasks|bytes|age_seconds))(?:_bucket)?\b", text)
    assert set(named) <= metrics


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_settings_and_yaml_of_a_page_can_be_read(page: Path) -> None:
    for block in blocks(page, "toml"):
        assert set(tomllib.loads(block)) <= {*Settings.model_fields}
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def test_the_tests_on_the_page_about_tests_pass(tmp_path: Path) -> None:
    code = module_of("how-to/testing")
    (tmp_path / "test_page.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "STREAMTASK_"))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"{code.count('def test_')} passed" in done.stdout, done.stdout + done.stderr
