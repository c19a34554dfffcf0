"""The stream of one task over the query service's WebSocket, for networks where a response cannot stay open (a proxy
buffers or ends incomplete responses). docs/live.md documents the protocol.

Each stream has its own socket. It ends as a stream over SSE does and is resumed in the same way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK, InvalidStatus, WebSocketException

from streamtask.client.stream import BLOCK_BYTES_MAX, Update, no_answer
from streamtask.domain.model import TaskResponse
from streamtask.errors import StreamtaskError

NAME = "task"  # of the single subscription


class HandshakeRefused(Exception):
    """No WebSocket was opened; `status` is the HTTP status of the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class SubscriptionRefused(Exception):
    """The WebSocket is open, but the subscription was refused with this problem document."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Frame(BaseModel):
    """A frame of the service; a frame of unknown type is only a sign of life."""

    type: str
    last_event_id: str | None = None
    task: TaskResponse | None = None
    problem: dict[str, Any] | None = None


async def socket_events(
    url: str, headers: Mapping[str, str], asked: Mapping[str, str], *, open_s: float, silence_s: float
) -> AsyncGenerator[Update, None]:
    """The frames about one task, until the service ends the stream or closes the connection.

    url    of the WebSocket itself
    asked  fields of the subscription

    Raises HandshakeRefused and SubscriptionRefused. Raises Unreachable when it cannot connect, or the connection breaks or is
    silent for silence_s.
    """
    try:
        async with connect(url, additional_headers=headers, open_timeout=open_s, max_size=BLOCK_BYTES_MAX) as socket:
            await socket.send(json.dumps({"action": "subscribe", "id": NAME, **asked}))
            while True:
                async with asyncio.timeout(silence_s):
                    frame = _read(await socket.recv(), url)
                if frame.type == "error":
                    raise SubscriptionRefused(frame.problem or {})
                if frame.type == "end":
                    return  # the task has ended, or the client should resume
                yield Update(frame.last_event_id, frame.task)
    except ConnectionClosedOK:
        return
    except InvalidStatus as error:
        raise HandshakeRefused(error.response.status_code) from None
    except (WebSocketException, OSError) as error:  # a TimeoutError is an OSError
        raise no_answer(url, error) from None


def _read(text: str | bytes, url: str) -> _Frame:
    try:
        return _Frame.model_validate_json(text)
    except ValidationError as error:
        raise StreamtaskError(
            f"{url} does not look like a streamtask query service ({error.error_count()} invalid fields)."
        ) from None
