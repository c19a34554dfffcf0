"""The checks of a route before it answers: is the id valid, is the view fresh enough, does the task exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Path

from streamtask.domain.identity import canonical
from streamtask.projection.view import Token, ViewService
from streamtask.query_service.problems import Problem, invalid, unavailable

FRESH_S = 5.0  # how long a request waits until the view is as fresh as its token


def task_id_in_path(description: str = "UUID, in upper or lower case") -> Any:
    """A UUID in the OpenAPI document. `canonical_id` refuses other values, with streamtask's own error text."""
    return Path(description=description, json_schema_extra={"format": "uuid"})


def canonical_id(text: str) -> str:
    """The task_id in canonical form. Raises Problem when it is not a UUID."""
    task_id = canonical(text)
    if task_id is None:
        raise invalid(f"{text[:80]!r} is not a UUID", {"task_id": "must be a UUID"})
    return task_id


async def be_fresh(headers: Mapping[str, str], service: ViewService, wait_s: float) -> None:
    """Wait until the view has read up to the Consistency-Token of this request. Raises Problem."""
    text = headers.get("consistency-token")
    if text is not None:
        await be_as_fresh(text, service, wait_s)


async def be_as_fresh(text: str, service: ViewService, wait_s: float) -> None:
    """Wait until the view has read up to this Consistency-Token. Raises Problem."""
    try:
        token = Token.parse(text, service.names)
    except ValueError as error:
        raise invalid(f"Consistency-Token: {error}", {"Consistency-Token": str(error)}) from None
    if not await service.fresh(token, max(FRESH_S, wait_s)):
        raise unavailable("not-fresh", "The view is not fresh enough yet", f"It has not read up to {text} yet.")


def unknown(task_id: str, service: ViewService) -> Problem:
    """404; 503 while the view has not read everything."""
    if not service.ready:
        return unavailable(
            "not-ready", "The view is not ready", f"Task {task_id} was not found in the records read so far."
        )
    return Problem(404, "unknown-task", "No such task", f"No task {task_id} is known.", task_id=task_id)
