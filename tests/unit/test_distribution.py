"""The name of the distribution: what other projects write to depend on it, and what a mistaken `pip install` leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from streamtask import distribution

PACKAGE = Path(distribution.__file__).parent
FOUND = "The project `streamtask` of the package index is installed in the folder of streamtask-kafka"


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, told: Mapping[str, object] | None) -> None:
    """As if it were in a `site-packages`, and its installer had recorded this."""
    monkeypatch.setattr(distribution, "PACKAGE", folder / "site-packages" / "streamtask")
    text = json.dumps(told) if told is not None else None
    monkeypatch.setattr(metadata, "distribution", lambda _name: SimpleNamespace(read_text=lambda _file: text))


def test_a_project_depends_on_the_clone_that_made_it() -> None:
    wanted = f"streamtask-kafka[dev-tools] @ {PACKAGE.parent.as_uri()}"
    assert distribution.requirement("dev-tools", version="0.1") == wanted


def test_a_project_depends_on_the_wheel_that_was_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "a folder" / "streamtask_kafka-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    installed(monkeypatch, tmp_path, {"url": wheel.as_uri(), "archive_info": {}})
    assert distribution.requirement(version="0.1") == f"streamtask-kafka @ {wheel.as_uri()}"
    wheel.unlink()
    assert distribution.requirement(version="0.1") == "streamtask-kafka>=0.1"


def test_a_project_depends_on_the_commit_that_was_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {"url": "https://example.org/streamtask", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    installed(monkeypatch, tmp_path, told)
    assert distribution.requirement(version="0.1") == "streamtask-kafka @ git+https://example.org/streamtask@abc"


def test_a_project_depends_on_a_version_of_the_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, tmp_path, None)
    assert distribution.requirement("server", version="0.1") == "streamtask-kafka[server]>=0.1"


def test_our_own_files_are_not_taken_for_those_of_the_other_project() -> None:
    assert distribution.foreign_files() is None


def copy_of_the_package(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "streamtask", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "streamtask"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_an_import_says_that_files_of_the_other_project_lie_among_ours(tmp_path: Path) -> None:
    (copy_of_the_package(tmp_path) / "streamtask.py").touch()
    told = run(tmp_path, "-c", "import streamtask; streamtask.App")
    assert told.returncode == 0, told.stderr
    assert FOUND in told.stderr
    assert "pip install --force-reinstall streamtask-kafka" in told.stderr


def test_a_command_says_in_one_line_that_the_other_project_replaced_ours(tmp_path: Path) -> None:
    package = copy_of_the_package(tmp_path)
    (package / "streamtask.py").touch()
    (package / "__init__.py").write_text("from streamtask.streamtask import *\n")
    told = run(tmp_path, "-m", "streamtask", "--help")
    assert told.returncode == 2
    assert told.stderr.startswith(FOUND)
    assert told.stderr.count("\n") == 1
