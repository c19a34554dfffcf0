"""Ends a child process the moment its parent is gone, however the parent died.

It uses two signs, because each misses a case: the kernel's own signal (Linux) works even while no Python thread of the child
can run, and a pipe that closes with the parent informs a child that started too late for the signal. An orphan that keeps
working is a second execution of its tasks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

PARENT_FD = "STREAMTASK_PARENT_FD"  # environment of a child: the pipe that closes when its parent dies
_PR_SET_PDEATHSIG = 1


def die_with_parent(fd: int | None = None) -> bool:
    """Call this first in a child: it ends the process with SIGKILL the moment the supervisor is gone.

    fd  the read end of the supervisor's pipe; default: from the environment (STREAMTASK_PARENT_FD)

    False if there is no supervisor (the process was started by hand).
    """
    if fd is None:
        text = os.environ.pop(PARENT_FD, "")  # popped: processes started from here are not the supervisor's children
        if not text.isdigit():
            return False
        fd = int(text)
    os.set_inheritable(fd, False)
    if sys.platform == "linux":
        # Sent by the kernel, so it works even while no Python thread can run. Lost if the parent died before this line: then
        # the pipe shows it.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(fd,), name="parent-watch", daemon=True).start()
    return True


def _watch(fd: int) -> None:
    while True:
        try:
            if os.read(fd, 1) == b"":
                break
        except OSError:
            break  # closed by other code: this process must not run on unwatched
    os.kill(os.getpid(), signal.SIGKILL)
