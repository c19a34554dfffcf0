"""How large an event may be: what the topics take, less what a record needs beside its value.

Asked at the start, and again when a result does not fit: the limit may have been raised since. What is lowered later shows
by itself: the broker refuses the record (core, «offending record»).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from streamtask.domain.model import Ending, ErrorCode, Outcome
from streamtask.errors import StreamtaskError

RECORD_SPARE_BYTES = 2_048  # of a batch beside the value of its one record
EVENT_SPARE_BYTES = 1_024  # of an event beside its result and labels
SURELY_FITS_BYTES = 100_000  # below the limit: the labels are not looked at
AGAIN_S = 5.0  # between two questions
ANSWER_S = 2.0  # the owner waits for it


class EventSize:
    """The limit as it was last asked for. Used by one thread.

    ask   the smallest max.message.bytes of the topics, within so many seconds. Raises StreamtaskError
    """

    def __init__(self, ask: Callable[[float], int], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._asked_s = -AGAIN_S
        self.bytes_max = 0  #: of a value

    def look(self, timeout_s: float) -> None:
        """Ask. Raises StreamtaskError."""
        self._asked_s = self._clock()
        self.bytes_max = self._ask(timeout_s) - RECORD_SPARE_BYTES

    def may_not_fit(self, result: bytes) -> bool:
        """Cheap; true of a large one only."""
        return len(result) > self.bytes_max - EVENT_SPARE_BYTES - SURELY_FITS_BYTES

    def fitting(self, outcome: Outcome, labels: Mapping[str, str] | None) -> Outcome:
        """A result that its event cannot carry is a failure that no retry mends. Where the limit cannot be asked for, the
        broker is to say whether it takes it."""
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
