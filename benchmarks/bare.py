"""The least that answers over HTTP here: one ASGI function in granian, without routes, view or validation.

python -m benchmarks.bare BYTES        says `listening: URL`, answers everything with a body of that size
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from streamtask.query_service.server import find_place, loop_runner, serving

HEADERS = [(b"content-type", b"application/json")]


def application(size: int) -> Any:
    """An ASGI application."""
    body = b'"' + b"x" * (size - 2) + b'"'
    head = {"type": "http.response.start", "status": 200, "headers": [*HEADERS, (b"content-length", b"%d" % size)]}
    tail = {"type": "http.response.body", "body": body}

    async def answer(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send(head)
            await send(tail)

    return answer


async def main(size: int) -> None:
    """See the module."""
    place = find_place("127.0.0.1", 0)
    async with serving(application(size), place):
        print(f"listening: {place.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with loop_runner() as runner:  # uvloop where the service has it
        runner.run(main(int(sys.argv[1])))
