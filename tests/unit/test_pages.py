"""The code of the pages about migration, development and tests is right: mypy says so here, and a run: of the page about tests
here, of the others on a real Kafka in tests/acceptance."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_docs import blocks
from tests.unit.test_typing import mypy

DOCS = Path(__file__).resolve().parents[2] / "docs"


def module_of(page: str) -> str:
    """The streamtask blocks of a page as one module."""
    found = blocks(DOCS / f"{page}.md", "python")
    own = [block for block in found if block.startswith("# streamtask")] or found
    return "\n\n".join(own)


def test_each_way_over_is_shown_for_all_three() -> None:
    firsts = [block.split("\n")[0] for block in blocks(DOCS / "migration.md", "python")]
    for there in ("Celery", "Dramatiq", "Taskiq"):
        assert len([first for first in firsts if re.match(rf"# {there}\b", first)]) == 6
    assert len([first for first in firsts if first == "# streamtask"]) == 7, (
        "six, and what stands in for periodic tasks"
    )


@pytest.mark.parametrize("page", ["migration", "development", "how-to/testing"])
def test_the_code_of_the_page_is_typed(page: str, tmp_path: Path, mypy_cache: Path) -> None:
    file = tmp_path / "page.py"
    file.write_text(module_of(page))
    told = mypy(file, mypy_cache)
    assert told.returncode == 0, told.stdout + told.stderr


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
