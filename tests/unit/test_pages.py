"""The code of the pages about migration and development is right: mypy says so here, a real Kafka in tests/acceptance."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("page", ["migration", "development"])
def test_the_code_of_the_page_is_typed(page: str, tmp_path: Path, mypy_cache: Path) -> None:
    file = tmp_path / f"{page}_page.py"
    file.write_text(module_of(page))
    told = mypy(file, mypy_cache)
    assert told.returncode == 0, told.stdout + told.stderr
