"""The real Kafka of a test run: one local broker, or one that STREAMTASK_TEST_BOOTSTRAP_SERVERS names.

Always true: the processes of one run (pytest-xdist) share one broker, and the last to need it sees it end; it dies with
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
    """A running Kafka: `bootstrap` is its address. local: it was started for the tests and speaks plain text."""

    bootstrap: str
    local: bool = True


class SharedBroker:
    """One broker for all processes that name the same directory: whoever comes first owns it, and ends it when nobody
    uses it any more.

    `users` is locked shared by everyone that uses the broker (alone by an owner that ends it), `door` by the one that
    starts it. An owner takes `users` without `door`, so nobody waits in a circle.

    warm_up  told the address of a broker that was started, before anybody else is
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
        """Not used here any more. The owner waits for the others, and ends it."""
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
