"""The start of a child: its process, its note, and its settings, which it may get long after its start.

    in the parent    child = ChildProcess(command_of(app, 0), parent_fd=…)   it imports the library and the app, then waits
                     child.configure(settings)                               now it works
    in the child     pipe = SettingsPipe(), the imports, pipe.read()         None: the parent gave up, so end quietly

The imports are the longest part of a start, and a parent needs its own before it can say what a child gets: the settings of
the app, its share of cores and memory. So `EarlyChildren` starts the first children before the parent imports anything, and
both import at the same time. What is wrong with the settings is still reported once, by the parent: a child without settings
says nothing. This module imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from streamtask.execution.parent_watch import PARENT_FD
from streamtask.worker.heartbeat import NOTE_FD, NoteFile

SETTINGS_FD = "STREAMTASK_SETTINGS_FD"  # environment of a child: the pipe that its settings come through
EARLY_MAX = 8  # a parent that finds fewer processes in the app's own settings has to end the others again


class ChildProcess:
    """A child of the supervisor that runs. Raises OSError.

    parent_fd  the read end of a pipe that closes when this process dies
    """

    def __init__(self, command: Sequence[str], *, parent_fd: int, environment: Mapping[str, str] | None = None) -> None:
        self.note = NoteFile()
        settings_fd, self._settings_fd = os.pipe()
        given = {PARENT_FD: str(parent_fd), NOTE_FD: str(self.note.fd), SETTINGS_FD: str(settings_fd)}
        try:
            self.process = subprocess.Popen(
                command,
                env={**(os.environ if environment is None else environment), **given},
                pass_fds=(parent_fd, self.note.fd, settings_fd),
                # A process group of its own: Ctrl-C in the terminal reaches only the supervisor. A child that also received it
                # would take the SIGTERM that follows for the second signal, and abort.
                process_group=0,
            )
        except BaseException:
            self.note.close()
            os.close(self._settings_fd)
            raise
        finally:
            os.close(settings_fd)

    def configure(self, settings: str) -> None:
        """Give it its settings (JSON, one line), once. A child that has died meanwhile gets none; its end is seen anyway."""
        with contextlib.suppress(BrokenPipeError), open(self._settings_fd, "wb", buffering=0) as pipe:
            pipe.write(settings.encode() + b"\n")

    def give_up(self) -> None:
        """End a child that has no settings yet."""
        self.process.kill()
        self.process.wait()
        os.close(self._settings_fd)
        self.note.close()


class SettingsPipe:
    """The child's side. It removes the variable from the environment: what starts from here are not the parent's children."""

    def __init__(self) -> None:
        text = os.environ.pop(SETTINGS_FD, "")
        self._fd = int(text) if text.isdigit() else None
        if self._fd is not None:
            os.set_inheritable(self._fd, False)

    def read(self) -> dict[str, Any] | None:
        """Wait for the settings. {} if this process was started by hand; None if the parent gave up, or died."""
        if self._fd is None:
            return {}
        with open(self._fd, "rb") as pipe:
            line = pipe.readline()
        settings: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return settings


class EarlyChildren:
    """The first children of an app's supervisor, started before their settings are known.

    processes  how many there will be, as far as the command line says; None: the environment says it, or else the cores.
               Where the app's own settings say less, `keep` ends the others

    Leaving the block ends those that were not taken.
    """

    def __init__(self, app: str, processes: int | None) -> None:
        self._children: dict[int, ChildProcess] = {}
        self._app = app
        # The write end stays here, unwritten: it closes when this process dies.
        self._parent_fd, self._write_fd = os.pipe()
        given = os.environ.get("STREAMTASK_PROCESSES", "") if processes is None else str(processes)
        if given.isdecimal():
            self._start(int(given))
            return
        self._start(1)
        # Counting the cores takes an import of the settings (0.2 s), which the parent needs in any case.
        from streamtask.config.container import cores

        self._start(cores().count)

    def _start(self, count: int) -> None:
        try:
            for slot in range(len(self._children), min(count, EARLY_MAX)):
                self._children[slot] = ChildProcess(command_of(self._app, slot), parent_fd=self._parent_fd)
        except OSError:
            pass  # no memory or no process table entry at the moment: the supervisor starts it, or reports why it cannot

    def take(self, slot: int) -> ChildProcess | None:
        """The child of this slot, once; None: start one."""
        return self._children.pop(slot, None)

    def keep(self, count: int) -> None:
        """End those beyond the first `count`."""
        for slot in [slot for slot in self._children if slot >= count]:
            self._children.pop(slot).give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep(0)
        os.close(self._parent_fd)
        os.close(self._write_fd)


def command_of(app: str, slot: int) -> list[str]:
    """What a child of this app runs."""
    return [sys.executable, "-m", "streamtask.worker.process", app, str(slot)]
