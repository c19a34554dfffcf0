"""OpenAPI of the query service: FastAPI's description of the routes, with streamtask's schemas, the gate and the headers.

FastAPI knows paths and parameters. Bodies do not pass through it, so the routes name their schemas (examples.answer)
and this module supplies them. Answers that the gate gives before any route are added to every route. The same document
is served as /openapi.json and committed as docs/openapi.json.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from streamtask.documents import schemas
from streamtask.documents.examples import SCHEMAS
from streamtask.query_service.gate import OPEN_PATHS, READING
from streamtask.query_service.problems import responses

HEADERS: dict[str, dict[str, Any]] = {
    "Consistency-Token": {
        "description": "The request record. Sent with a GET, to any replica, that waits until it knows the task.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.]+-[0-9]+@[0-9]+$"},
    },
    "ETag": {
        "description": "The version of the answer: 0 while only the request is known.",
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    },
    "Location": {"description": "The task.", "schema": {"type": "string", "pattern": "^/tasks/[0-9a-f-]{36}$"}},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}},
}
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "STREAMTASK_API_KEY of the service, if it has one."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
}
# Schemas that do not belong to HTTP: frames of /ws, control messages, headers of records.
_ELSEWHERE = ("Live", "ControlMessage", "TaskHeaders", "StatusHeaders", "DeadLetterHeaders")
_STRICT = ("TaskRequest", "CancelBody")  # unknown fields are refused


def describe(app: FastAPI) -> None:
    """Make the app serve this document as its own."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation does it


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, openapi_version="3.1.0", description=app.description, routes=app.routes
    )
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _finish(path, method.upper(), operation)
    ours = {
        name: schemas.closed(schema) if name in _STRICT else schema
        for name, schema in schemas.components(SCHEMAS).items()
        if not name.startswith(_ELSEWHERE)
    }
    theirs = set(document.get("components", {}).get("schemas", {})) - set(ours)
    assert not theirs, f"schemas that documents/schemas.py does not know: {theirs}"
    document["components"] = {"schemas": ours, "headers": HEADERS, "securitySchemes": SECURITY}
    document["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    return document


def _finish(path: str, method: str, operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        for word in ("title", "description"):
            schema.pop(word, None)
        schema.update({word: schemas.plain(value) for word, value in schema.items()})
        kept = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]  # a query has no null
        if len(kept) == 1:
            del schema["anyOf"]
            schema.update(kept[0])
    more: dict[int | str, Any] = responses(421, 500)
    if path not in OPEN_PATHS:
        operation["security"] = [{}, *({name: []} for name in SECURITY)]
        more |= responses(401)
    if method not in READING:
        more |= responses(400, 403)
    merged = operation["responses"] | {str(code): one for code, one in more.items()}
    operation["responses"] = dict(sorted(merged.items()))
