"""What people read is plain English: words of the project's old dialect do not come back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamtask.observability.event_log import EVENTS

ROOT = Path(__file__).resolve().parents[2]
# «wish»: cancel request; «mend»: fix; «nobody», «somebody»: name who, or use the passive; guillemets: quotes or code.
DIALECT = re.compile(r"\b(?:wish(?:es|ed)?|mend(?:s|ed|ing)?|nobody|somebody|its word)\b|[«»]", re.IGNORECASE)
# Records of what was decided and changed keep the words of their day.
PAST = {"docs/changelog.md"}


def pages() -> Iterator[Path]:
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT).as_posix()
        if name not in PAST and not name.startswith("docs/decisions/"):
            yield page


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_no_word_of_the_dialect(page: Path) -> None:
    """docs/reference holds the help of every command and the docstrings of every public name."""
    found = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if DIALECT.search(line)
    ]
    assert found == []


def test_no_event_is_described_in_the_dialect() -> None:
    assert {name: text for name, (_, text) in EVENTS.items() if DIALECT.search(text)} == {}


def test_the_words_are_seen() -> None:
    assert [bool(DIALECT.search(text)) for text in ("a Wish", "mended", "«x»", "wishbone", "amend")] == [True] * 3 + [
        False
    ] * 2
