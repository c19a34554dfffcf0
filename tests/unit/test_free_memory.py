"""What a process has freed goes back to the system, and a process that does not grow pays nothing for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streamtask.worker.free_memory import GROWTH_BYTES, FreeMemory, malloc_trim, resident_bytes

# 40 MB in blocks that malloc hands out (Python's own allocator has those up to 512 bytes), and the last one of them stays.
HOLDS = """
from streamtask.worker.free_memory import FreeMemory, resident_bytes
blocks = [bytes(1_000) for _ in range(40_000)]
before = resident_bytes()
del blocks[:-1]
freed = resident_bytes()
FreeMemory().give_back()
print(before, freed, resident_bytes())
"""


@pytest.mark.skipif(malloc_trim() is None or not resident_bytes(), reason="this C library has no malloc_trim")
def test_what_was_freed_below_a_block_in_use_goes_back_to_the_system() -> None:
    ran = subprocess.run([sys.executable, "-c", HOLDS], capture_output=True, text=True, check=True, timeout=60)
    before, freed, after = map(int, ran.stdout.split())
    assert freed > before - 10_000_000, "malloc keeps what is free"
    assert after < before - 30_000_000


def test_only_a_process_that_has_grown_since_the_last_time_gives_memory_back() -> None:
    trims, sizes = (
        [],
        [100 << 20, 60 << 20, (60 << 20) + GROWTH_BYTES - 1, (60 << 20) + GROWTH_BYTES, 62 << 20, 62 << 20],
    )
    free = FreeMemory(lambda: trims.append(1), lambda: sizes.pop(0))
    free.give_back()
    free.give_back()
    assert len(trims) == 1
    free.give_back()
    free.give_back()
    assert len(trims) == 2
    assert not sizes


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtask.worker.free_memory.malloc_trim", lambda: None)
    FreeMemory(resident=lambda: 1 << 40).give_back()
