"""`POST /tasks/{id}/redrive`: runs a task that has failed again, as a new task.

The task_id of the new task is a function of the dead letter (streamtask/redrive), so asking twice names the same task:
it is sent only when this view does not know it. A service redrives one task at a time, and each waits until the view has
its record. Two services that are asked at the same moment may both send a request; the workers then refuse the second as a
duplicate while the first is open.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Protocol

from fastapi import FastAPI, Request
from starlette.responses import Response

from streamtask.documents import examples
from streamtask.documents.examples import JSON, answer
from streamtask.domain.model import RequestRecord, TaskStatus
from streamtask.projection.materialize import created_row
from streamtask.projection.store import Row
from streamtask.projection.view import Token, ViewService
from streamtask.query_service.problems import Problem, invalid, responses, unavailable
from streamtask.query_service.route_checks import be_fresh, canonical_id, task_id_in_path, unknown
from streamtask.redrive import Redrive, Refusal

LANDED_S = 2.0  # how long to wait for the view to read the new request; after that, `get` answers from memory


class Redriver(Protocol):
    """Reads dead letters and writes requests for the route. Raises SubmitError, ClusterError, RequestRefused."""

    async def find(self, task_id: str, origin: str) -> Redrive | Refusal | None:
        """The new task for a FAILED one, or why there is none; None: its dead letter does not exist."""

    async def send(self, item: Redrive) -> RequestRecord:
        """Returns when every in-sync replica has the request."""


def add_redrive(app: FastAPI, service: ViewService, redriver: Redriver | None) -> None:
    """Add the route. redriver None: it answers that this service cannot redrive."""
    one_at_a_time = asyncio.Lock()

    @app.post(
        "/tasks/{task_id}/redrive",
        status_code=202,
        tags=["tasks"],
        summary="Run a failed task again, as a new task",
        responses={
            202: answer("TaskResponse", "The new task", headers=("Location",), example=examples.CREATED),
            **responses(404, 409, 422, 503),
        },
    )
    async def redrive(
        request: Request, task_id: Annotated[str, task_id_in_path("UUID of the failed task")]
    ) -> Response:
        """`Location` is the new task, which has the label `redrive_of`. If you ask again, the answer names the same task with
        its current status. 409 when the task has not failed, or cannot be redriven. The request must have no body."""
        known_id = canonical_id(task_id)
        await _no_body(request)
        await be_fresh(request.headers, service, 0.0)
        row = service.get(known_id)
        if row is None or redriver is None:
            raise unknown(known_id, service) if row is None else _cannot("This service has no access to dead letters.")
        if row.status != TaskStatus.FAILED.value:
            text = f"Task {known_id} is {row.status}."
            raise Problem(409, "not-failed", "Only failed tasks can be redriven", text, task_id=known_id)
        if not service.ready:  # it might not know yet which tasks were redriven before
            raise unavailable("not-ready", "The view is not ready", "It has not read everything yet.")
        async with one_at_a_time:
            made = await _redriven(service, redriver, row)
        headers = {"Location": f"/tasks/{made.task_id}"} | ({"Consistency-Token": made.origin} if made.origin else {})
        return Response(made.body, 202, headers, JSON)


async def _redriven(service: ViewService, redriver: Redriver, row: Row) -> Row:
    """The row of the new task; sends its request when the task is not known. Raises Problem."""
    found = await redriver.find(row.task_id, row.origin)
    if found is None:
        raise _cannot(
            "Its dead letter does not exist: its retention has ended, or it was written under another prefix."
        )
    if isinstance(found, Refusal):
        raise _cannot(found.why)
    known = service.get(found.task_id)
    if known is not None:
        return known
    made = created_row(await redriver.send(found), service.names, service.locale)
    assert made.task_id == found.task_id, f"{made.task_id} was sent as {found.task_id}"
    await service.landed(Token.parse(made.origin, service.names), made, LANDED_S)
    return made


def _cannot(why: str) -> Problem:
    return Problem(409, "cannot-be-redriven", "The task cannot be redriven", why)


async def _no_body(request: Request) -> None:
    async for part in request.stream():
        if part:
            raise invalid("the body must be empty: a redrive sends the original request", {"": "must be empty"})
