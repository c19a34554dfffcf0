"""One rule of the protocol, taken out: what mutations.py and refusal_mutations.py are tables of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Mutation:
    """rule: its name in the design; scenarios: each of them must fail without it; breaks: what then goes wrong."""

    rule: str
    active: Callable[[], Any]
    scenarios: tuple[str, ...]
    breaks: str
