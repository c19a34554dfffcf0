"""A handler's context as those see it who run that handler: they tell it to stop, and when it has ended.

Always true: the first reason to stop is the reason; after `end` the context reports nothing more.
"""

from __future__ import annotations

from streamtask.codec import reopened
from streamtask.domain.ports import StopReason
from streamtask.handlers.registry import Context


class LiveContext(Context):
    """A Context of a handler that runs, or will. Its handler sees no more of it than a Context has."""

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
        """Its handler must stop."""
        self._stopped = self._stopped or reason

    def end(self) -> None:
        """Its outcome is known: what it reports from now on is dropped."""
        self._ended = True

    def reopen(self) -> None:
        """Decode the parameters of a request that waited as text. Called right before the handler, where it runs."""
        if self.record.text is not None:
            self.request = reopened(self.record.text)
