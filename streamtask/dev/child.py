"""One child process of a session: how it is started, what it says line by line, that it has ended.

Always true: it dies with the session, however that dies; Ctrl-C in the terminal does not reach it (a group of its own);
`on_end` is told once, after its last line.
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

LINE_MAX = 16_384  # characters; a longer one is told in pieces
LAST_LINES_S = 2.0  # for what it wrote last; somebody that it started may hold the pipe for ever


class Child:
    """`python -m MODULE ARGUMENTS`.

    parent_fd  the read end of the session's pipe, which ends when the session does
    on_line    told each line of stdout and stderr (only of stderr with `answer`); any thread
    on_end     told this child, from a thread of its own
    answer     stdout is kept: `said` when it has ended
    variables  more of the environment

    Start it from a thread that lives as long as it: Linux counts that thread's end as the parent's.
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
            # A .pyc knows its source by size and second: an edit within the same second would not be seen.
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
