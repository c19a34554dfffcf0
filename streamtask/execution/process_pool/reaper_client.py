"""The worker's end of the guard: starts it, tells it which children exist, and restarts it when it dies.

Belongs to the pool's thread; `on_death` is called from another one.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from streamtask.execution.process_pool import reaper


class Keeper:
    """pool: the common start of its children's marks."""

    def __init__(self, pool: str, on_death: Callable[[], None]) -> None:
        self._pool = pool
        self._on_death = on_death
        self._pids: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a guard that watches the present children."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        argv = [sys.executable, "-I", "-S", str(Path(reaper.__file__)), self._pool]
        process = self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
        threading.Thread(target=self._await_end, args=(process,), name="streamtask-guard", daemon=True).start()
        for pid in self._pids:
            self._send(f"+{pid}")

    def watch(self, pid: int) -> None:
        self._pids.add(pid)
        self._send(f"+{pid}")

    def forget(self, pid: int) -> None:
        self._pids.discard(pid)
        self._send(f"-{pid}")

    def end(self) -> None:
        """Returns when it has ended; it kills what is still watched."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _await_end(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._on_death()

    def _send(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError:
            pass  # it has died: the next one receives all children
