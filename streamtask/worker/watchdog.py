"""Ends a worker process whose owner thread is stuck, and shows the supervisor that the process lives.

It watches the owner thread from another one. A beat once a second proves that this process still runs Python. An owner that
has been in one step for STUCK_S will not come back (a client that waits for ever, a handler that holds the interpreter).
Exit code 70: the supervisor starts another process, and the shards move.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from streamtask.domain.startstop import HasLifecycle, Lifecycle
from streamtask.observability import event_log

STUCK_S = 20.0  # for one step: every wait of the owner is bounded far below this
BEAT_S = 1.0
EXIT_STUCK = 70


class Watchdog(HasLifecycle):
    """on_beat: called once a second by the watching thread, as long as the process runs Python."""

    def __init__(self, on_beat: Callable[[], None]) -> None:
        self._on_beat = on_beat
        self._step_s = time.monotonic()
        self._stopped = threading.Event()
        self._life = Lifecycle("The watchdog")
        self._thread = threading.Thread(target=self._watch, name="streamtask-watchdog", daemon=True)

    def start(self) -> None:
        """Beat at once: the first task may hold the interpreter for the whole first second.

        Raises RuntimeError if it was started or stopped before.
        """
        self._life.start(self._begin)

    def _begin(self) -> None:
        self._on_beat()
        self.step()
        self._thread.start()

    def stop(self, timeout_s: float = BEAT_S) -> None:
        """Stop watching."""
        self._life.stop(self._stopped.set, timeout_s)
        if self.started:
            self._thread.join(timeout_s)

    def step(self) -> None:
        """The owner begins a step."""
        self._step_s = time.monotonic()

    def silent_s(self) -> float:
        """Seconds since the owner began its step."""
        return time.monotonic() - self._step_s

    def _watch(self) -> None:
        while not self._stopped.wait(BEAT_S):
            self._on_beat()
            if self.silent_s() > STUCK_S:
                event_log.emit("worker_stuck", {"seconds": STUCK_S})
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
                os._exit(EXIT_STUCK)
