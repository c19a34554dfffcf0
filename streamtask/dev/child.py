"""One child process of a session: starts it, passes on its output line by line, and reports its end.

Always true: it ends with the session, however that ends; Ctrl-C in the terminal does not reach it (it has a process group
of its own); `on_end` is called once, after its last line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from streamtask.execution.parent_watch import PARENT_FD

LINE_MAX = 16_384  # characters; a longer line is passed on in pieces
LAST_LINES_S = 2.0  # for its last output; a process that it started may keep the pipe open for ever


class Child:
    """`python -m MODULE ARGUMENTS`.

    parent_fd  the read end of the session's pipe, which reaches its end when the session does
    on_line    called with each line of stdout and stderr (only of stderr with `answer`), on any thread
    on_end     called with this child, on a thread of its own
    answer     stdout is collected, and is in `said` when the child has ended
    variables  additional environment variables

    Start it from a thread that lives as long as the child: on Linux the end of that thread counts as the parent's end.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        parent_fd: int,
        on_line: Callable[[str], None],
        on_end: Callable[[Child], None],
        answer: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._on_line, self._on_end = on_line, on_end
        self.said = ""
        environment = {
            **os.environ,
            PARENT_FD: str(parent_fd),
            "PYTHONUNBUFFERED": "1",
            # A .pyc identifies its source by size and second: an edit within the same second would go unnoticed.
            "PYTHONDONTWRITEBYTECODE": "1",
            **(variables or {}),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if answer else subprocess.STDOUT,
            pass_fds=(parent_fd,),
            process_group=0,
            text=True,
            errors="replace",
        )
        lines = self.process.stderr if answer else self.process.stdout
        self._threads = [threading.Thread(target=self._read, args=(lines,), daemon=True)]
        if answer:
            self._threads.append(threading.Thread(target=self._keep, args=(self.process.stdout,), daemon=True))
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._wait, name=f"dev-child-{self.process.pid}", daemon=True).start()

    @property
    def code(self) -> int | None:
        return self.process.returncode

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()

    def _read(self, lines: IO[str]) -> None:
        with lines:
            while line := lines.readline(LINE_MAX):
                self._on_line(line.rstrip("\r\n"))

    def _keep(self, answer: IO[str]) -> None:
        with answer:
            self.said = answer.read()

    def _wait(self) -> None:
        self.process.wait()
        for thread in self._threads:
            thread.join(LAST_LINES_S)
        self._on_end(self)
