"""What a session uses on this machine: the folder `.streamtask/dev` in the working directory, and its ports.

Always true: a folder has at most one session (a lock that ends with its process); data that is not to be kept is removed at
the end, or, after a killed session, at the next start; the folder tells git to ignore it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import IO

from streamtask.errors import ConfigError

FOLDER = Path(".streamtask") / "dev"
KEPT, RUN = "kept", "run-"


class Place:
    """The folder of one session; `data` is for Kafka and the store. Use as a context manager. Raises ConfigError."""

    def __init__(self, *, keep: bool, root: Path | None = None) -> None:
        self._folder = (root or Path.cwd()) / FOLDER
        self._keep = keep
        self._lock: IO[str] | None = None
        self.data = self._folder / KEPT

    def __enter__(self) -> Place:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            ignore = self._folder.parent / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            self._lock = (self._folder / "lock").open("a")
        except OSError as error:
            raise ConfigError(
                f"{self._folder} cannot be used ({error.strerror}). Run it in a folder that you can write to."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(
                f"Another `streamtask dev` runs in {self._folder.parent.parent}: stop it, or start this one in another folder."
            ) from None
        for left in self._folder.glob(f"{RUN}*"):
            shutil.rmtree(left, ignore_errors=True)
        if self._keep:
            self.data.mkdir(exist_ok=True)
        else:
            self.data = Path(tempfile.mkdtemp(prefix=RUN, dir=self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        if not self._keep:
            shutil.rmtree(self.data, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def is_free(port: int) -> bool:
    """Whether no process listens on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_port(wanted: int | None, usual: int, option: str) -> int:
    """`wanted`, which must be free; otherwise the usual port, or any free one. Raises ConfigError."""
    if wanted is not None:
        if wanted and not is_free(wanted):
            raise ConfigError(f"{option} {wanted} is in use. Choose another port.")
        return wanted or any_port()
    return usual if is_free(usual) else any_port()


def any_port() -> int:
    """A port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def short(path: Path) -> str:
    """The path relative to the working directory, if that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return str(path)
    return min(str(path), relative, key=len)
