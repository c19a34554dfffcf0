"""Scenarios of deaths: who is charged when a worker or a child dies, who stands trial, who is quarantined."""

from __future__ import annotations

from functools import partial
from typing import Any

from streamtask.core.offset_map import Mark
from streamtask.core.suspects import ALONE, ONLY, STAGES
from streamtask.domain.model import HandlerKind, TaskStatus
from streamtask.domain.ports import CommitPlain, EndTransaction, FenceIds, Fetch, SendOffsets

from .clients import Wish
from .handlers import config, without_children
from .history import History
from .process import Process
from .stage import Stage, slot_of

COMPLETED, FAILED = TaskStatus.COMPLETED, TaskStatus.FAILED
A, B, C = 0, 1, 2


def poison_before_its_first_commit() -> None:
    """A handler whose first instruction kills its worker: quarantined after three deaths; its neighbours are not."""
    stage = Stage(slots=2)
    stage.cluster.restarts = True
    stage.cluster.supervised = True
    stage.start(A, B)
    others = [stage.submit("long" if n % 2 else "ok", band=n % 3) for n in range(6)]
    poison = stage.submit("kill", band=1)
    stage.play(180_000)
    stage.expect(poison, FAILED, lost=3)
    # Two of its worker, then those of its groups until it is alone, or of workers that it takes along.
    assert 3 <= poison.attempt <= 8, f"{poison}"
    assert poison.ended_code == "worker_lost", f"{poison}"
    assert poison.letters == 1, f"not in tasks.dead: {poison}"
    for other in others:
        stage.expect(other, COMPLETED)


def death_inside_the_first_transaction() -> None:
    """The worker dies before the first commit of a request: nothing has happened, nobody is charged."""
    stage = Stage()
    stage.start(A)
    task = stage.submit("ok")
    stage.on(EndTransaction, stage.crash, where=slot_of(A))
    stage.until_struck()
    stage.start(B)
    stage.play()
    stage.expect(task, COMPLETED, attempt=1, lost=0)


def poison_of_its_child() -> None:
    """A task whose child process dies each time: three deaths of its own, then it is quarantined. Its worker lives."""
    stage = Stage(slots=1)
    stage.start(A)
    poison = stage.submit("crash")
    other = stage.submit("long")
    stage.play()
    stage.expect(poison, FAILED, attempt=3, lost=3)
    assert poison.ended_code == "worker_lost", f"{poison}"
    assert poison.letters == 1, f"not in tasks.dead: {poison}"
    stage.expect(other, COMPLETED, attempt=1, lost=0)


def child_that_starts_slowly() -> None:
    """A task that has died twice gets a child of its own, which takes 2 s to begin; its time limit is 300 ms, and counts
    from there."""
    stage = Stage(slots=1)
    stage.start(A)
    stage.cluster.child_starts_ms = (2_000,)
    task = stage.submit("crash", "crash", "ok", timeout_seconds=0.3)
    stage.play()
    stage.expect(task, COMPLETED, attempt=3, lost=2)


def time_limit_behind_others() -> None:
    """A type is short, so its executions share slots; then one of them waits for others for longer than its time limit, which
    counts from where it begins."""
    stage = Stage(slots=1)
    stage.start(A)
    for _ in range(3):
        stage.submit("ok", timeout_seconds=0.3)
    stage.play()
    stage.cluster.waits_for_others_ms = (2_000,)
    task = stage.submit("ok", timeout_seconds=0.3)
    stage.play()
    stage.expect(task, COMPLETED, attempt=1, lost=0)


