"""Scenarios of partitions that take nothing, and of a link that is slower than a flush may take."""

from __future__ import annotations

from functools import partial

from streamtask.domain.model import TaskStatus
from streamtask.domain.ports import DEAD, LETTERS, STATUS, Fault, FaultKind, Flush

from .history import History
from .stage import Stage, slot_of

COMPLETED, FAILED = TaskStatus.COMPLETED, TaskStatus.FAILED
A, B = 0, 1


def _ended(*tasks: History) -> bool:
    return all(task.ended is not None for task in tasks)


def sick_partition_stops_its_own_shard_alone() -> None:
    """tasks.status-1 takes nothing for a minute: shard 0 loses one transaction, shard 1 waits and comes back by itself."""
    stage = Stage(slots=1, shards=2)
    stage.start(A)
    before = stage.submit("long", shard=1)
    stage.until_running(before)
    stage.cluster.sicken((STATUS, 1), None)
    sick = [stage.submit("ok", shard=1, band=n % 3) for n in range(6)]
    for _ in range(4):
        well = [stage.submit("ok", shard=0, band=n % 3) for n in range(4)]
        stage.until(partial(_ended, *well), "what does not need the sick partition goes on", 15_000)
    stage.cluster.run_for(40_000)
    assert not _ended(*sick), f"{sick}"
    assert not any(task.started for task in sick), "a shard that is set aside starts nothing"
    stage.cluster.heal((STATUS, 1))
    stage.play()
    for task in (before, *sick):
        stage.expect(task, COMPLETED, attempt=1, lost=0)


def dead_letters_go_to_another_partition() -> None:
    """One partition of tasks.dead takes nothing, and never will: every task that fails has its letter in the other one."""
    stage = Stage(slots=1)
    stage.start(A)
    stage.cluster.sicken((LETTERS, 0), None)
    failed = [stage.submit("give_up") for _ in range(5)]
    stage.play()
    for task in failed:
        stage.expect(task, FAILED, attempt=1)


def without_tasks_dead_only_failed_tasks_wait() -> None:
    """No partition of tasks.dead takes anything: what ends without a letter ends, the rest when it is back."""
    stage = Stage(slots=1)
    stage.start(A)
    stage.cluster.sicken(DEAD, None)
    failed = [stage.submit("give_up", band=n % 3) for n in range(3)]
    for _ in range(4):
        well = [stage.submit("ok", band=n % 3) for n in range(4)]
        stage.until(partial(_ended, *well), "what needs no dead letter goes on", 20_000)
    assert not any(task.ended for task in failed), f"{failed}"
    stage.cluster.heal(DEAD)
    stage.play()
    for task in failed:
        stage.expect(task, FAILED, attempt=1)


def owner_dies_behind_a_sick_partition() -> None:
    """A dies with a transaction open on a partition that takes no marker either: B gets all shards and works on the others."""
    stage = Stage(shards=2)
    stage.start(A)
    stage.cluster.sicken((STATUS, 1), None)
    sick, well = stage.submit("ok", shard=1), stage.submit("ok", shard=0)
    stage.on(Flush, stage.crash, where=slot_of(A), skip=2)
    stage.until_struck()
    stage.start(B)
    stage.until(lambda: _ended(well), "the other shard goes on at its next owner", 40_000)
    stage.cluster.heal((STATUS, 1))
    stage.play()
    for task in (sick, well):
        stage.expect(task, COMPLETED)


def request_partition_without_a_leader_stops_its_own_shard_alone() -> None:
    """A dies, and a request partition of shard 1 has lost its leader with it: its next owner works on shard 0 at once, and on
    shard 1 when the partition has a leader again. The same for an owner whose producer was lost."""
    for dies in (True, False):
        stage = Stage(shards=2)
        stage.start(A)
        waits = stage.submit("long", "ok", shard=1)
        stage.until_running(waits)
        stage.cluster.behead((1, 1), None)
        if dies:
            stage.crash(stage.process(A))
            stage.start(B)
        else:
            stage.answer(Flush, Fault(FaultKind.FENCED, "lost"))
            stage.submit("ok", shard=0)
        for _ in range(4):
            well = [stage.submit("ok", shard=0, band=n % 3) for n in range(4)]
            stage.until(partial(_ended, *well), "the other shard goes on", 15_000)
        stage.cluster.run_for(20_000)
        assert not _ended(waits), f"{waits}"
        stage.cluster.lead((1, 1))
        stage.play()
        stage.expect(waits, COMPLETED, attempt=1 + dies, lost=int(dies))


def shard_set_aside_changes_hands() -> None:
    """Its clean record needs no partition of tasks.status: what ran there runs again here, and nobody is charged for it."""
    stage = Stage(shards=2)
    stage.start(A, B)
    stage.move(0, A)
    stage.move(1, A)
    stage.until(lambda: stage.process(A).held == {0, 1}, "A has both shards")
    runs = stage.submit("hang", "ok", shard=1)
    ends = stage.submit("long", "ok", shard=1)
    stage.until_running(runs)
    stage.until_running(ends)
    stage.cluster.sicken((STATUS, 1), None)
    stage.submit("ok", shard=1)
    for _ in range(3):
        well = stage.submit("ok", shard=0)
        stage.until(partial(_ended, well), "shard 1 is set aside")
    stage.until(lambda: not stage.process(A).executions or len(stage.process(A).executions) == 1, "one has ended")
    stage.move(1, B)
    stage.until(lambda: 1 in stage.process(B).held, "B has it")
    stage.cluster.heal((STATUS, 1))
    stage.play()
    for task in (runs, ends):
        stage.expect(task, COMPLETED, attempt=2, lost=0)


def refusal_that_cannot_be_written_changes_hands() -> None:
    """A second record of a running task waits for its dead letter, others behind it have shown CREATED or not: the next
    owner, which reads its band first, must not take it for the task."""
    stage = Stage(slots=2)
    stage.start(A)
    task = stage.submit("long", "ok", band=1)
    stage.until_running(task)
    stage.cluster.sicken(DEAD, None)
    second = stage.submit("ok", task_id=task.record.task_id, band=0)
    behind = [stage.submit("long", band=0, task_type="single") for _ in range(3)]
    stage.until_running(behind[0])
    stage.crash(stage.process(A))
    stage.start(B)
    stage.until(lambda: _ended(task, *behind), "all but the letter goes on", 60_000)
    stage.cluster.heal(DEAD)
    stage.play()
    assert second.letters == 1, f"{second}"
    stage.expect(task, COMPLETED)


def flush_slower_than_its_time() -> None:
    """100 kB/s, as a producer quota may be: results of 600 KB, several at once, each longer under way than a flush may be."""
    stage = Stage(slots=1)
    stage.start(A)
    tasks = [stage.submit("fat", band=n % 3) for n in range(6)]
    stage.cluster.link_bytes_ms = 100
    stage.play(300_000)
    for task in tasks:
        stage.expect(task, COMPLETED, attempt=1)


REFUSALS = (
    sick_partition_stops_its_own_shard_alone,
    dead_letters_go_to_another_partition,
    without_tasks_dead_only_failed_tasks_wait,
    owner_dies_behind_a_sick_partition,
    request_partition_without_a_leader_stops_its_own_shard_alone,
    shard_set_aside_changes_hands,
    refusal_that_cannot_be_written_changes_hands,
    flush_slower_than_its_time,
)
