"""The query service over HTTP: the routes, what they accept, and how long they wait.

There are three rules. A stored body is sent as it was stored, without parsing. Every error is a problem document
(problems.py). After a POST a GET never answers 404: on this replica the POST waits for its own record, and on others the
`Consistency-Token` of its answer makes the GET wait.

FastAPI provides routing, query validation and OpenAPI; gate.py runs before it.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Protocol

import orjson
from fastapi import FastAPI, Query, Request
from pydantic import AwareDatetime
from starlette.responses import Response

from streamtask.codec import decode_request_strict
from streamtask.documents import examples
from streamtask.documents.examples import HEADERS, JSON, answer
from streamtask.domain.identity import TRACE_HEADERS, Origin
from streamtask.domain.model import ENDED, PRIORITY_DEFAULT, RequestRecord, TaskRequest, TaskStatus, to_ms
from streamtask.errors import DecodeError
from streamtask.projection.materialize import created_row
from streamtask.projection.store import LIST_MAX, Cursor, Filter, Row
from streamtask.projection.view import Token, ViewService, now_ms
from streamtask.query_service.gate import Gate, LookUp, check_bind
from streamtask.query_service.hosts import Hosts
from streamtask.query_service.live import Live
from streamtask.query_service.openapi import describe
from streamtask.query_service.problems import Problem, install, invalid, responses, unavailable, unknown_names
from streamtask.query_service.redrive import Redriver, add_redrive
from streamtask.query_service.route_checks import be_fresh, canonical_id, task_id_in_path, unknown
from streamtask.query_service.socket import add_socket
from streamtask.query_service.sse import add_streams

__all__ = ["Placed", "Submitter", "check_bind", "create_app"]

WAIT_MAX_S = 60.0  # of a long poll: proxies give up between 30 and 60 s
LANDED_S = 2.0  # how long a POST waits for its own record; until it arrives, `get` then answers from memory
CANCEL_BODY_MAX = 10_000
LIMIT_DEFAULT = 50
PLACED = ("Location", "Consistency-Token")
_ENDED = frozenset(status.value for status in ENDED)
_LIST_NAMES = ("status", "task_type", "tenant", "since", "cursor", "limit")


class Placed(Protocol):
    """The position of a submitted request (client.Receipt)."""

    @property
    def task_id(self) -> str: ...
    @property
    def band(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...


class Submitter(Protocol):
    """Writes to Kafka for the routes; returns when every in-sync replica has the record.

    Both raise SubmitError or Unreachable when Kafka does not accept it; submit also raises RequestRefused.
    """

    async def submit(self, request: TaskRequest, headers: dict[str, str]) -> Placed: ...

    async def cancel(self, task_id: str, reason: str | None) -> None: ...


def create_app(
    service: ViewService,
    submitter: Submitter,
    *,
    redriver: Redriver | None = None,
    api_key: str | None = None,
    body_bytes_max: int = 1_000_000,
    hosts: Hosts | None = None,
) -> FastAPI:
    """The ASGI application over a view that the caller runs. hosts: allowed names; None: localhost and IP addresses."""
    hosts = hosts or Hosts()
    app = FastAPI(
        title="streamtask query service",
        version="1",
        description="Submit tasks, look up their status, wait for it, follow it live, and cancel tasks.",
        docs_url=None,  # FastAPI's page loads its scripts from a CDN; ours is one self-contained file
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    install(app)
    app.state.look_up = LookUp(service, api_key, hosts)
    app.add_middleware(Gate, look_up=app.state.look_up, api_key=api_key, hosts=hosts)
    _add_submit(app, service, submitter, body_bytes_max)
    _add_lookup(app, service)
    _add_list(app, service)
    _add_cancel(app, service, submitter)
    add_redrive(app, service, redriver)
    live = Live(service)
    add_streams(app, live)
    add_socket(app, live)
    _add_operations(app, service)
    describe(app)
    return app


# --- Routes -----------------------------------------------------------------------------------------------------------


def _add_submit(app: FastAPI, service: ViewService, submitter: Submitter, body_bytes_max: int) -> None:
    @app.post(
        "/tasks",
        status_code=202,
        tags=["tasks"],
        summary="Submit a task",
        responses={
            202: answer("TaskResponse", "The request is stored in Kafka", headers=PLACED, example=examples.CREATED),
            **responses(400, 413, 422, 503),
        },
        openapi_extra=examples.body("TaskRequest", required=True, cases=examples.requests()),
    )
    async def submit(request: Request) -> Response:
        """Answers when every in-sync replica has the request. `Location` is the task. Send `Consistency-Token` with a GET to
        any replica of this service to make it wait until it knows the task."""
        asked = _task_request(await _body(request, body_bytes_max))
        if asked.priority is None:
            asked = asked.model_copy(update={"priority": PRIORITY_DEFAULT})
        trace = {name: held for name in TRACE_HEADERS if (held := request.headers.get(name)) is not None}
        placed = await submitter.submit(asked, trace)
        row = _placed_row(placed, asked, service)
        token = Token.parse(row.origin, service.names)
        await service.landed(token, row, LANDED_S)
        known = service.get(placed.task_id)
        body = known.body if known is not None and known.version == 0 and known.origin == row.origin else row.body
        headers = {"Location": f"/tasks/{placed.task_id}", "Consistency-Token": row.origin}
        return Response(body, 202, headers, JSON)


def _add_lookup(app: FastAPI, service: ViewService) -> None:
    @app.get(
        "/tasks/{task_id}",
        tags=["tasks"],
        summary="The latest status of a task",
        responses={
            200: answer("TaskResponse", "As it stands", headers=("ETag",), cases=examples.responses()),
            304: {
                "description": "Nothing is newer than If-None-Match",
                "headers": {"ETag": {"$ref": HEADERS + "ETag"}},
            },
            **responses(404, 422, 503),
        },
    )
    async def look_up(
        request: Request,
        task_id: Annotated[str, task_id_in_path()],
        wait: Annotated[
            float, Query(ge=0, le=WAIT_MAX_S, description="Seconds to wait for a newer version (long poll)")
        ] = 0.0,
        after_version: Annotated[
            int | None, Query(ge=0, description="With wait: answer once the version (ETag) is above this one")
        ] = None,
    ) -> Response:
        """`ETag` is the version of the answer. With `wait` the answer comes once the version is above `after_version` (or that
        of If-None-Match; without both: once the task has ended), at the latest after `wait` seconds."""
        known_id = canonical_id(task_id)
        await be_fresh(request.headers, service, wait)
        seen = _etags(request.headers.get("if-none-match"))
        if after_version is None and seen:
            after_version = max(seen)
        row = service.get(known_id) if wait <= 0 else await service.changed(known_id, after_version, wait)
        if row is None:
            raise unknown(known_id, service)
        headers = {"ETag": f'"{row.version}"', "Cache-Control": "no-cache"}
        if row.version in seen:
            return Response(status_code=304, headers=headers)
        return Response(row.body, 200, headers, JSON)


def _add_list(app: FastAPI, service: ViewService) -> None:
    @app.get(
        "/tasks",
        tags=["tasks"],
        summary="List tasks, newest first",
        responses={
            200: answer("TaskPage", "A page", example=examples.PAGE),
            **responses(422, 503),
        },
    )
    async def list_tasks(
        request: Request,
        status: Annotated[TaskStatus | None, Query()] = None,
        task_type: Annotated[str | None, Query(max_length=255)] = None,
        tenant: Annotated[
            str | None, Query(max_length=255, description="Known for tasks whose request this view has read")
        ] = None,
        since: Annotated[AwareDatetime | None, Query(description="Created at or after, RFC 3339")] = None,
        cursor: Annotated[str | None, Query(description="next_cursor of the previous page")] = None,
        limit: Annotated[int, Query(ge=1, description=f"At most {LIST_MAX} per page")] = LIMIT_DEFAULT,
    ) -> Response:
        """Pages never repeat or skip a task, whatever is submitted meanwhile. `next_cursor` is null on the last page."""
        wrong = unknown_names(request.query_params, _LIST_NAMES)
        if wrong:
            raise invalid("; ".join(f"{name}: {text}" for name, text in wrong.items()), wrong)
        await be_fresh(request.headers, service, 0.0)
        page = await service.page(
            Filter(status and status.value, task_type, tenant, None if since is None else to_ms(since)),
            _cursor(cursor),
            min(limit, LIST_MAX),
        )
        after = None if page.cursor is None else str(page.cursor)
        bodies = b",".join(row.body for row in page.rows)
        return Response(b'{"tasks":[%b],"next_cursor":%b}' % (bodies, orjson.dumps(after)), 200, None, JSON)


def _add_cancel(app: FastAPI, service: ViewService, submitter: Submitter) -> None:
    @app.post(
        "/tasks/{task_id}/cancel",
        status_code=202,
        tags=["tasks"],
        summary="Request the cancellation of a task",
        responses={
            202: answer(
                "CancelAsked",
                "The cancel request is stored in Kafka",
                headers=("Location",),
                example=examples.CANCEL_ASKED,
            ),
            **responses(400, 409, 413, 422, 503),
        },
        openapi_extra=examples.body("CancelBody", required=False, cases=examples.cancels()),
    )
    async def cancel(
        request: Request, task_id: Annotated[str, task_id_in_path("UUID; the task need not be known yet")]
    ) -> Response:
        """Answers when the cancel request is acknowledged, not when the task has ended. 409 when it has already ended."""
        known_id = canonical_id(task_id)
        reason = _reason(await _body(request, CANCEL_BODY_MAX))
        row = service.get(known_id)
        if row is not None and row.status in _ENDED:
            raise Problem(
                409, "already-ended", "The task has ended", f"Task {known_id} is {row.status}.", task_id=known_id
            )
        await submitter.cancel(known_id, reason)
        answer = {"task_id": known_id, "action": "cancel", "status": None if row is None else row.status}
        return Response(orjson.dumps(answer), 202, {"Location": f"/tasks/{known_id}"}, JSON)


def _add_operations(app: FastAPI, service: ViewService) -> None:
    page = files("streamtask.query_service").joinpath("static/docs.html").read_bytes()

    health_of = {200: answer("Health", "As it stands"), **responses(503)}

    @app.get(
        "/health", tags=["operations"], summary="State, lag, and age of the newest event read", responses=health_of
    )
    async def health() -> Response:
        """503 only when the view has failed. `read_committed_age_s`: for how long an open transaction has kept records from
        being read."""
        facts = service.health()
        if service.failure is not None:
            raise unavailable("view-failed", "The view no longer follows the topics", service.failure, health=facts)
        return Response(orjson.dumps(facts), 200, None, JSON)

    @app.get("/ready", tags=["operations"], summary="200 once the view has caught up", responses=health_of)
    async def ready() -> Response:
        facts = service.health()
        if facts["state"] != "ready":
            raise unavailable("not-ready", "The view is not ready", f"It is {facts['state']}.", health=facts)
        return Response(orjson.dumps(facts), 200, None, JSON)

    @app.get(
        "/stats",
        tags=["operations"],
        summary="Tasks by status, and what was read",
        responses={200: answer("Stats", "Current values; counts are at most a second old")},
    )
    async def stats() -> Response:
        return Response(orjson.dumps(await service.stats()), 200, None, JSON)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page, 200, None, "text/html; charset=utf-8")


# --- Parts of a request -----------------------------------------------------------------------------------------------


async def _body(request: Request, bytes_max: int) -> bytes:
    """The whole body. Raises Problem 413 before it holds more than bytes_max."""
    too_large = Problem(413, "body-too-large", "The body is too large", f"The limit is {bytes_max:,} bytes.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > bytes_max:
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def _task_request(body: bytes) -> TaskRequest:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "not-json", "The body is not JSON", str(error)) from None
    return decode_request_strict(body)


def _reason(body: bytes) -> str | None:
    if not body.strip():
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "not-json", "The body is not JSON", str(error)) from None
    if type(document) is not dict:
        raise DecodeError("an object is required", fields={"": "must be an object"})
    wrong = {name: "unknown field; did you mean 'reason'?" for name in document if name != "reason"}
    reason = document.get("reason")
    if reason is not None and (type(reason) is not str or len(reason) > 1_000):
        wrong["reason"] = "must be a string of at most 1,000 characters"
    if wrong:
        raise invalid("; ".join(f"{name}: {text}" for name, text in wrong.items()), wrong)
    return reason


def _cursor(text: str | None) -> Cursor | None:
    if text is None:
        return None
    try:
        return Cursor.parse(text)
    except ValueError:
        raise invalid("cursor: not issued by this service", {"cursor": "pass next_cursor unchanged"}) from None


def _etags(text: str | None) -> set[int]:
    """The versions in an If-None-Match header; ETags that this service did not issue match nothing."""
    if not text:
        return set()
    parts = (part.strip().removeprefix("W/").strip('"') for part in text.split(","))
    return {int(part) for part in parts if part.isdecimal() and part.isascii() and len(part) < 20}


def _placed_row(placed: Placed, asked: TaskRequest, service: ViewService) -> Row:
    """The row of a request whose record this view has not read yet."""
    band = service.names.band_named(placed.band)
    assert band is not None, f"{placed.band} is no band of {service.names.prefix}"
    assert asked.priority is not None, "submit fills it in"
    at_ms = now_ms() if asked.created_at is None else to_ms(asked.created_at)
    record = RequestRecord(
        band, placed.partition, placed.offset, at_ms, placed.task_id, asked, asked.priority, at_ms, b""
    )
    row = created_row(record, service.names, service.locale)
    assert row.origin == str(Origin(placed.band, placed.partition, placed.offset))
    return row
