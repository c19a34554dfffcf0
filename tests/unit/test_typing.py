"""mypy accepts right submits and refuses wrong ones: tests/typing/submit.py carries the cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def mypy(file: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What it says about a file or a folder. cache: of this process (`mypy_cache`): two that write one can break it."""
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", f"--cache-dir={cache}", *options, str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)


def test_submit_takes_exactly_the_arguments_of_the_handler(tmp_path: Path, mypy_cache: Path) -> None:
    right = mypy(ROOT / "tests" / "typing" / "submit.py", mypy_cache)
    assert right.returncode == 0, right.stdout + right.stderr

    # The other way round: without the ignores every line that is wrong on purpose is an error.
    text = (ROOT / "tests" / "typing" / "submit.py").read_text()
    bare = tmp_path / "bare.py"
    bare.write_text("\n".join(line.split("  # type: ignore")[0] for line in text.splitlines()))
    wrong = mypy(bare, mypy_cache)
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    wanted = {number for number, line in enumerate(text.splitlines(), 1) if "# type: ignore[" in line}
    told = {int(line.split(":")[1]) for line in wrong.stdout.splitlines() if ": error:" in line}
    assert len(wanted) >= 12
    assert told == wanted, wrong.stdout
