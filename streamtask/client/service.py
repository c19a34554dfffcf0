"""The query service as a client sees it: one method per route; problem+json becomes one of streamtask's errors.

It holds one httpx client (one connection pool). It does not retry, with two exceptions: a long poll is repeated until
its deadline, and a stream is resumed. Streams use SSE, or the WebSocket when the url begins with ws; everything else
is the same.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from streamtask.client.stream import Update, no_answer, server_events
from streamtask.config import Settings
from streamtask.domain.model import TaskResponse, rfc3339
from streamtask.errors import (
    ConfigError,
    RequestRefused,
    StreamtaskError,
    SubmitError,
    UnknownTask,
    Unreachable,
    WaitTimeout,
)

if TYPE_CHECKING:
    import httpx

LONG_POLL_S = 25.0  # below the 30 s after which many proxies give up
OUTAGE_S = 30.0  # how long a wait tolerates that the service is unavailable
AGAIN_S = 0.5
SILENCE_S = 45.0  # of a stream: the service sends a sign of life every 15 s
TIMEOUT_S = 10.0  # added to the requested waiting time: a healthy service answers within a second


class Version:
    """TaskResponse with the version that the service gave it (0: only the request is known)."""

    __slots__ = ("number", "task")

    def __init__(self, task: TaskResponse, number: int | None) -> None:
        self.task = task
        self.number = number


class ServiceLink:
    """A query service at `settings.url`. The constructor raises ConfigError when a package that it needs is missing.

    url  http://… or https://…; with ws://… or wss://… it is the same service, followed over its WebSocket
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.url, "a ServiceLink needs a url"
        url = settings.url.rstrip("/")
        self._socket_url = f"{url}/ws" if url.lower().startswith(("ws://", "wss://")) else None
        self.url = f"http{url[2:]}" if self._socket_url is not None else url
        try:
            import httpx

            if self._socket_url is not None:
                import websockets.asyncio.client  # noqa: F401 imported now rather than when the first task is followed
        except ImportError as error:
            raise ConfigError(
                f"url={settings.url!r} needs {error.name}. Install it: pip install 'streamtask-kafka[server]'."
            ) from None
        self._answered = False
        self._body_bytes_max = settings.body_bytes_max
        headers = {"Accept": "application/json"}
        self._key: dict[str, str] = {}
        if settings.api_key is not None:
            self._key["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
            headers |= self._key
        try:
            # Each stream and long poll holds a connection: the number of callers that wait is the bound.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
            self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=TIMEOUT_S, limits=limits)
        except httpx.InvalidURL as error:
            raise ConfigError(f"url={settings.url!r}: {error}. Write http://HOST:PORT, or ws://HOST:PORT.") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def submit(self, document: bytes, headers: dict[str, str]) -> tuple[TaskResponse, str]:
        """POST /tasks: the created task, and the freshness token, which is the position of its record."""
        if len(document) > self._body_bytes_max:
            # Refused here: a service that refuses a body while it is being sent may cut the connection, and then the
            # caller could not know whether the request was stored.
            raise RequestRefused(
                f"Request refused: {len(document):,} bytes. The limit is {self._body_bytes_max:,} (body_bytes_max).",
                fields={"parameters": "too large"},
            )
        try:
            answer = await self._ask(
                "POST", "/tasks", content=document, headers={"Content-Type": "application/json", **headers}
            )
        except Unreachable as error:
            raise SubmitError(str(error)) from error
        return _task(answer).task, answer.headers.get("Consistency-Token", "")

    async def get(
        self, task_id: str, *, wait_s: float = 0.0, after_version: int | None = None, token: str | None = None
    ) -> Version | None:
        """GET /tasks/{id}; None when nothing newer than `after_version` arrived within wait_s. Raises UnknownTask."""
        query: dict[str, str] = {}
        if wait_s > 0:
            query["wait"] = f"{wait_s:.3f}"
        if after_version is not None:
            query["after_version"] = str(after_version)
        answer = await self._ask(
            "GET",
            f"/tasks/{task_id}",
            params=query,
            headers={"Consistency-Token": token} if token else {},
            timeout=wait_s + TIMEOUT_S,
            task_id=task_id,
        )
        if answer.status_code == 304:
            return None
        found = _task(answer)
        if after_version is not None and found.number is not None and found.number <= after_version:
            return None
        return found

    async def next(self, task_id: str, seen: Version | None, deadline: float | None, *, token: str | None) -> Version:
        """The first version after `seen` (None: any). deadline: monotonic seconds. Raises WaitTimeout, UnknownTask.

        A service that has answered before and is unavailable now (restarting, or catching up) is retried for OUTAGE_S.
        """
        away_since: float | None = None
        while True:
            now = time.monotonic()
            left = LONG_POLL_S if deadline is None else deadline - now
            if left <= 0:
                raise WaitTimeout(f"Task {task_id} did not end within the timeout; it continues.")
            try:
                found = await self.get(
                    task_id,
                    wait_s=min(left, LONG_POLL_S) if seen is not None else 0.0,
                    after_version=None if seen is None else seen.number,
                    token=token,
                )
            except Unreachable:
                away_since = away_since if away_since is not None else now
                if not self._answered or now - away_since > OUTAGE_S:
                    raise
                await asyncio.sleep(min(left, AGAIN_S))
                continue
            away_since = None
            if found is not None:
                return found

    async def events(self, task_id: str, *, token: str | None) -> AsyncGenerator[TaskResponse, None]:
        """The current status of the task, then each event until the terminal one. Raises UnknownTask.

        A broken connection is reopened at any replica, after the last event, for up to OUTAGE_S.
        """
        stream = self._by_sse if self._socket_url is None else self._by_socket
        last_id: str | None = None
        silent_since: float | None = None
        while True:
            try:
                async with aclosing(stream(task_id, last_id, token)) as updates:
                    async for update in updates:
                        self._answered = True
                        silent_since = None
                        last_id = update.id or last_id
                        if update.task is not None:
                            yield update.task
                            if update.task.ended:
                                return
            except Unreachable:
                if not self._answered or (silent_since and time.monotonic() - silent_since > OUTAGE_S):
                    raise
            silent_since = silent_since or time.monotonic()
            await asyncio.sleep(AGAIN_S)

    async def _by_sse(self, task_id: str, last_id: str | None, token: str | None) -> AsyncGenerator[Update, None]:
        """GET /tasks/{id}/events, until the service ends it. Raises Unreachable when it breaks or is silent."""
        import httpx

        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        elif token:
            headers["Consistency-Token"] = token
        timeout = httpx.Timeout(TIMEOUT_S, read=SILENCE_S)
        try:
            async with self._http.stream("GET", f"/tasks/{task_id}/events", headers=headers, timeout=timeout) as answer:
                self._answered = True
                if answer.status_code >= 400:
                    await answer.aread()
                    raise error_of(answer.status_code, _problem(answer), task_id=task_id, url=self.url)
                async for event in server_events(answer.aiter_bytes()):
                    is_task = event.name == "message" and event.data
                    yield Update(event.id, _read(event.data, self.url) if is_task else None)
        except httpx.HTTPError as error:
            raise no_answer(self.url, error) from None

    async def _by_socket(self, task_id: str, last_id: str | None, token: str | None) -> AsyncGenerator[Update, None]:
        """A subscription of /ws, until the service ends it. Raises Unreachable when it breaks or is silent."""
        from streamtask.client.socket import HandshakeRefused, SubscriptionRefused, socket_events

        assert self._socket_url is not None, "the url does not begin with ws"
        asked = {"task_id": task_id}
        if last_id is not None:
            asked["last_event_id"] = last_id
        elif token:
            asked["consistency_token"] = token
        updates = socket_events(self._socket_url, self._key, asked, open_s=TIMEOUT_S, silence_s=SILENCE_S)
        try:
            async with aclosing(updates):
                async for update in updates:
                    yield update
        except SubscriptionRefused as no:
            self._answered = True
            raise error_of(int(no.problem.get("status") or 500), no.problem, task_id=task_id, url=self.url) from None
        except HandshakeRefused as door:
            if door.status in (401, 403):  # a refused handshake carries no reason: ask over HTTP, which gives it
                await self.get(task_id, token=token)
                raise Unreachable(
                    f"The query service at {self.url} accepts no more streams now. Try again later."
                ) from None
            if door.status in (502, 503, 504):
                raise Unreachable(
                    f"The query service at {self.url} is unavailable now (HTTP {door.status}). Try again later."
                ) from None
            raise StreamtaskError(
                f"{self._socket_url} does not accept WebSockets (HTTP {door.status}). If a proxy in between does not "
                f"support them, use {self.url} instead."
            ) from None

    async def cancel(self, task_id: str, reason: str | None) -> None:
        """POST /tasks/{id}/cancel. Raises RequestRefused when the task has ended."""
        body = {"reason": reason} if reason is not None else {}
        await self._ask("POST", f"/tasks/{task_id}/cancel", json=body, task_id=task_id)

    async def list_tasks(
        self,
        *,
        status: str | None = None,
        task_type: str | None = None,
        tenant: str | None = None,
        since: datetime | None = None,
        limit: int = 20,
    ) -> tuple[list[TaskResponse], bool]:
        """GET /tasks: the newest `limit` tasks that match, and whether there are more."""
        query: dict[str, str] = {"limit": str(limit)}
        for name, text in (("status", status), ("task_type", task_type), ("tenant", tenant)):
            if text is not None:
                query[name] = text
        if since is not None:
            query["since"] = rfc3339(since)
        tasks: list[TaskResponse] = []
        while True:
            page = (await self._ask("GET", "/tasks", params=query)).json()
            tasks.extend(TaskResponse.model_validate_json(json.dumps(entry)) for entry in page["tasks"])
            cursor = page.get("next_cursor")
            if not cursor or len(tasks) >= limit:
                return tasks[:limit], bool(cursor) or len(tasks) > limit
            query["cursor"] = cursor

    async def _ask(self, method: str, path: str, *, task_id: str = "", **how: Any) -> httpx.Response:
        """One HTTP exchange; returns an answer below 400. Raises the error that the problem stands for."""
        import httpx

        try:
            answer = await self._http.request(method, path, **how)
        except httpx.TimeoutException:
            raise Unreachable(f"The query service at {self.url} did not answer in time.") from None
        except httpx.HTTPError as error:
            raise no_answer(self.url, error) from None
        self._answered = True
        if answer.status_code >= 400:
            raise error_of(answer.status_code, _problem(answer), task_id=task_id, url=self.url)
        return answer


