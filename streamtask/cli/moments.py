"""Times on the command line: RFC 3339, or a distance from now."""

from __future__ import annotations

from datetime import UTC, datetime

from streamtask.errors import ConfigError

DURATIONS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def moment(option: str, text: str | None, *, past: bool = False) -> datetime | None:
    """The time in RFC 3339 text or a duration (`+5m`: from now; `5m` with `past`: before now). Raises ConfigError."""
    if text is None:
        return None
    amount, unit = text.lstrip("+")[:-1], text[-1:]
    if unit in DURATIONS and amount.replace(".", "", 1).isdigit():
        seconds = float(amount) * DURATIONS[unit]
        now = datetime.now(UTC).timestamp()
        return datetime.fromtimestamp(now - seconds if past else now + seconds, UTC)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        example = "2026-11-24T07:26:00Z" if not past else "2026-11-24T07:26:00Z or 1h"
        raise ConfigError(f"{option} {text!r} is not a time with a UTC offset. Write it like {example}.")
    return when
