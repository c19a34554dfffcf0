"""Each peer's own virtual environment: made when missing, of the versions that requirements/NAME.txt pins.

It lies in the cache under its name and a hash of the pins and the Python version; a marker in it says that it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from benchmarks.stand import Failed
from streamtask.devbroker.jars import cache_directory, sole_user

REQUIREMENTS = Path(__file__).parent / "requirements"
WHOLE = "whole"  # the marker's name
INSTALL_S = 600.0
ASK_S = 10.0
NEWEST_MINOR = 14


def python_of(name: str, wanted: tuple[int, int] = (3, 11)) -> Path:
    """The Python of the environment NAME, made now when it is missing.

    wanted  the oldest Python that will do; this one is taken when it is new enough

    Raises Failed, saying why it cannot be made: the peer is left out then.
    """
    pins = (REQUIREMENTS / f"{name}.txt").read_text()
    base = base_python(wanted)
    place = cache_directory() / "peers" / f"{name}-{key(pins, version_of(base))}"
    python = place / "bin" / "python"
    with sole_user(cache_directory()):
        if not (place / WHOLE).exists():
            shutil.rmtree(place, ignore_errors=True)  # what an ended try has left
            place.parent.mkdir(parents=True, exist_ok=True)
            _run(f"{name}: no environment", [str(base), "-m", "venv", str(place)])
            install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]
            _run(f"{name}: not installed", [str(python), *install, str(REQUIREMENTS / f"{name}.txt")])
            (place / WHOLE).touch()
    return python


def key(pins: str, version: str) -> str:
    """Twelve hex digits that change with the pins and with the Python version."""
    return hashlib.sha256(f"{version}\n{pins}".encode()).hexdigest()[:12]


def pinned(name: str, package: str) -> str:
    """The version of the package in requirements/NAME.txt."""
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        found, _, version = line.partition("==")
        if found.lower() == package.lower():
            return version.strip()
    raise Failed(f"requirements/{name}.txt does not pin {package}. Add {package}==VERSION.")


def base_python(wanted: tuple[int, int]) -> Path:
    """This Python, else the oldest that is new enough on PATH or of pyenv. Raises Failed."""
    if sys.version_info[:2] >= wanted:
        return Path(sys.executable)
    for candidate in _candidates(wanted):
        if version_of(candidate):
            return candidate
    needed = ".".join(map(str, wanted))
    raise Failed(f"it needs Python {needed} or newer, and there is none on PATH. Install one beside this one.")


def _candidates(wanted: tuple[int, int]) -> Iterator[Path]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in range(wanted[1], NEWEST_MINOR + 1):
        if found := shutil.which(f"python3.{minor}"):
            yield Path(found)
        yield from sorted(root.glob(f"versions/3.{minor}.*/bin/python"))


@cache
def version_of(python: Path) -> str:
    """Such as 3.12.1; "" when it does not run (a shim of pyenv for a version that is not chosen)."""
    command = [str(python), "-c", "import platform; print(platform.python_version())"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


def _run(what: str, command: list[str]) -> None:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{what}: {error}") from None
    if said.returncode:
        lines = (said.stderr or said.stdout).strip().splitlines() or [f"exit code {said.returncode}"]
        raise Failed(f"{what}: {lines[-1]}")
