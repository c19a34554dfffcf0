"""How large an event may be: the limit of the topics, less what a record needs besides its value.

The limit is read at the start, and again when a result does not fit, because it may have been raised since. If it was
lowered, the broker refuses the record (core/settlement.py handles that).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from streamtask.core.engine import Engine
from streamtask.domain.model import Ending, ErrorCode, Outcome
from streamtask.domain.ports import Executions
from streamtask.errors import StreamtaskError
from streamtask.execution.executor import Executor

RECORD_SPARE_BYTES = 2_048  # size of a batch without the value of its one record
EVENT_SPARE_BYTES = 1_024  # size of an event without its result and labels
SURELY_FITS_BYTES = 100_000  # so far below the limit the labels are not counted
AGAIN_S = 5.0  # between two queries
ANSWER_S = 2.0  # the owner waits this long for the answer


def take_reports(executor: Executor, engine: Engine, size: EventSize) -> Executions:
    """What the executions have reported since the last call, with results that their events can carry."""
    begun, (done, progress) = executor.begun(), executor.drain()
    return Executions(begun, progress, [(token, _fitting(token, outcome, engine, size)) for token, outcome in done])


def _fitting(token: int, outcome: Outcome, engine: Engine, size: EventSize) -> Outcome:
    if outcome.result is None or not size.may_not_fit(outcome.result):
        return outcome
    claim = engine.running.get(token)
    request = claim.record.request if claim is not None else None
    return size.fitting(outcome, None if request is None else request.labels)


class EventSize:
    """The limit, as last queried. Used by one thread.

    ask   returns the smallest max.message.bytes of the topics, within so many seconds. Raises StreamtaskError
    """

    def __init__(self, ask: Callable[[float], int], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._asked_s = -AGAIN_S
        self.bytes_max = 0  #: limit of a value

    def look(self, timeout_s: float) -> None:
        """Query the limit. Raises StreamtaskError."""
        self._asked_s = self._clock()
        self.bytes_max = self._ask(timeout_s) - RECORD_SPARE_BYTES

    def may_not_fit(self, result: bytes) -> bool:
        """A cheap check that is True only for a large result."""
        return len(result) > self.bytes_max - EVENT_SPARE_BYTES - SURELY_FITS_BYTES

    def fitting(self, outcome: Outcome, labels: Mapping[str, str] | None) -> Outcome:
        """Turn a result that its event cannot carry into a failure without a retry, which could not help. If the limit
        cannot be queried, the broker decides whether it accepts the result.
        """
        result = outcome.result or b""
        size = len(result) + EVENT_SPARE_BYTES
        size += sum(len(name.encode()) + len(text.encode()) + 8 for name, text in (labels or {}).items())
        if size > self.bytes_max and self._clock() >= self._asked_s + AGAIN_S:
            try:
                self.look(ANSWER_S)
            except StreamtaskError:
                return outcome
        if size <= self.bytes_max:
            return outcome
        text = f"the result has {len(result)} bytes; an event holds {self.bytes_max}"
        return Outcome(Ending.RAISED, code=ErrorCode.RESULT_TOO_LARGE, error=text, retryable=False)
