"""Calls that other threads leave for the pool's thread, which sleeps in a selector: a socket pair wakes it."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable


class PostedCalls:
    """`post` may be called from any thread, also after `close`; the rest belongs to the pool's thread."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()  # bounded by slots and children
        self._woken = False
        self.wake, self._wake_out = socket.socketpair()  #: readable when there are calls
        self.wake.setblocking(False)
        self._wake_out.setblocking(False)

    def post(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # full: the thread is awake. Closed: the pool has ended
                self._wake_out.send(b"\0")

    def woken(self) -> None:
        """Its socket is readable: let the next call wake again."""
        self.wake.recv(4_096)
        self._woken = False

    def run(self) -> None:
        """Run what was posted, in order."""
        while self._calls:
            self._calls.popleft()()

    def close(self) -> None:
        self.wake.close()
        self._wake_out.close()
