"""A handler's context for the code that runs the handler: it can stop the handler and end the context.

Always true: the first stop reason is kept; after `end` the context reports nothing more.
"""

from __future__ import annotations

import time

from streamtask.codec import reopened
from streamtask.domain.ports import StopReason
from streamtask.handlers.registry import Context


class LiveContext(Context):
    """The Context of a handler that runs, or will. The handler sees only the Context part."""

    __slots__ = ()

    @property
    def started_s(self) -> float:
        """time.monotonic() of its start."""
        return self._started_s

    @property
    def stop_reason(self) -> StopReason | None:
        """Why its handler must stop; None: it need not."""
        return self._stopped

    @property
    def ended(self) -> bool:
        """True once its outcome is known."""
        return self._ended

    def stop(self, reason: StopReason) -> None:
        """Ask its handler to stop."""
        self._stopped = self._stopped or reason

    def end(self) -> None:
        """Its outcome is known: what it reports from now on is dropped."""
        self._ended = True

    def begin(self) -> None:
        """Its handler is called only now, after it has waited for others: its time counts from here."""
        self._started_s = time.monotonic()

    def reopen(self) -> None:
        """Decode the parameters of a request that waited as text. Called right before the handler, where that runs."""
        if self.record.text is not None:
            self.request = reopened(self.record.text)