def killed_with_a_queue_of_started_tasks() -> None:
    """Two workers die with tasks that are RUNNING and have not begun, because they wait for others: no death is theirs, and
    all of them complete."""
    stage = Stage(slots=3)
    stage.start(A)
    for _ in range(3):
        stage.submit("ok")
    stage.play()
    stage.cluster.waits_for_others_ms = (60_000,)
    tasks = [stage.submit("ok", band=n % 3) for n in range(18)]
    for slot in (A, B):
        process = stage.process(slot)
        waiting = partial(_waiting, process)
        stage.until(waiting, "more of them are started than there are slots, and wait")
        stage.crash(process)
        stage.start(slot + 1)
    stage.cluster.waits_for_others_ms = (0,)
    stage.play()
    for task in tasks:
        stage.expect(task, COMPLETED)
        assert not task.letters, f"{task}"
    assert sum(task.attempt >= 3 for task in tasks) >= 4, "nobody waited at both"


def _waiting(process: Process) -> bool:
    return sum(not one.begun for one in process.executions.values()) > 4


def child_dies_and_then_its_worker() -> None:
    """A's child dies under attempt 1, and A itself at any moment after that, until attempt 2 is granted: before the
    transaction that charges the death, in it, or behind it. It is one death, charged once."""
    for moment in range(40):
        stage = Stage()
        stage.start(A)
        task = stage.submit("crash", "ok")
        stage.until_running(task)

        def after_the_death(process: Process, ask: Any, task: History = task) -> bool:
            return task.attempt == 1 and process.slot == A and not process.executions and type(ask) is not Fetch

        stage.at_moment(moment, stage.crash, of=after_the_death)

        def dead_or_too_late(stage: Stage = stage, task: History = task) -> bool:
            return bool(stage.struck) or task.attempt == 2

        stage.until(dead_or_too_late, "A is dead, or too late")
        if not stage.struck:
            assert moment > 4, f"a death is charged in more moments than {moment}"
            return
        stage.start(B)
        stage.play()
        stage.expect(task, COMPLETED, attempt=2, lost=1)
    raise AssertionError("the wait after a death never ends")


def clean_handover_then_instant_death() -> None:
    """A hands over cleanly; B dies right after its claim: the task has not run under B, so no death is its own."""
    stage = Stage(slots=3)
    stage.start(A, B)
    task = stage.submit("long", "ok")
    stage.until_running(task)
    stage.on(CommitPlain, stage.crash, before=False, where=slot_of(B))
    stage.move(0, B)
    stage.until_struck()
    stage.play()
    stage.expect(task, COMPLETED, attempt=2, lost=0)


def clean_owner_is_not_fenced() -> None:
    """Revoke returns only when its clean record is visible: the next owner fences nobody, A keeps its id."""
    stage = Stage()
    stage.start(A, B)
    task = stage.submit("long", "ok")
    stage.until_running(task)
    stage.broker.delays.marker = (300, 300)
    before = stage.process(A).producer
    fenced: list[str] = []
    stage.on(FenceIds, lambda _: fenced.append("fenced"), where=slot_of(B))
    stage.move(0, B)
    stage.play()
    assert not fenced, "a clean owner was fenced"
    assert stage.process(A).producer is before, "a healthy worker lost its id"
    stage.expect(task, COMPLETED, attempt=2, lost=0)


def trial_charges_the_suspect_alone() -> None:
    """Two tasks have two deaths each. The one kills its worker in every trial, also in the one that it stands alone; the other
    outlives its own."""
    stage = Stage(slots=2, config=without_children())
    stage.cluster.restarts = True
    stage.cluster.supervised = True
    stage.start(A)
    first = stage.submit("long", "long", "slay")
    second = stage.submit("long", "long", "long")
    for attempt in (1, 2):
        stage.until_running(first, attempt)
        stage.until_running(second, attempt)
        for process in list(stage.cluster.processes):
            if process is not None and process.executions:
                stage.crash(process)
    stage.play(180_000)
    stage.expect(first, FAILED, attempt=5, lost=3)
    stage.expect(second, COMPLETED)


