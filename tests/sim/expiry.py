"""The named scenarios of expires_at: what has not started by then never starts, whatever the broker does meanwhile."""

from __future__ import annotations

from streamtask.domain.model import TaskStatus
from streamtask.domain.ports import EndTransaction, Produce

from .history import History
from .process import Process
from .stage import Stage

A = 0
EXPIRES_AFTER_MS, AWAY_MS = 1_000, 6_000


def _expiring(stage: Stage) -> History:
    at_ms = stage.cluster.epoch_ms + stage.cluster.timeline.now
    return stage.submit("ok", expires_ms=at_ms + EXPIRES_AFTER_MS)


def _never_ran(stage: Stage, task: History, attempt: int) -> None:
    stage.expect(task, TaskStatus.CANCELLED, attempt=attempt)
    assert task.ended_code == "expired", f"{task}"
    assert not task.started, f"{task}"


def expires_while_no_broker_answers() -> None:
    """It was picked, its RUNNING cannot be sent; when brokers answer again its time is over: no RUNNING, CANCELLED."""
    stage = Stage()
    stage.start(A)
    stage.on(Produce, lambda _: stage.away(AWAY_MS))
    task = _expiring(stage)
    stage.play()
    _never_ran(stage, task, attempt=0)


def expires_while_its_start_is_in_doubt() -> None:
    """The answer to the commit of its RUNNING is lost, then no broker answers. Whether it landed is known when its time is
    over: it ends without a handler either way, after RUNNING if that is committed."""
    for word, attempt in (("applied", 1), ("never", 0)):
        stage = Stage()
        stage.start(A)

        def silence(_: Process, stage: Stage = stage) -> None:
            stage.away(AWAY_MS)

        stage.answer(EndTransaction, word)
        stage.on(EndTransaction, silence, before=False)
        task = _expiring(stage)
        stage.play()
        _never_ran(stage, task, attempt=attempt)


def expires_while_its_start_is_committed() -> None:
    """The commit of its RUNNING takes longer than it has time: it was granted an attempt and is not handed over."""
    stage = Stage()
    stage.start(A)

    def slow(_: Process) -> None:
        stage.cluster.latency_ms = (EXPIRES_AFTER_MS, EXPIRES_AFTER_MS)

    stage.on(Produce, slow)
    task = _expiring(stage)
    stage.play()
    _never_ran(stage, task, attempt=1)
