"""Errors as RFC 9457 documents: every response with status 400 or above is application/problem+json.

`type` is a stable name (urn:streamtask:problem:…) that programs can compare; `detail` is for people; `errors` names
each invalid field of a refused document.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from streamtask.documents.examples import answer
from streamtask.errors import ClusterError, DecodeError, RequestRefused, SubmitError
from streamtask.projection.watch import TooManyWaiters

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
_PREFIX = "urn:streamtask:problem:"
_MEANING = {
    400: "The request cannot be parsed",
    401: "An API key is required",
    403: "Pages of other sites may not send this request",
    404: "No such task",
    409: "The state of the task does not allow it",
    410: "Too many events have passed to replay them",
    413: "The body is too large",
    421: "`Host` is not a name of this service (DNS rebinding); see --allowed-host",
    422: "A field or parameter is invalid; `errors` names it",
    500: "Internal error; the log of the service has the details",
    503: "Temporarily unavailable; `Retry-After` says when to try again",
}
_HEADERS = {401: ("WWW-Authenticate",), 503: ("Retry-After",)}
_OF_STATUS = {404: "no-such-route", 405: "method-not-allowed"}

log = logging.getLogger("streamtask.query_service")


def responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses: a problem document for each of these codes."""
    return {
        code: answer("Problem", _MEANING[code], media_type=MEDIA_TYPE, headers=_HEADERS.get(code, ())) for code in codes
    }


class Problem(Exception):
    """A response with status 400 or above. `name` is part of its type; `more` are further members of the document."""

    def __init__(
        self,
        status: int,
        name: str,
        title: str,
        detail: str | None = None,
        *,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(title)
        self.status = status
        self.headers = dict(headers or {})
        self.document: dict[str, Any] = {"type": _PREFIX + name, "title": title, "status": status}
        if detail:
            self.document["detail"] = detail
        if fields:
            self.document["errors"] = [{"field": path, "message": text} for path, text in fields.items()]
        self.document |= more

    def response(self) -> Response:
        return Response(orjson.dumps(self.document), self.status, self.headers, MEDIA_TYPE)


def invalid(detail: str, fields: Mapping[str, str]) -> Problem:
    """422: the document or the query has invalid fields."""
    return Problem(422, "invalid-request", "The request is invalid", detail, fields=fields)


def unavailable(name: str, title: str, detail: str, **more: Any) -> Problem:
    """503, with the delay after which the client may retry."""
    return Problem(503, name, title, detail, headers={"Retry-After": str(RETRY_AFTER_S)}, **more)


def unknown_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """{unknown query parameter: advice naming the nearest known one}."""
    there = list(known)
    out = {}
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            out[name] = f"unknown parameter; did you mean {near[0]!r}?" if near else "unknown parameter"
    return out


def of_error(error: Exception) -> Problem:
    """The problem document for an error of streamtask."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, DecodeError | RequestRefused):
        return invalid(str(error), error.fields or {"": str(error)})
    if isinstance(error, SubmitError | ClusterError):
        return unavailable("kafka-unavailable", "Kafka is unavailable", str(error))
    if isinstance(error, TooManyWaiters):
        return unavailable("too-many-waiters", "Too many requests are waiting", str(error))
    if isinstance(error, RequestValidationError):
        fields = {".".join(str(part) for part in item["loc"][1:]): item["msg"] for item in error.errors()}
        return invalid("; ".join(f"{path}: {text}" for path, text in fields.items()), fields)
    if isinstance(error, HTTPException):
        name = _OF_STATUS.get(error.status_code, "http")
        return Problem(error.status_code, name, error.detail, headers=error.headers)
    return Problem(500, "internal", "Internal error of the query service", "Its log has the details.")


def install(app: FastAPI) -> None:
    """Answer every error of this app with a problem document."""

    async def answer(_: Request, error: Exception) -> Response:
        return of_error(error).response()

    async def answer_unforeseen(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return of_error(error).response()

    ours = (Problem, DecodeError, RequestRefused, SubmitError, ClusterError, TooManyWaiters)
    for kind in (*ours, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer_unforeseen)
