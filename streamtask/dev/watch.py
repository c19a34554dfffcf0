"""Reports which files have changed: Python files and the settings file, one set per burst of changes.

Needs watchfiles (extra `dev-tools`). Owns one thread, which ends with `close()`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from streamtask.config import SETTINGS_FILE
from streamtask.errors import ConfigError

# An editor writes a file in several steps: changes within 50 ms of each other count as one, for at most 400 ms.
STEP_MS, DEBOUNCE_MS = 50, 400
_TESTS = re.compile(r"(?:test_.*|.*_test|conftest)\.py\Z")
_SKIPPED = (".streamtask", "venv", "site-packages")


def is_watched(path: str, kinds: Sequence[str] = (".py",)) -> bool:
    """Whether the path is a module or the settings file, and neither a test nor in a folder of tools."""
    one = Path(path)
    if any(part in _SKIPPED for part in one.parts):
        return False
    if one.name == SETTINGS_FILE:
        return True
    return one.suffix in kinds and not _TESTS.match(one.name)


class Watch:
    """Calls `on_change` with the files below `folders` that were changed, added or removed. Raises ConfigError."""

    def __init__(self, folders: Sequence[Path], on_change: Callable[[set[str]], None]) -> None:
        try:
            import watchfiles
        except ImportError:
            raise ConfigError(
                "Reloading needs watchfiles. Install it: pip install 'streamtask-kafka[dev-tools]', or pass --no-reload."
            ) from None
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"--watch {folder}: no such folder.")
        self._watchfiles = watchfiles
        self._folders = folders
        self._on_change = on_change
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dev-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        usual = self._watchfiles.DefaultFilter()
        for changes in self._watchfiles.watch(
            *self._folders,
            watch_filter=lambda change, path: usual(change, path) and is_watched(path),
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=self._stop,
            rust_timeout=1_000,
            raise_interrupt=False,
        ):
            self._on_change({path for _, path in changes})
