"""Payloads whose size is the same on the wire: a broker's limit counts what a batch takes compressed, and a repeated letter
takes next to nothing."""

from __future__ import annotations

import base64
import random


def incompressible(size: int) -> str:
    """Text of `size` characters, the same at each call, which lz4 makes no smaller."""
    return base64.b64encode(random.Random(size).randbytes(size * 3 // 4 + 3)).decode()[:size]
