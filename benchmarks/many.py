"""An app of two hundred task types, each a no-op as that of benchmarks.app: what `scaling` tells about their number."""

from __future__ import annotations

from typing import Any

from streamtask import App

TYPES_MAX = 200
NAMES = tuple(f"noop_{number:03}" for number in range(TYPES_MAX))

app = App("many")


async def noop(path: str, size: int, deep: bool) -> dict[str, Any]:
    return {"path": path, "size": size}


for _name in NAMES:
    app.task(_name)(noop)
