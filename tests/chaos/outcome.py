"""What a chaos run found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.checks import Counts, Overlap


@dataclass
class Outcome:
    """What a run found. violations: in words; evidence: the folder, kept only if there are any."""

    seed: int
    violations: list[str] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    given_up: int = 0
    requests: int = 0
    unacknowledged: int = 0
    cancels: int = 0
    executions: int = 0
    deaths: int = 0
    events: int = 0
    letters: int = 0
    counts: Counts = field(default_factory=Counts)
    overlaps: list[Overlap] = field(default_factory=list)
    ends_unknown: int = 0
    finish_s: float = 0.0
    witness: str = ""
    evidence: Path | None = None
