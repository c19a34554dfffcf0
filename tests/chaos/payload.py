"""Text that no compression makes small: what a payload of N bytes weighs, it weighs on every wire and in every buffer."""

from __future__ import annotations

import base64
import functools
import math
import random

PAYLOAD_MIN, PAYLOAD_MAX = 10, 900_000
_SLACK = 100_000  # so that two payloads of one size are not the same text


@functools.cache
def _text() -> str:
    return base64.b64encode(random.Random("payload").randbytes((PAYLOAD_MAX + _SLACK) * 3 // 4 + 3)).decode()


def payload(size: int, salt: int = 0) -> str:
    """ASCII text of so many bytes; the same for the same arguments in every process."""
    text = _text()
    start = salt % (len(text) - size)
    return text[start : start + size]


def spread(rng: random.Random, low: float, high: float) -> int:
    """As likely between 10 and 100 as between 10,000 and 100,000."""
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
