"""The documents as files: what `streamtask schemas export` writes, and what this repository has under docs and schemas."""

from __future__ import annotations

import json
from typing import Any, cast

from streamtask.config import TopicNames
from streamtask.documents import asyncapi, schemas
from streamtask.projection.view import ViewService
from streamtask.query_service.http import Submitter, create_app
from streamtask.query_service.metrics import observed

KAFKA, SERVICE = "127.0.0.1:9092", "127.0.0.1:8080"
ASYNCAPI, OPENAPI = "asyncapi.json", "openapi.json"
# file → schema: the records of topics, the frames of sockets, and problem documents. OpenAPI has the rest.
FILES = {
    "task_request": "TaskRequest",
    "task_response": "TaskResponse",
    "task_control": "ControlMessage",
    "task_headers": "TaskHeaders",
    "status_headers": "StatusHeaders",
    "dead_letter_headers": "DeadLetterHeaders",
    "live_ask": "LiveAsk",
    "live_frame": "LiveFrame",
    "problem": "Problem",
}


def documents(names: TopicNames | None = None, *, kafka: str = KAFKA, service: str = SERVICE) -> dict[str, str]:
    """{file name: text}: the schemas as `<name>.json`, and the AsyncAPI and OpenAPI documents."""
    made: dict[str, Any] = {f"{file}.json": schemas.standalone(name, file) for file, name in FILES.items()}
    made[ASYNCAPI] = asyncapi.document(names or TopicNames(), kafka=kafka, service=service)
    made[OPENAPI] = openapi()
    return {name: json.dumps(held, ensure_ascii=False, indent=2) + "\n" for name, held in made.items()}


def openapi() -> dict[str, Any]:
    """The OpenAPI document that every query service serves."""
    service = cast(ViewService, None)  # the routes are only described, never called
    app = create_app(service, cast(Submitter, None))
    observed(app, service)
    return app.openapi()
