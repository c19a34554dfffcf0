"""The outermost layer of the HTTP service: access control, and a shortcut for plain look-ups.

`GET /tasks/{id}` without conditions is by far the most common request: LookUp sends the stored bytes at once and bypasses
routing and FastAPI (three times the rate; docs/decisions/0005). A request with a condition (query, If-None-Match,
Consistency-Token), or for a task that is not found, goes on to the routes, which answer the plain case with the same bytes.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from streamtask.domain.identity import canonical
from streamtask.errors import ConfigError
from streamtask.projection.view import ViewService
from streamtask.query_service.hosts import Hosts, is_foreign
from streamtask.query_service.problems import Problem

# The page and the schema are the same for all callers and reveal nothing about this service; a browser sends no key.
OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
READING = frozenset({"GET", "HEAD", "OPTIONS"})
KEY_PROTOCOL = b"key."
REFUSED = 1008
_CONDITIONS = frozenset({b"if-none-match", b"consistency-token"})
_TASKS = "/tasks/"
_TASK_PATH_LENGTH = len(_TASKS) + 36


class LookUp:
    """Answers plain look-ups that are permitted: before the application (metrics.py), or in its gate."""

    def __init__(self, service: ViewService, api_key: str | None, hosts: Hosts) -> None:
        self._service = service
        self._hosts = hosts
        self._key = None if api_key is None else api_key.encode()

    async def answers(self, scope: Scope, send: Send) -> bool:
        """Send the stored row of this task. False: the request needs the gate and the routes."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return False
        path: str = scope["path"]
        if len(path) != _TASK_PATH_LENGTH or not path.startswith(_TASKS) or scope["query_string"]:
            return False
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        for name, value in headers:
            if name in _CONDITIONS or (name == b"host" and not self._hosts.allows(value)):
                return False
        if self._key is not None and not _admits(self._key, headers):
            return False
        task_id = canonical(path[len(_TASKS) :])
        try:
            found = None if task_id is None else self._service.body(task_id)
        except Exception:  # noqa: BLE001 the route will raise it too, and answers 500 as always
            return False
        if found is None:
            return False
        body, version = found
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    _CONTENT_TYPE,
                    (b"content-length", b"%d" % len(body)),
                    (b"etag", b'"%d"' % version),
                    _NO_CACHE,
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})
        return True


_CONTENT_TYPE, _NO_CACHE = (b"content-type", b"application/json"), (b"cache-control", b"no-cache")


class Gate:
    """ASGI middleware. `api_key` None: every request that names an allowed host is admitted (loopback, or --insecure)."""

    def __init__(self, app: ASGIApp, look_up: LookUp, api_key: str | None, hosts: Hosts) -> None:
        self._app = app
        self._look_up = look_up
        self._hosts = hosts
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket" and not self._opens(scope["headers"]):
                await send({"type": "websocket.close", "code": REFUSED})  # not accepted before: the client sees 403
            else:
                await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        unknown = self._unknown_host(headers)
        if unknown is not None:
            await _misdirected(unknown).response()(scope, receive, send)
        elif self._key is not None and scope["path"] not in OPEN_PATHS and not _admits(self._key, headers):
            await _unauthorized().response()(scope, receive, send)
        elif scope["method"] not in READING and (refusal := _refusal_of_origin(headers)) is not None:
            await refusal.response()(scope, receive, send)
        elif not await self._look_up.answers(scope, send):
            await self._app(scope, receive, send)

    def _opens(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether this WebSocket may be opened. Browsers keep a page from reading another site's answers, but not its
        WebSockets."""
        if self._unknown_host(headers) is not None or _refusal_of_origin(headers) is not None:
            return False
        return self._key is None or _admits(self._key, headers)

    def _unknown_host(self, headers: list[tuple[bytes, bytes]]) -> bytes | None:
        """A `Host` that is not allowed, if any. Browsers always send one, so a request without it passes (HTTP/1.0 probes)."""
        for name, value in headers:
            if name == b"host" and not self._hosts.allows(value):
                return value
        return None


def check_bind(host: str, api_key: str | None, insecure: bool) -> None:
    """Raise ConfigError if anyone on the network could submit and read: not loopback, no key, and not --insecure."""
    if api_key is not None and not api_key.strip():
        raise ConfigError("api_key is empty: set STREAMTASK_API_KEY to a secret, or leave it out.")
    if not (_is_loopback(host) or api_key is not None or insecure):
        raise ConfigError(
            f"host={host!r} is reachable from other machines, but no API key is set. "
            "Set STREAMTASK_API_KEY, or pass --insecure."
        )


def _admits(key: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a header has the key, or, because a browser cannot set headers of a WebSocket, one of its protocols."""
    for name, value in headers:
        if name == b"x-api-key":
            given = value
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            given = value[7:].strip()
        elif name == b"sec-websocket-protocol":
            given = _key_protocol(value)
        else:
            continue
        if hmac.compare_digest(given, key):
            return True
    return False


def _key_protocol(value: bytes) -> bytes:
    """The key in `streamtask, key.<base64url>`; b"" when there is none."""
    for protocol in value.split(b","):
        if protocol.strip().startswith(KEY_PROTOCOL):
            text = protocol.strip()[len(KEY_PROTOCOL) :]
            try:
                return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
            except ValueError:
                return b""
    return b""


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _refusal_of_origin(headers: list[tuple[bytes, bytes]]) -> Problem | None:
    """Why the request may not write or open a WebSocket: the page of another site made the browser send it. None: it may."""
    try:
        if not is_foreign(headers):
            return None
    except ValueError as error:
        return Problem(400, "malformed-origin", "The Origin header is invalid", f"Origin: {error}.")
    return Problem(403, "cross-origin", "Pages of other sites may not send this request")


def _misdirected(host: bytes) -> Problem:
    return Problem(
        421,
        "unknown-host",
        "Unknown host name",
        f"Host: {host.decode('latin-1')[:255]!r}. If this service has that name, start it with --allowed-host NAME "
        "(STREAMTASK_ALLOWED_HOSTS).",
    )


def _unauthorized() -> Problem:
    return Problem(
        401,
        "unauthorized",
        "An API key is required",
        "Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
        headers={"WWW-Authenticate": "Bearer"},
    )
