"""What a release must pass: `make release-check`.

Builds the sdist, the wheel from it, checks their metadata, and installs the wheel into a fresh environment of every supported
Python that this machine has. There `streamtask demo --exit` runs a census on a real local Kafka; its audit must find nothing.
Then `streamtask new` makes a project, which is installed (it depends on the wheel) and passes its tests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
QUIET = ("--quiet", "--disable-pip-version-check", "--root-user-action=ignore")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Its standard output. Raises CalledProcessError; what it writes to stderr is shown."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, made from the sdist."""
    with_tools = folder / "tools"
    venv.create(with_tools, with_pip=True)
    python = with_tools / "bin" / "python"
    run(python, "-m", "pip", "install", *QUIET, "build", "twine")
    run(python, "-m", "build", "--outdir", folder / "dist", ".")
    made = sorted((folder / "dist").iterdir())
    run(python, "-m", "twine", "check", "--strict", *made)
    (wheel,) = (path for path in made if path.suffix == ".whl")
    return wheel


def pythons() -> Iterator[tuple[str, str]]:
    """(version, path) of every supported Python on PATH."""
    for version in PYTHONS:
        path = shutil.which(f"python{version}")
        if path is None:
            continue
        told = subprocess.run([path, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, check=False)
        if told.returncode == 0:  # a shim of a version manager may name a Python that is not there
            yield version, path


def census(python: str, wheel: Path, folder: Path) -> int:
    """How many violations the demo finds."""
    run(python, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", *QUIET, f"{wheel}[demo]")
    last = run(folder / "bin" / "streamtask", "demo", "--exit", cwd=folder).splitlines()[-1]
    run(folder / "bin" / "streamtask", "new", "shop", cwd=folder)
    run(folder / "bin" / "python", "-m", "pip", "install", *QUIET, "-e", f"{folder / 'shop'}[dev]")
    run(folder / "bin" / "python", "-m", "pytest", "-q", cwd=folder / "shop")
    return int(json.loads(last)["violations"])


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="streamtask-release-") as name:
        folder = Path(name)
        wheel = build(folder)
        print(f"built and checked: {wheel.name}", flush=True)
        found = list(pythons())
        for version, path in found:
            violations = census(path, wheel, folder / version)
            print(f"Python {version}: demo, {violations} violations", flush=True)
            if violations:
                return 1
        missing = [version for version in PYTHONS if version not in dict(found)]
        if missing:
            print(f"not on this machine: Python {', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
