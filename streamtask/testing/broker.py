"""The real Kafka of a test run: one local broker, or the one that STREAMTASK_TEST_BOOTSTRAP_SERVERS names.

Always true: the processes of one run (pytest-xdist) share one broker, which stops after the last of them; it ends with
the process that started it.
"""

from __future__ import annotations

import fcntl
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from streamtask.devbroker.cluster import QUICK, DevBroker

GIVEN = "STREAMTASK_TEST_BOOTSTRAP_SERVERS"


@dataclass(frozen=True)
class Broker:
    """A running Kafka. bootstrap: its address. local: it was started for the tests and uses no TLS or SASL."""

    bootstrap: str
    local: bool = True


class SharedBroker:
    """One broker for all processes that name the same directory. The first process owns it, and stops it when no process
    uses it any more.

    There are two file locks. Every process that uses the broker holds a shared lock on `users`; the owner takes an exclusive
    one before it stops the broker. A process holds `starting` while it looks for the broker or starts it. The owner locks
    `users` without `starting`, so there is no deadlock.

    warm_up  called with the address of a new broker before any other process gets it
    """

    def __init__(
        self, directory: Path, config: Mapping[str, str] = QUICK, *, warm_up: Callable[[str], None] | None = None
    ) -> None:
        self._config = config
        self._warm_up = warm_up
        self._address = directory / "streamtask-broker.json"
        self._starting = (directory / "streamtask-broker.door").open("a")
        self._users = (directory / "streamtask-broker.users").open("a")
        self._owned: DevBroker | None = None

    def join(self) -> Broker:
        """Return the broker, started if necessary. Raises DevBrokerUnavailable."""
        fcntl.flock(self._users, fcntl.LOCK_SH)
        fcntl.flock(self._starting, fcntl.LOCK_EX)
        try:
            if self._address.exists():
                bootstrap = str(json.loads(self._address.read_text())["bootstrap"])
                if _answers(bootstrap):  # otherwise its owner was killed
                    return Broker(bootstrap)
            self._owned = DevBroker(config=self._config)
            self._owned.open()
            if self._warm_up is not None:
                self._warm_up(self._owned.bootstrap)
            self._address.write_text(json.dumps({"bootstrap": self._owned.bootstrap}))
            return Broker(self._owned.bootstrap)
        finally:
            fcntl.flock(self._starting, fcntl.LOCK_UN)

    def leave(self) -> None:
        """This process no longer uses the broker. Its owner waits for the others, then stops it."""
        fcntl.flock(self._users, fcntl.LOCK_UN)
        if self._owned is not None:
            fcntl.flock(self._users, fcntl.LOCK_EX)
            self._address.unlink(missing_ok=True)
            self._owned.close()
        self._users.close()
        self._starting.close()


def _answers(bootstrap: str) -> bool:
    host, port = bootstrap.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True