def error_of(code: int, problem: dict[str, Any], *, task_id: str, url: str) -> StreamtaskError:
    """The error for a problem+json document."""
    text = str(problem.get("detail") or problem.get("title") or f"HTTP {code}")
    if code == 404 and task_id:
        return UnknownTask(f"No task {task_id} is known.")
    if code in (401, 403):
        return ConfigError(f"The query service at {url} refused the API key: {text}. Set STREAMTASK_API_KEY.")
    if code == 421:
        return ConfigError(f"The query service at {url} does not accept that host name. {text}")
    if code in (400, 409, 413, 415, 422):
        return RequestRefused(text, fields=_fields(problem))
    if code in (502, 503, 504):
        return Unreachable(f"The query service at {url} is unavailable now: {text}")
    return StreamtaskError(f"The query service at {url} answered {code}: {text}")


def _fields(problem: dict[str, Any]) -> dict[str, str]:
    """`errors` of a problem+json document: a mapping, or a list of {field, problem}-like entries."""
    errors = problem.get("errors") or {}
    if isinstance(errors, dict):
        return {str(name): str(text) for name, text in errors.items()}
    return {
        str(entry.get("field") or entry.get("pointer") or ""): str(entry.get("detail") or entry.get("message") or "")
        for entry in errors
        if isinstance(entry, dict)
    }


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        return {"title": answer.text[:200]}
    return document if isinstance(document, dict) else {"title": str(document)[:200]}


def _read(content: bytes, url: object) -> TaskResponse:
    try:
        return TaskResponse.model_validate_json(content)
    except ValidationError as error:
        raise StreamtaskError(
            f"{url} does not look like a streamtask query service ({error.error_count()} invalid fields)."
        ) from None


def _task(answer: httpx.Response) -> Version:
    task = _read(answer.content, answer.url)
    tag = answer.headers.get("ETag", "").removeprefix("W/").strip('"')
    return Version(task, int(tag) if tag.isdigit() else None)