def poison_that_kills_in_the_trial_of_another() -> None:
    """It outlives its own trial and kills its worker while an innocent one stands trial: that one is not quarantined. The
    poison was acquitted, so its next trial is longer: it dies in that one, and then in one that it stands alone."""
    stage = Stage(slots=1, config=config(slots={HandlerKind.ASYNC: 2, HandlerKind.PROCESS: 0}, trial_ms=300))
    stage.cluster.restarts = True
    stage.cluster.supervised = True
    stage.start(A)
    poison, innocent = stage.submit("slay_late", band=0), stage.submit("long", band=0)
    stage.until(lambda: innocent.trial == ONLY, "its worker has died in its trial")
    assert (poison.charges, poison.trial) == (1, STAGES), f"it has outlived its own: {poison}"
    stage.play()
    stage.expect(poison, FAILED, lost=3)
    stage.expect(innocent, COMPLETED)


def poison_that_nobody_suspects_kills_in_the_trial_of_another() -> None:
    """Two workers have died of something else under an innocent one. While it stands trial a new poison kills the worker,
    twice; then the innocent one stands trial alone, and the poison has to wait."""
    stage = Stage(slots=1)
    stage.cluster.restarts = True
    stage.cluster.supervised = True
    stage.start(A)
    innocent = stage.submit("long", band=0)
    for attempt in (1, 2):
        stage.until_running(innocent, attempt)
        stage.crash(stage.process(A))
    stage.until_running(innocent, 3)
    assert innocent.mark == Mark.TRIAL
    poison = stage.submit("slay", band=0)
    stage.until(lambda: innocent.trial == ALONE, "it is to stand trial alone")
    another = stage.submit("slay", band=0)
    stage.until_running(innocent, 5)
    assert (innocent.mark, innocent.trial) == (Mark.TRIAL, ALONE)
    stage.play()
    for one in (poison, another):
        stage.expect(one, FAILED, lost=3)
    stage.expect(innocent, COMPLETED)


def poison_among_many() -> None:
    """A dozen tasks die twice with their worker. In quarantine one of them kills the child of its group: that is halved until
    the poison is alone. No further worker dies, and no innocent one is quarantined."""
    stage = Stage(slots=1, config=config(slots=dict.fromkeys(HandlerKind, 24)))
    stage.cluster.restarts = True
    stage.cluster.supervised = True
    stage.start(A)
    innocents = [stage.submit("hang", "hang", "long", band=0) for _ in range(5)]
    poison = stage.submit("hang", "hang", "crash", band=0)
    innocents += [stage.submit("hang", "hang", "long", band=0) for _ in range(6)]
    for attempt in (1, 2):
        for one in (poison, *innocents):
            stage.until_running(one, attempt)
        stage.crash(stage.process(A))
    stage.until_running(poison, 3)
    worker = stage.process(A)
    stage.play()
    assert stage.process(A) is worker, "a worker has died of one that was in quarantine"
    stage.expect(poison, FAILED, lost=3)
    assert poison.attempt - 2 <= 5, f"a group of 12 is halved four times: {poison}"
    for one in innocents:
        stage.expect(one, COMPLETED)


def suspect_that_is_acquitted() -> None:
    """It outlives its trial, and its deaths are forgiven: the next death of its worker is its first one."""
    stage = Stage(slots=2)
    stage.cluster.restarts = True
    stage.cluster.supervised = True
    stage.start(A)
    task = stage.submit("hang", "hang", "hang", "ok", task_type="quick")
    for attempt in (1, 2):
        stage.until_running(task, attempt)
        stage.crash(stage.process(A))
    stage.until_running(task, 3)
    assert (task.mark, task.charges) == (Mark.TRIAL, 2)
    stage.until(lambda: task.mark == Mark.RUNNING, "it is acquitted")
    assert task.charges == 0
    stage.crash(stage.process(A))
    stage.play()
    stage.expect(task, COMPLETED, attempt=4, lost=1)


