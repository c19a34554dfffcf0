"""The named scenarios of positions: the committed offset behind the log, beyond it, missing, not ours, or too new."""

from __future__ import annotations

from streamtask.domain.model import TaskStatus
from streamtask.domain.ports import OffsetCommit

from .history import History
from .stage import Stage, slot_of

COMPLETED = TaskStatus.COMPLETED
A, B, C = 0, 1, 2


def _everybody_leaves(stage: Stage) -> None:
    for process in list(stage.cluster.processes):
        if process is not None:
            stage.crash(process)
    stage.cluster.run_for(25_000)
    assert not stage.broker.group.members, "the group is not empty"


def _worked(stage: Stage, count: int = 5) -> list[History]:
    """A shard with a history: `count` finished requests and one that runs."""
    stage.start(A)
    done = [stage.submit("ok") for _ in range(count)]
    stage.play()
    return done


def offset_behind_the_log_start() -> None:
    """Retention was faster: the gap is reported, the rest goes on, nothing runs twice."""
    stage = Stage()
    _worked(stage)
    lost = stage.submit("long")
    kept = stage.submit("long", "ok")
    stage.until_running(kept)
    _everybody_leaves(stage)
    stage.cluster.retain((0, 0), kept.record.offset)
    stage.start(B)
    new = stage.submit("ok")
    stage.play()
    assert lost.excused, f"{lost}"
    stage.expect(kept, COMPLETED, attempt=2, lost=1)
    stage.expect(new, COMPLETED, attempt=1)


def nothing_is_waited_for_that_cannot_come() -> None:
    """Retention took the open record; the one behind it is done and will not come again: the other bands go on."""
    stage = Stage()
    stage.start(A)
    gone = stage.submit("long", band=2)
    done = stage.submit("ok", band=2)
    stage.until(lambda: done.ended is not None, "the second has ended")
    assert gone.ended is None, f"{gone}"
    _everybody_leaves(stage)
    stage.cluster.retain((2, 0), done.record.offset)
    stage.start(B)
    new = [stage.submit("ok", band=band) for band in (0, 1)]
    stage.play()
    for task in new:
        stage.expect(task, COMPLETED, attempt=1)


def offset_beyond_the_log_end() -> None:
    """The topic was restored from a copy: what stands at the old offsets is new, and runs once."""
    stage = Stage()
    done = _worked(stage)
    _everybody_leaves(stage)
    stage.cluster.truncate((0, 0), 2)
    stage.start(B)
    stage.until(lambda: not stage.cluster.blocked_cells, "its owner has sought")
    new = [stage.submit("ok") for _ in range(6)]
    stage.play()
    for task in done + new:
        stage.expect(task, COMPLETED, attempt=1)


def offset_missing() -> None:
    """The group's offsets are lost: tasks.status tells what has ended, what is open and which attempt was the last."""
    stage = Stage()
    done = _worked(stage)
    runs = stage.submit("long", "ok", band=1)
    stage.until_running(runs)
    _everybody_leaves(stage)
    stage.cluster.forget_offsets(0)
    stage.start(B)
    new = stage.submit("ok")
    stage.play()
    for task in done:
        stage.expect(task, COMPLETED, attempt=1)
    stage.expect(runs, COMPLETED, attempt=2)
    stage.expect(new, COMPLETED, attempt=1)


def topic_made_anew() -> None:
    """The request topics were deleted and made anew, tasks.status stays, and requests come before a worker does: they stand
    at the offsets of finished ones, and run. One topic, and all of them; what is behind the former end, too."""
    for bands in ((0,), (1,), (0, 1, 2)):
        stage = Stage()
        _worked(stage)
        open_ones = [stage.submit("long", "ok", band=band) for band in range(3)]
        for task in open_ones:
            stage.until_running(task)
        _everybody_leaves(stage)
        for band in bands:
            stage.cluster.make_anew((band, 0))
        new = [stage.submit("ok", band=band) for band in range(3) for _ in range(8)]
        stage.start(B)
        stage.play()
        for task in new:
            stage.expect(task, COMPLETED, attempt=1)
        for band, task in enumerate(open_ones):
            if band not in bands:
                stage.expect(task, COMPLETED, attempt=2)


def log_cut_and_recovery_interrupted() -> None:
    """A log was cut, and new requests stand at old offsets when an owner dies while it reads tasks.status: the next one
    reads there of both, and takes each fact for the record that it is about."""
    for moment in range(0, 40, 2):
        stage = Stage(slots=3)
        kept = _worked(stage)[:2]
        _everybody_leaves(stage)
        stage.cluster.truncate((0, 0), 2)
        stage.cluster.blocked_cells.clear()
        stage.cluster.forget_offsets(0)
        new = [stage.submit("ok") for _ in range(6)]
        stage.at_moment(moment, stage.crash, of=slot_of(B))
        stage.cluster.start(B)
        stage.until_struck()
        stage.cluster.start(C)
        stage.play()
        for task in kept:
            stage.expect(task, COMPLETED, attempt=1)
        for task in new:
            stage.expect(task, COMPLETED)


