"""The one contract of everything that runs in its own threads or processes: started once, stopped once, in any order of calls.

    executor.start()        # a second start is an error, and so is a start after a stop
    executor.stop(5.0)      # a second stop waits for the first; a stop before the start prevents any start

Always true: `stop` ends what `start` began, even if the stop comes during the start. The idea is that of River's start/stop
services; tests/unit/test_startstop.py checks every implementation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol


class StartStop(Protocol):
    """Something that runs between `start` and `stop`. Any thread may call both."""

    @property
    def started(self) -> bool:
        """True as soon as its start has begun."""

    @property
    def stopped(self) -> bool:
        """True when its stop is complete: it will never run (again)."""

    def start(self) -> None:
        """Raises RuntimeError if it was started or stopped before."""

    def stop(self, timeout_s: float = ..., /) -> object:
        """End it, and return when it has ended or the time is up."""


class Lifecycle:
    """The state of one StartStop, for its implementation.

    what  its name in errors
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._started = self._stopping = False
        self._through = threading.Event()

    @property
    def started(self) -> bool:
        return self._started

    @property
    def stopping(self) -> bool:
        """True as soon as its stop has begun."""
        return self._stopping

    @property
    def stopped(self) -> bool:
        return self._through.is_set()

    def start(self, begin: Callable[[], None]) -> None:
        """Call `begin`, which must not block because a stop waits for it. Raises RuntimeError: see StartStop."""
        with self._lock:
            if self._stopping:
                raise RuntimeError(f"{self._what} was stopped before, and cannot start any more. Make another one.")
            if self._started:
                raise RuntimeError(f"{self._what} was started before. Start each one once.")
            self._started = True
            begin()

    def stop(self, end: Callable[[], None], timeout_s: float) -> None:
        """Call `end` unless another call does or did; then wait for that one. `end` reads `started` to see what to end."""
        with self._lock:
            first, self._stopping = not self._stopping, True
        if not first:
            self._through.wait(timeout_s)
            return
        try:
            end()
        finally:
            self._through.set()


class HasLifecycle:
    """The properties of a StartStop, from its Lifecycle `_life`."""

    _life: Lifecycle

    @property
    def started(self) -> bool:
        """True as soon as its start has begun."""
        return self._life.started

    @property
    def stopped(self) -> bool:
        """True when its stop is complete."""
        return self._life.stopped