def owner_that_was_frozen_claims_again() -> None:
    """A freezes, its session ends, and nobody else is there. It wakes and claims its shard once more: its task was given up,
    but no process has died under it."""
    stage = Stage()
    stage.start(A)
    task = stage.submit("long", "ok")
    stage.until_running(task)
    stage.freeze(stage.process(A))
    stage.until(lambda: not stage.broker.group.member(stage.process(A).member), "its session has ended")
    stage.process(A).wake()
    stage.play()
    stage.expect(task, COMPLETED, attempt=2, lost=0)


def poison_beside_one_that_is_never_quarantined() -> None:
    """lost_max=0 and many deaths: it must not take the deaths upon itself that a poison beside it causes."""
    stage = Stage(config=without_children())
    stage.cluster.restarts = True
    stage.cluster.supervised = True
    stage.start(A)
    steadfast = stage.submit(*["long"] * 40, task_type="steadfast")
    for attempt in (1, 2):
        stage.until_running(steadfast, attempt)
        stage.crash(next(p for p in stage.cluster.processes if p is not None and p.executions))
    poison = stage.submit("slay")
    stage.play()
    stage.expect(poison, FAILED, lost=3)
    stage.expect(steadfast, COMPLETED)


def second_record_of_a_running_task_changes_hands() -> None:
    """The shard moves while the dead letter of a duplicate is owed: its next owner knows both records as open, and the
    duplicate lies in the higher band."""
    stage = Stage()
    stage.start(A, B)
    first = stage.submit("long", "ok", band=1)
    stage.until_running(first)
    stage.on(SendOffsets, lambda process: stage.move(0, B), where=lambda process, ask: bool(ask.plan.dead))
    second = stage.submit("ok", band=0, task_id=first.record.task_id)
    third = stage.put(Wish(0, 0, None, "0" * 8 + first.record.task_id[8:], problem=("invalid_request", "priority: 11")))
    stage.play()
    stage.expect(first, COMPLETED, attempt=2, lost=0)
    stage.expect(third, FAILED)
    assert second.letters == 1, f"{second}"
    assert not second.created, f"{second}"


def trace_death_charged_twice() -> None:
    """crash=2: A dies under attempt 1; B claims, charges, and dies before it starts anything; A's successor starts it."""
    stage = Stage(slots=3)
    stage.start(A)
    task = stage.submit("long", "ok")
    stage.until_running(task)
    stage.crash(stage.process(A))
    stage.on(CommitPlain, stage.crash, before=False, where=slot_of(B))
    stage.start(B)
    stage.until_struck()
    stage.start(C)
    stage.play()
    stage.expect(task, COMPLETED, attempt=2, lost=1)


def trace_death_charged_to_a_waiting_task() -> None:
    """crash retry: attempt 1 has failed and waits for its retry; the death of the worker is not its own."""
    stage = Stage()
    stage.start(A)
    task = stage.submit("later", "ok")
    waits = lambda process, ask: any((e.message or "").startswith("attempt 1 failed") for e in ask.plan.events)  # noqa: E731
    told: list[Process] = []
    stage.on(SendOffsets, told.append, before=False, where=waits)
    stage.until(lambda: bool(told), "its wait is sent")
    stage.until(lambda: not task.running, "its wait is committed")
    stage.crash(stage.process(A))
    stage.start(B)
    stage.play()
    stage.expect(task, COMPLETED, attempt=2, lost=0)


def trace_death_hidden_by_a_clean_record() -> None:
    """crash move: A is asked to give the shard up and dies on the way. Its handler was running, or a clean record says
    that it was not: never neither."""
    for moment in range(40):
        stage = Stage()
        stage.start(A, B)
        task = stage.submit("long", "ok")
        stage.until_running(task)
        stage.move(0, B)
        stage.at_moment(moment, stage.crash, of=lambda process, ask: process.slot == A and type(ask) is not Fetch)
        stage.play()
        if not stage.struck:
            assert moment > 6, f"a revoke has more moments than {moment}"
            return
        assert task.ended is COMPLETED, f"{task}"
    raise AssertionError("a revoke never ends")
