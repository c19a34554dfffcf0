"""The one contract of whatever runs in threads or processes of its own: started once, stopped once, in any order of calls.

    executor.start()        # a second start is an error, and so is a start after a stop
    executor.stop(5.0)      # a second stop waits for the first; a stop before the start is all that ever happens

Always true: what `start` began, `stop` ends; a stop that comes while a start is under way ends what that has begun. The
idea is that of River's start/stop services; tests/unit/test_startstop.py holds every implementation to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol


class StartStop(Protocol):
    """Something that runs between `start` and `stop`; both may be called by any thread."""

    @property
    def started(self) -> bool:
        """True from the beginning of its start on."""

    @property
    def stopped(self) -> bool:
        """True when a stop is through: it will never run (again)."""

    def start(self) -> None:
        """Raises RuntimeError when it was started or stopped before."""

    def stop(self, timeout_s: float = ..., /) -> object:
        """End it, and return when it has ended or the time is over."""


class Lifecycle:
    """The state of one StartStop, for its implementation.

    what  names it in errors
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
        """True from the beginning of its stop on."""
        return self._stopping

    @property
    def stopped(self) -> bool:
        return self._through.is_set()

    def start(self, begin: Callable[[], None]) -> None:
        """Call `begin`, for which a stop waits: it must not block. Raises RuntimeError: see StartStop."""
        with self._lock:
            if self._stopping:
                raise RuntimeError(f"{self._what} was stopped before, and cannot start any more. Make another one.")
            if self._started:
                raise RuntimeError(f"{self._what} was started before. Start each one once.")
            self._started = True
            begin()

    def stop(self, end: Callable[[], None], timeout_s: float) -> None:
        """Call `end` if no other call does or did; else wait for that one. `end` asks `started` what there is to end."""
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
    """What a StartStop says of itself, from its Lifecycle `_life`."""

    _life: Lifecycle

    @property
    def started(self) -> bool:
        """True from the beginning of its start on."""
        return self._life.started

    @property
    def stopped(self) -> bool:
        """True when a stop is through."""
        return self._life.stopped
