"""What people read is plain English: words of the project's old dialect do not come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
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


def modules() -> dict[str, list[Path]]:
    """{folder of streamtask, or "" for the modules at its top: its modules}."""
    out: dict[str, list[Path]] = {}
    package = ROOT / "streamtask"
    for module in sorted(package.rglob("*.py")):
        parents = module.relative_to(package).parts[:-1]
        out.setdefault(parents[0] if parents else "", []).append(module)
    return out


def prose(source: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of every comment and of every line of a docstring."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from enumerate(node.value.value.splitlines(), node.lineno)


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_no_word_of_the_dialect(page: Path) -> None:
    """docs/reference holds the help of every command and the docstrings of every public name."""
    found = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if DIALECT.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(("folder", "found"), modules().items(), ids=lambda one: one if isinstance(one, str) else "")
def test_no_docstring_or_comment_has_a_word_of_the_dialect(folder: str, found: list[Path]) -> None:
    hits = [
        f"{module.relative_to(ROOT).as_posix()}:{number}: {line.strip()}"
        for module in found
        for number, line in prose(module.read_text())
        if DIALECT.search(line)
    ]
    assert hits == [], f"streamtask/{folder}"


def test_comments_and_docstrings_are_seen_and_data_is_not() -> None:
    source = '''"""One.

Two."""
LIMIT = "data"  # three

class Options:
    priority: int
    """Four."""
'''
    assert sorted(prose(source)) == [(1, "One."), (2, ""), (3, "Two."), (4, "# three"), (8, "Four.")]


def test_no_event_is_described_in_the_dialect() -> None:
    assert {name: text for name, (_, text) in EVENTS.items() if DIALECT.search(text)} == {}


def test_the_words_are_seen() -> None:
    assert [bool(DIALECT.search(text)) for text in ("a Wish", "mended", "«x»", "wishbone", "amend")] == [True] * 3 + [
        False
    ] * 2
