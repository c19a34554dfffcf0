"""The real Kafka of a test run: one local broker, or one that STREAMTASK_TEST_BOOTSTRAP_SERVERS names.

Always true: the processes of one run (pytest-xdist) share one broker, which stops after the last of them; it dies with
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
    """A running Kafka: `bootstrap` is its address. local: it was started for the tests and uses no TLS or SASL."""

    bootstrap: str
    local: bool = True


class SharedBroker:
    """One broker for all processes that name the same directory: the first process owns it, and stops it when no
    process uses it any more.

    `users` is locked shared by every process that uses the broker (exclusively by an owner that stops it), `door` by the
    one that starts it. An owner locks `users` without `door`, so there is no deadlock.

    warm_up  called with the address of a new broker before any other process gets it
    """

    def __init__(
        self, directory: Path, config: Mapping[str, str] = QUICK, *, warm_up: Callable[[str], None] | None = None
    ) -> None:
        self._config = config
        self._warm_up = warm_up
        self._address = directory / "streamtask-broker.json"
        self._door = (directory / "streamtask-broker.door").open("a")
        self._users = (directory / "streamtask-broker.users").open("a")
        self._owned: DevBroker | None = None

    def join(self) -> Broker:
        """The broker's address; started if need be. Raises DevBrokerUnavailable."""
        fcntl.flock(self._users, fcntl.LOCK_SH)
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            if self._address.exists():
                bootstrap = str(json.loads(self._address.read_text())["bootstrap"])
                if _answers(bootstrap):  # else its owner was killed
                    return Broker(bootstrap)
            self._owned = DevBroker(config=self._config)
            self._owned.open()
            if self._warm_up is not None:
                self._warm_up(self._owned.bootstrap)
            self._address.write_text(json.dumps({"bootstrap": self._owned.bootstrap}))
            return Broker(self._owned.bootstrap)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)

    def leave(self) -> None:
        """This process no longer uses it. The owner waits for the others, and stops it."""
        fcntl.flock(self._users, fcntl.LOCK_UN)
        if self._owned is not None:
            fcntl.flock(self._users, fcntl.LOCK_EX)
            self._address.unlink(missing_ok=True)
            self._owned.close()
        self._users.close()
        self._door.close()


def _answers(bootstrap: str) -> bool:
    host, port = bootstrap.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True
