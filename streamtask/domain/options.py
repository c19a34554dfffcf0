"""The options of a submit, each declared once, and the error for an unknown option.

`client.submit("census", {"path": "a.py"}, priority=8)` and `census.options(priority=8)` accept the same options: the keys of
RequestOptions. Always true: an option has the name of its field in TaskRequest, except `timeout`, which is `timeout_seconds`
there; an option that is None counts as not given.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from streamtask.public import public

Headers = Mapping[str, str | bytes]
NOT_BEFORE_MAX_S = 3_600  # longer waits need scheduling


@public
class RequestOptions(TypedDict, total=False):
    """What can be said about a request besides its task type and its parameters. All can be left out."""

    priority: int | None
    """1..10, 10 = most urgent; it chooses the band, and so the topic. Default: 5."""
    timeout: float | None
    """Seconds per attempt, from the handler's start; wins over the task type's own."""
    description: str | None
    """Free text that people read."""
    ordering_key: str | None
    """Tasks with the same key and band start in order, one at a time."""
    labels: Mapping[str, str] | None
    """Names and values of your own; every status event repeats them."""
    task_id: str | None
    """A UUID; pass one so that you can check after a SubmitError whether the request arrived. Default: a new UUIDv7."""
    not_before: datetime | None
    """Does not start earlier. At most an hour ahead; cannot be combined with `ordering_key`."""
    expires_at: datetime | None
    """If it has not started by then, it is cancelled (`expired`)."""
    created_at: datetime | None
    """When the work was asked for; at most 24 h from when the broker stores the request, which is the default."""
    tenant: str | None
    """On whose behalf; the query service can filter by it."""
    idempotency_key: str | None
    """Only passed to the handler: streamtask does not deduplicate by it yet."""


@public
class SubmitOptions(RequestOptions, total=False):
    """The options of `client.submit(...)`. All can be left out."""

    headers: Headers | None
    """Headers of the request record; its dead letter keeps them."""


def request_fields(call: str, options: Mapping[str, Any], known: type = RequestOptions) -> dict[str, Any]:
    """The fields of a TaskRequest that these options set.

    call     the call that took the options, as a message names it
    known    the TypedDict that lists them
    Raises TypeError for an unknown option.
    """
    refuse_unknown(call, options, known)
    fields = {name: value for name, value in options.items() if value is not None}
    if "timeout" in fields:
        fields["timeout_seconds"] = fields.pop("timeout")
    labels = fields.get("labels")
    if type(labels) is not dict and isinstance(labels, Mapping):
        fields["labels"] = dict(labels)
    return fields


def refuse_unknown(call: str, given: Mapping[str, Any], known: type) -> None:
    """Raises TypeError, as Python does for an unknown keyword argument, and names the nearest known one.

    known  the TypedDict of the keywords that the call accepts
    """
    names = known.__annotations__
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{call} got an unexpected keyword argument {name!r}.{hint}")
