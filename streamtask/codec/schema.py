"""Where the Avro schemas are: `schemas/` of the checkout, packed into the wheel as `streamtask/schemas/`.

`schemas/*.avsc` are the source of truth of the formats; a test keeps the codec's models equal to them. Every released
version has a copy in `schemas/golden/<version>/`, with bytes written by it: files there never change, and every later
release reads those bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

_PACKED = Path(__file__).parents[1] / "schemas"  # inside the package; exists only in an installed wheel
_CHECKOUT = Path(__file__).parents[2] / "schemas"


def directory(version: str | None = None) -> Path:
    """The directory of the current schemas (None), or of those of a released version."""
    root = _PACKED if _PACKED.is_dir() else _CHECKOUT
    return root if version is None else root / "golden" / version


def versions() -> tuple[str, ...]:
    """`v1`, ...: the released versions, oldest first."""
    found = [path.name for path in (directory() / "golden").glob("v*") if path.name[1:].isdigit()]
    return tuple(sorted(found, key=lambda name: int(name[1:])))


def names(version: str | None = None) -> tuple[str, ...]:
    """`task_control`, `task_request`, `task_response`."""
    return tuple(sorted(path.stem for path in directory(version).glob("*.avsc")))


def text(name: str, version: str | None = None) -> str:
    """The text of the schema file. Raises FileNotFoundError."""
    return (directory(version) / f"{name}.avsc").read_text(encoding="utf-8")


def read(name: str, version: str | None = None) -> dict[str, Any]:
    """The schema as a plain mapping. Raises FileNotFoundError."""
    return cast(dict[str, Any], json.loads(text(name, version)))
