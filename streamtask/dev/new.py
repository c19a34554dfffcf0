"""Creates a new project from template/: handlers, a test, settings, and a README with three commands.

Always true: existing files are never overwritten; either the whole project exists afterwards, or an error says why not.
"""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from streamtask import __version__
from streamtask.distribution import NAME as DISTRIBUTION
from streamtask.distribution import requirement
from streamtask.errors import ConfigError

NAME_MAX = 60
# A name that a folder, a Python distribution and a Kafka client id may all have.
_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?\Z")
_TAKEN = {
    "streamtask": "its import would have that name",
    DISTRIBUTION: "it would depend on itself",
    "app": "its module has that name",
}
_RENAMED = {"gitignore": ".gitignore"}  # under that name it would hide files of the template itself


def create_project(name: str, parent: Path) -> list[Path]:
    """Create `parent/name`; returns its files. Raises ConfigError."""
    if not _NAME.match(name) or len(name) > NAME_MAX:
        raise ConfigError(
            f"{name!r} is not a project name. Use up to {NAME_MAX} letters, digits, '-' and '_', beginning with a letter."
        )
    if name.lower() in _TAKEN:
        raise ConfigError(f"A project cannot be called {name!r} ({_TAKEN[name.lower()]}). Choose another name.")
    place = parent / name
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        what = "already exists and is not empty" if place.is_dir() else "is a file"
        raise ConfigError(f"{place} {what}, so nothing was written. Choose another name, or move it away.")
    template = files("streamtask.dev") / "template"
    texts = {relative: _filled(text, name) for relative, text in _walk(template, Path())}
    try:
        for relative, text in texts.items():
            (place / relative).parent.mkdir(parents=True, exist_ok=True)
            (place / relative).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot write {place}: {error}.") from None
    return [place / relative for relative in texts]


def _walk(folder: Traversable, at: Path) -> list[tuple[Path, str]]:
    out = []
    for one in sorted(folder.iterdir(), key=lambda found: found.name):
        if one.is_dir():
            out += _walk(one, at / one.name)
        elif one.name.endswith(".in"):
            name = one.name.removesuffix(".in")
            out.append((at / _RENAMED.get(name, name), one.read_text(encoding="utf-8")))
    return out


def _filled(text: str, name: str) -> str:
    version = ".".join(__version__.split(".")[:2])
    for blank, value in (
        ("{{name}}", name),
        ("{{streamtask}}", requirement(version=version)),
        ("{{streamtask with dev-tools}}", requirement("dev-tools", version=version)),
    ):
        text = text.replace(blank, value)
    return text
