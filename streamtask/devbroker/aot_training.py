"""Java's ahead-of-time cache for local brokers: one broker runs for a moment, and its Java writes the cache as it exits.

The cache is moved to its place (devbroker.aot_cache) when it is complete, so brokers that start meanwhile never see half
of it. Java silently ignores a cache of another Java or class path.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

from streamtask.devbroker.cluster import START_TIMEOUT_S, DevBroker, aot_cache
from streamtask.devbroker.jars import cache_directory
from streamtask.errors import DevBrokerUnavailable


class _Training(DevBroker):
    """A broker whose Java writes an ahead-of-time cache while it exits."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self._output = output

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process of its only node."""
        return self._processes[1]

    def command(self, node: int) -> list[str]:
        java, *flags = (one for one in super().command(node) if not one.startswith("-XX:AOTCache="))
        return [java, f"-XX:AOTCacheOutput={self._output}", *flags]


def train_aot() -> Path:
    """Run one broker once and have Java write its cache (about 8 s). Returns its path. Raises DevBrokerUnavailable."""
    with tempfile.TemporaryDirectory(prefix="aot-", dir=cache_directory()) as folder:
        made = Path(folder, "made.aot")
        kafka = _Training(made)
        with kafka:
            process = kafka.process
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                # Java writes it while it exits: 5 s, and on a loaded machine more than STOP_TIMEOUT_S allows.
                process.wait(START_TIMEOUT_S)
            if process.returncode is None or not made.exists():
                raise DevBrokerUnavailable(f"Java did not write its ahead-of-time cache:\n{kafka.log_tail(1)}")
        made.replace(aot_cache())
    return aot_cache()
