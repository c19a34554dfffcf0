"""Examples for OpenAPI and AsyncAPI: the documents of the contract, as readers of /docs first see them.

A route declares its answers with `answer`: a schema by its name in documents/schemas.py (openapi.py adds them).
"""

from __future__ import annotations

from typing import Any

JSON = "application/json"
SCHEMAS = "#/components/schemas/"
HEADERS = "#/components/headers/"

TASK_ID = "0193a5c8-7b1e-7c4d-9e2f-3a5b7c9d1e2f"

LONG_INFERENCE: dict[str, Any] = {
    "task_type": "long_inference",
    "description": "执行复杂的多步骤推理",
    "parameters": {"prompt": "请分析市场趋势并预测未来三个月的发展", "max_tokens": 4096, "temperature": 0.8},
    "priority": 8,
    "timeout_seconds": 300,
}
SMALLEST: dict[str, Any] = {"task_type": "file_census", "parameters": {"path": "README.md"}}
CREATED: dict[str, Any] = {
    "task_id": TASK_ID,
    "status": "created",
    "created_at": "2026-11-24T07:26:00.123Z",
    "updated_at": "2026-11-24T07:26:00.123Z",
    "message": "任务已创建",
    "task_type": "long_inference",
    "priority": 8,
    "origin": "high-3@12345",
}
RUNNING: dict[str, Any] = CREATED | {
    "status": "running",
    "progress": 0.65,
    "updated_at": "2026-11-24T07:28:10.456Z",
    "message": "任务状态: running",
    "attempt": 1,
}
COMPLETED: dict[str, Any] = RUNNING | {
    "status": "completed",
    "progress": 1.0,
    "result": {"analysis": "...", "prediction": "..."},
    "updated_at": "2026-11-24T07:30:00.789Z",
    "message": "任务状态: completed",
}
FAILED: dict[str, Any] = RUNNING | {
    "status": "failed",
    "error": "the model has no such prompt",
    "updated_at": "2026-11-24T07:29:00.012Z",
    "message": "任务状态: failed",
    "attempt": 3,
    "error_details": {"code": "handler_error", "exception": "ValueError", "attempt": 3},
}
CANCELLED: dict[str, Any] = RUNNING | {
    "status": "cancelled",
    "error": "no longer needed",
    "updated_at": "2026-11-24T07:29:00.012Z",
    "message": "任务状态: cancelled",
    "error_details": {"code": "cancelled", "attempt": 1},
}
PAGE: dict[str, Any] = {"tasks": [COMPLETED], "next_cursor": "AAABogxyf7sBk6XIex58TZ4vOlt8nR4v"}
STREAM = """\
id: 3:1042
data: {"task_id":"0193a5c8-7b1e-7c4d-9e2f-3a5b7c9d1e2f","status":"running","progress":0.65,"message":"任务状态: running"}

"""
CONTROL: dict[str, Any] = {
    "task_id": TASK_ID,
    "action": "cancel",
    "created_at": "2026-11-24T07:28:59.870Z",
    "reason": "no longer needed",
}
DEAD_HEADERS: dict[str, str] = {
    "streamtask-reason": "handler_error",
    "streamtask-text": "the model has no such prompt",
    "streamtask-origin": "high-3@12345",
    "streamtask-topic": "tasks.requests.high",
    "streamtask-partition": "3",
    "streamtask-offset": "12345",
    "streamtask-timestamp": "1795505160123",
    "streamtask-worker": "inference@host-1:4711",
    "streamtask-failed-at": "2026-11-24T07:29:00.012Z",
    "streamtask-value": "original",
    "streamtask-value-bytes": "251",
    "streamtask-task-id": TASK_ID,
    "streamtask-attempt": "3",
}
LIVE_ASKS: dict[str, dict[str, Any]] = {
    "task": {"action": "subscribe", "id": "a", "task_id": TASK_ID},
    "filter": {"action": "subscribe", "id": "b", "status": "failed", "task_type": "long_inference"},
    "unsubscribe": {"action": "unsubscribe", "id": "a"},
    "ping": {"action": "ping"},
}
LIVE_FRAMES: dict[str, dict[str, Any]] = {
    "subscribed": {"type": "subscribed", "id": "a", "last_event_id": None},
    "event": {"type": "event", "id": "a", "last_event_id": "3:1042", "task": RUNNING},
    "end": {"type": "end", "id": "a", "reason": "ended"},
    "pong": {"type": "pong"},
}
CANCEL_ASKED: dict[str, Any] = {"task_id": TASK_ID, "action": "cancel", "status": "running"}


def answer(
    schema: str | None,
    description: str,
    *,
    media_type: str = JSON,
    headers: tuple[str, ...] = (),
    example: Any = None,
    cases: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One answer of a route. schema: its name, or None for plain text; headers: names of openapi.HEADERS."""
    content: dict[str, Any] = {"schema": {"type": "string"} if schema is None else {"$ref": SCHEMAS + schema}}
    if example is not None:
        content["example"] = example
    if cases is not None:
        content["examples"] = cases
    told: dict[str, Any] = {"description": description, "content": {media_type: content}}
    if headers:
        told["headers"] = {name: {"$ref": HEADERS + name} for name in headers}
    return told


def body(schema: str, *, required: bool, cases: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's requestBody of a route whose body is read by the codec and not by FastAPI."""
    return {
        "requestBody": {
            "required": required,
            "content": {JSON: {"schema": {"$ref": SCHEMAS + schema}, "examples": cases}},
        }
    }


def requests() -> dict[str, Any]:
    """Examples of POST /tasks."""
    return {
        "long_inference": {"summary": "A long inference", "value": LONG_INFERENCE},
        "smallest": {"summary": "Only what is needed", "value": SMALLEST},
    }


def cancels() -> dict[str, Any]:
    """Examples of POST /tasks/{id}/cancel."""
    return {"reason": {"summary": "With a reason", "value": {"reason": "no longer needed"}}}


def responses() -> dict[str, Any]:
    """Examples of GET /tasks/{id}."""
    return {
        document["status"]: {"summary": document["status"], "value": document}
        for document in (CREATED, RUNNING, COMPLETED, FAILED, CANCELLED)
    }
