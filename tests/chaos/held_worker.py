"""A worker that stands still where it is told to: `python -m tests.chaos.held_worker MODULE:app SLOT`.

streamtask.worker.process as it is, with some functions of its broker adapter wrapped in this process: at the point that the
run has armed (tests/chaos/control.py) the process sends itself SIGSTOP, once. The run wakes it when its session is over: a
true zombie, in the middle of that very step. The same strip of memory shifts its wall clock.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamtask.domain.model import now_ms
from streamtask.domain.ports import CommitPlain, ReadSettled
from streamtask.kafka.broker_adapter import BrokerAdapter
from streamtask.kafka.consumer import ShardConsumer
from streamtask.kafka.transaction import StatusTransaction
from streamtask.worker import loop, process
from tests.chaos.control import Control

INSIDE_S = 0.0005  # from the call of commit_transaction to the stop: a commit takes 2 ms and more
control = Control(Path(os.environ.pop("CHAOS_CONTROL")))


def hold(point: str) -> None:
    if control.point == point:
        control.point = ""
        os.kill(os.getpid(), signal.SIGSTOP)


def before(owner: Any, name: str, point: str) -> None:
    """Stand still at the entry of this function."""
    real: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        hold(point)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, point: str) -> None:
    """Stand still when this function has done its work and has not returned."""
    real: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        answer = real(*args, **kwargs)
        hold(point)
        return answer

    setattr(owner, name, wrapped)


class _Producer:
    """The transactional producer; stopped by another thread while it is inside the broker's answer."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def commit_transaction(self, timeout_s: float) -> None:
        if control.point == "commit":
            threading.Timer(INSIDE_S, hold, ("commit",)).start()
        self._real.commit_transaction(timeout_s)


def _init(real: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: StatusTransaction, timeout_s: float) -> Any:
        answer = real(self, timeout_s)
        if answer is None:
            self._producer = _Producer(self._producer)  # type: ignore[assignment]
        return answer

    return wrapped


def _perform(real: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(self: BrokerAdapter, ask: Any) -> Any:
        if isinstance(ask, ReadSettled) and self.consumer.in_callback:
            hold("claim_fenced")
        answer = real(self, ask)
        if isinstance(ask, CommitPlain):
            hold("claim_recorded")
        return answer

    return wrapped


def patch() -> None:
    after(ShardConsumer, "_fetch", "poll")
    before(StatusTransaction, "_enqueue", "begin")
    before(StatusTransaction, "send_offsets", "produced")
    after(StatusTransaction, "send_offsets", "offsets")
    StatusTransaction.init = _init(StatusTransaction.init)  # type: ignore[method-assign]
    BrokerAdapter.perform = _perform(BrokerAdapter.perform)  # type: ignore[method-assign]
    before(loop.Owner, "shards_revoked", "revoke")
    after(loop.Owner, "shards_revoked", "revoke_committed")
    loop.now_ms = lambda: now_ms() + control.clock_ms  # type: ignore[attr-defined]  # the name that the loop calls


if __name__ == "__main__":
    patch()
    sys.exit(process.main(sys.argv[1:]))
