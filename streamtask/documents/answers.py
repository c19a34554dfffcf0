"""What the query service sends besides the documents of the topics: answers over HTTP, frames of `/ws`.

The service does not instantiate these models: bodies are sent as they were stored (http.py) or are assembled by hand
(socket.py). The models are their description in OpenAPI, AsyncAPI and schemas/json; an acceptance test validates every
answer and every frame of a real run against them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from streamtask.domain.model import TaskResponse, TaskStatus

Count = Annotated[int, Field(ge=0)]
LastId = Annotated[str, Field(description="Resume after this id; the id of a filtered stream names every partition.")]
Name = Annotated[str, Field(description="The name that the client chose for the subscription.")]


class TaskPage(BaseModel):
    """Tasks, newest first."""

    tasks: list[TaskResponse]
    next_cursor: str | None = Field(description="The cursor of the next page; null on the last page.")


class CancelBody(BaseModel):
    """The optional reason."""

    reason: str | None = Field(None, max_length=1_000)


class CancelAsked(BaseModel):
    """The cancel request is stored; the task may not have ended yet."""

    task_id: str
    action: Literal["cancel"]
    status: TaskStatus | None = Field(description="The status that this replica knows; null if the task is unknown.")


class Health(BaseModel):
    """State of the view, and how far it has read."""

    state: Literal["restoring", "ready", "failed"]
    lag_records: Count = Field(description="Records that were not read yet, at the last check.")
    read_committed_age_s: float = Field(
        ge=0, description="How long an open transaction has been delaying reads, in seconds."
    )
    looked_s_ago: float | None = Field(ge=0, description="Seconds since the last check; null before the first one.")
    records_to_go: Count | None = Field(None, description="Records to read until it is ready.")
    failure: str | None = None
    notes: list[str] | None = None


class ReadCounts(BaseModel):
    """Records read since the start of this process."""

    requests: Count
    status_events: Count
    cancels: Count
    unreadable: Count


class Stats(BaseModel):
    """What this replica knows, and the number of waiting clients."""

    tasks: dict[TaskStatus, Count]
    read: ReadCounts
    waiting: Count = Field(description="Long polls and reads that are waiting.")
    streams: Count = Field(description="Open live streams.")


class FieldProblem(BaseModel):
    """An invalid field: its path, and what is wrong with it."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457: every response of 400 and above. Programs can compare `type`; `detail` is for people."""

    type: str = Field(examples=["urn:streamtask:problem:invalid-request"])
    title: str
    status: int = Field(ge=400, le=599)
    detail: str | None = None
    errors: list[FieldProblem] | None = None
    task_id: str | None = None
    health: Health | None = None


class Gap(BaseModel):
    """Events that are no longer in the topic: of one partition, from `wanted` to below `found`."""

    partition: Count
    wanted: Count
    found: Count


class LiveSubscribed(BaseModel):
    """The subscription is active."""

    type: Literal["subscribed"]
    id: Name
    last_event_id: LastId | None


class LiveEvent(BaseModel):
    """A status event, or the current status of a task when its stream begins."""

    type: Literal["event"]
    id: Name
    last_event_id: LastId
    task: TaskResponse


class LiveAlive(BaseModel):
    """No events for a while; all up to this id were sent."""

    type: Literal["alive"]
    id: Name
    last_event_id: LastId | None


class LiveGap(BaseModel):
    """Some of the requested events no longer exist."""

    type: Literal["gap"]
    id: Name
    last_event_id: LastId
    gap: Gap


class LiveEnd(BaseModel):
    """The subscription is over. ended: its task has ended; otherwise subscribe again with the last id."""

    type: Literal["end"]
    id: Name
    reason: Literal["ended", "unsubscribed", "unavailable", "slow", "restarted", "overrun", "stopping"]


class LiveError(BaseModel):
    """An invalid frame, or a refused subscription."""

    type: Literal["error"]
    id: Name | None = None
    problem: Problem


class LivePong(BaseModel):
    """The answer to a ping."""

    type: Literal["pong"]


class LiveFrame(RootModel[LiveSubscribed | LiveEvent | LiveAlive | LiveGap | LiveEnd | LiveError | LivePong]):
    """A frame from `/ws`: one JSON object per text frame; `type` says which kind."""


class Asked(BaseModel):
    """A frame from the client."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["subscribe", "unsubscribe", "ping"]
    id: str | None = Field(None, min_length=1, max_length=64)
    task_id: str | None = Field(None, max_length=64)
    status: TaskStatus | None = None
    task_type: str | None = Field(None, max_length=255)
    tenant: str | None = Field(None, max_length=255)
    last_event_id: str | None = None
    consistency_token: str | None = Field(None, max_length=255)
