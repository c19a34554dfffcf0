"""Links that leave docs/, for the site: in the repository they lead to a file, and the site does not hold that file.

`[the loop](../streamtask/worker/loop.py)` becomes a link to that file in the repository on the web when mkdocs.yml has a
`repo_url`, and plain text when it has none. A link to a file that does not exist is left alone, so that a strict build
refuses it. Nothing else of a page changes; code blocks are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BRANCH = "main"
FENCE = re.compile(r"^\s*(```+|~~~+)")
LINK = re.compile(r"\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """MkDocs' hook: the text of one page before it is rendered."""
    return without_links_out(markdown, page.file.src_uri, str(config.repo_url or ""))


def without_links_out(markdown: str, page: str, repository: str) -> str:
    """The text with every link out of docs/ rewritten. page: its path below docs/; repository: a URL, or "" for none."""

    def rewrite(found: re.Match[str]) -> str:
        outside = path_outside(found["target"], page)
        if outside is None:
            return found[0]
        return f"[{found['text']}]({url_of(outside, repository)})" if repository else found["text"]

    return "".join(line if fenced else LINK.sub(rewrite, line) for line, fenced in _lines(markdown))


def path_outside(target: str, page: str) -> str | None:
    """The path in the repository, with its #anchor; None: it is not outside docs/, or there is nothing."""
    if "://" in target or target.startswith(("#", "mailto:")):
        return None
    path, _, anchor = target.partition("#")
    there = (ROOT / "docs" / PurePosixPath(page).parent / path).resolve()
    if not there.exists() or there.is_relative_to(ROOT / "docs") or not there.is_relative_to(ROOT):
        return None
    return there.relative_to(ROOT).as_posix() + (f"#{anchor}" if anchor else "")


def url_of(path: str, repository: str) -> str:
    """Where a web repository shows a file or a folder."""
    kind = "tree" if (ROOT / path.partition("#")[0]).is_dir() else "blob"
    return f"{repository.rstrip('/')}/{kind}/{BRANCH}/{path}"


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """(line, whether it belongs to a code block)."""
    fence = ""
    for line in markdown.splitlines(keepends=True):
        found = FENCE.match(line)
        if fence:
            yield line, True
            if found and found[1].startswith(fence) and line.strip() == found[1]:
                fence = ""
        else:
            fence = found[1] if found else ""
            yield line, bool(fence)
