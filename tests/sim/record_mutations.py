"""The rules about one request record taken out: its expires_at, and what is known of it from elsewhere (see mutations.py)."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from streamtask.core import timers
from streamtask.core.recall import Recall
from streamtask.core.shard import Phase

from .mutation import Mutation


def _expired_is_unpicked() -> Any:
    """What was picked before its expires_at stays picked."""
    return patch.object(timers, "_NOT_STARTED", (Phase.QUEUED, Phase.WAITING))


def _handed_over_in_time() -> Any:
    """What was granted its first attempt is handed to its handler whenever that is known."""
    return patch.object(timers, "too_late", lambda claim, now: False)


def _over_by_a_later_end() -> Any:
    """What an event says of a later record of the same id says nothing of the earlier one."""
    return patch.object(Recall, "ended_later", lambda self, offset, task_id: False)


RECORD_MUTATIONS: dict[str, Mutation] = {
    "expired_is_unpicked": Mutation(
        "a picked request that expires is not sent its RUNNING",
        _expired_is_unpicked,
        ("expires_while_no_broker_answers",),
        "it is granted an attempt, and runs, as long after its expires_at as no broker answered",
    ),
    "handed_over_in_time": Mutation(
        "no first attempt is handed over after expires_at",
        _handed_over_in_time,
        ("expires_while_its_start_is_in_doubt", "expires_while_its_start_is_committed"),
        "a handler begins when a commit that was in doubt turns out to have landed, however late that is",
    ),
    "over_by_a_later_end": Mutation(
        "a later end of the same id in the cell proves that an earlier record is over",
        _over_by_a_later_end,
        ("id_used_again_and_compacted",),
        "where compaction took its events, a record that has ended runs again: a second CREATED, attempt 1 granted twice",
    ),
}