def log_cut_under_its_owner() -> None:
    """A log is cut while its owner works: what comes then stands at offsets that the owner knows, and runs. What ran
    meanwhile starts again, and nobody is charged."""
    for band in range(3):
        stage = Stage()
        stage.start(A)
        kept, *gone = [stage.submit("ok", band=band) for _ in range(6)]
        stage.play()
        beside = stage.submit("long", "ok", band=(band + 1) % 3)
        lost = stage.submit("long", "ok", band=band)
        stage.until_running(beside)
        stage.until_running(lost)
        stage.cluster.truncate((band, 0), 2)
        stage.cluster.run_for(1_000)
        stage.cluster.blocked_cells.clear()
        new = [stage.submit("ok", band=band) for _ in range(8)]
        stage.play()
        assert lost.excused, f"{lost}"
        for task in (kept, *gone):
            stage.expect(task, COMPLETED, attempt=1)
        for task in new:
            stage.expect(task, COMPLETED, attempt=1)
        stage.expect(beside, COMPLETED, attempt=2, lost=0)


def offset_not_ours() -> None:
    """Somebody else's words in the metadata: as if it were missing."""
    stage = Stage()
    done = _worked(stage)
    _everybody_leaves(stage)
    for band in range(3):
        found = stage.broker.committed[band, 0]
        stage.broker.committed[band, 0] = OffsetCommit(band, 0, 0 if band == 0 else found.offset, "kafka-connect")
    stage.cluster.promises.truncated((0, 0), 0)
    stage.start(B)
    new = stage.submit("ok")
    stage.play()
    for task in [*done, new]:
        stage.expect(task, COMPLETED, attempt=1)


def id_used_again_and_compacted() -> None:
    """An id is used again in its band after its end, tasks.status is compacted, and the group's offsets are lost: what is left
    tells of the later record alone. The earlier one does not run again, whether the later one has ended or is open."""
    for script in (("ok",), ("long", "ok")):
        stage = Stage()
        stage.start(A)
        task_id = "0190a0a0-0000-7000-8000-00000000000a"
        first = stage.submit("ok", task_id=task_id)
        stage.play()
        second = stage.submit(*script, task_id=task_id)
        other = stage.submit("long", "ok", band=2)
        stage.until_running(second)
        if script == ("ok",):
            stage.until_ended(second, "the second has ended")
        stage.until_running(other)
        _everybody_leaves(stage)
        stage.cluster.compact(0)
        stage.cluster.forget_offsets(0)
        stage.start(B)
        new = stage.submit("ok")
        stage.play()
        assert not first.letters, f"{first}"
        stage.expect(first, COMPLETED, attempt=1)
        stage.expect(second, COMPLETED, attempt=len(script))
        stage.expect(new, COMPLETED, attempt=1)


def refused_earlier_request_of_a_key_is_forgotten() -> None:
    """The dead letter of a repeated task_id is all that says that it is over. When the offsets are lost, it begins anew; what
    came behind it with the same ordering key runs by then, and goes on first."""
    stage = Stage()
    stage.start(A)
    task_id = "0190a0a0-0000-7000-8000-00000000000a"
    first = stage.submit("long", "ok", task_id=task_id)
    stage.until_running(first)
    repeated = stage.submit("ok", band=2, task_id=task_id, ordering_key="b")
    behind = stage.submit("hang", "ok", band=2, ordering_key="b")
    stage.until_running(behind)
    assert repeated.letters == 1, f"{repeated}"
    stage.until(lambda: first.ended is not None, "the first has ended")
    _everybody_leaves(stage)
    stage.cluster.forget_offsets(0)
    stage.start(B)
    third = stage.submit("ok", band=2, ordering_key="b")
    stage.play()
    stage.expect(first, COMPLETED, attempt=1)
    for history in (repeated, third):
        stage.expect(history, COMPLETED, attempt=1)
    stage.expect(behind, COMPLETED, attempt=2)


def recovery_interrupted() -> None:
    """An owner dies while it still reads tasks.status: its ledger is valid but empty, and says so."""
    for moment in range(0, 30, 2):
        stage = Stage(slots=3)
        done = _worked(stage)
        _everybody_leaves(stage)
        stage.cluster.forget_offsets(0)
        stage.at_moment(moment, stage.crash, of=slot_of(B))
        stage.cluster.start(B)
        stage.until_struck()
        stage.cluster.start(C)
        new = stage.submit("ok")
        stage.play()
        for task in [*done, new]:
            stage.expect(task, COMPLETED, attempt=1)


def unknown_version() -> None:
    """A newer release wrote the ledger: the shard is not claimed, nothing is overwritten, the other shard works."""
    stage = Stage(shards=2)
    _worked(stage)
    _everybody_leaves(stage)
    newer = OffsetCommit(0, 0, 5, "st99|whatever")
    stage.broker.committed[0, 0] = newer
    stage.start(B)
    stuck = stage.submit("ok", shard=0)
    works = stage.submit("ok", shard=1)
    stage.until(lambda: works.ended is not None, "the other shard works")
    stage.cluster.run_for(5_000)
    assert stage.broker.committed[0, 0] is newer, "a newer release's ledger was overwritten"
    assert not stuck.created, f"{stuck}"
