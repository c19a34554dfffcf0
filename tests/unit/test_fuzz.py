"""Property tests are the same in every run, and `make fuzz` says how to play a find again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests import fuzz

ROOT = Path(__file__).resolve().parents[2]
DRAWN = """
import hashlib, sys
import tests.conftest
from hypothesis import given, strategies as st
{imports}
drawn = []

@given(st.lists(st.text() | st.floats() | st.integers()))
def draw(held):
    drawn.append(repr(held))

draw()
print(hashlib.sha256("".join(drawn).encode()).hexdigest(), len(drawn))
"""


def drawn(file: Path, imports: str) -> str:
    """A digest of what a property test draws in a process that has imported so much. Its source is part of its seed."""
    file.write_text(DRAWN.format(imports=f"exec({imports!r})" if imports else "pass"))
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, file], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_a_property_test_draws_the_same_examples_whatever_was_imported_before_it(tmp_path: Path) -> None:
    alone = drawn(tmp_path / "draw.py", "")
    assert int(alone.split()[1]) >= 50
    assert drawn(tmp_path / "draw.py", "import streamtask.query_service.http, streamtask.core.engine") == alone


def test_a_find_of_fuzz_prints_the_seed_and_the_blob_that_play_it_again() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--workers", "0", "--seed", "7", "tests/unit/fuzz_example.py"]
    found = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert found.returncode == fuzz.FOUND, found.stdout + found.stderr
    assert "python -m tests.fuzz --seed 7" in found.stdout
    assert re.search(r"@reproduce_failure\(.*\)", found.stdout)
