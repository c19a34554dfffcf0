"""The named scenarios: each is the shortest way to one kind of damage, and ends well when every rule is kept.

Those called `trace_…` are the counterexamples of the formal model (shortest traces) that concern what is built here.
Every scenario raises (PromiseBroken, or a failed expectation) when the rule that it is about is taken out: see mutations.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from streamtask.domain.model import TaskStatus
from streamtask.domain.ports import (
    CommitPlain,
    CommitPlan,
    EndTransaction,
    FenceIds,
    Flush,
    ListOffsets,
    Produce,
    ReadSettled,
    Seat,
    SendOffsets,
)

from .deaths import (
    child_dies_and_then_its_worker,
    child_that_starts_slowly,
    clean_handover_then_instant_death,
    clean_owner_is_not_fenced,
    death_inside_the_first_transaction,
    killed_with_a_queue_of_started_tasks,
    owner_that_was_frozen_claims_again,
    poison_among_many,
    poison_before_its_first_commit,
    poison_beside_one_that_is_never_quarantined,
    poison_of_its_child,
    poison_that_kills_in_the_trial_of_another,
    poison_that_nobody_suspects_kills_in_the_trial_of_another,
    second_record_of_a_running_task_changes_hands,
    suspect_that_is_acquitted,
    time_limit_behind_others,
    trace_death_charged_to_a_waiting_task,
    trace_death_charged_twice,
    trace_death_hidden_by_a_clean_record,
    trial_charges_the_suspect_alone,
)
from .expiry import (
    expires_while_its_start_is_committed,
    expires_while_its_start_is_in_doubt,
    expires_while_no_broker_answers,
)
from .filling import ends_behind_executions_that_hang
from .handlers import Execution
from .heavy import (
    flood_of_heavy_requests,
    high_requests_behind_a_flood_of_low_ones,
    parameters_that_fill_the_memory,
    requests_heavier_than_the_memory,
)
from .positions import (
    id_used_again_and_compacted,
    log_cut_and_recovery_interrupted,
    log_cut_under_its_owner,
    nothing_is_waited_for_that_cannot_come,
    offset_behind_the_log_start,
    offset_beyond_the_log_end,
    offset_missing,
    offset_not_ours,
    recovery_interrupted,
    refused_earlier_request_of_a_key_is_forgotten,
    topic_made_anew,
    unknown_version,
)
from .process import Process
from .refusals import REFUSALS
from .stage import Stage, slot_of

COMPLETED, FAILED, CANCELLED, RUNNING = (
    TaskStatus.COMPLETED,
    TaskStatus.FAILED,
    TaskStatus.CANCELLED,
    TaskStatus.RUNNING,
)
CLAIM_ASKS = (ListOffsets, FenceIds, ReadSettled, CommitPlain, Seat)
A, B, C = 0, 1, 2


def _says(slot: int, status: TaskStatus, progress: bool | None = None) -> Callable[[Process, Any], bool]:
    """A transaction of this slot whose plan has such an event."""

    def where(process: Process, ask: Any) -> bool:
        plan: CommitPlan = ask.plan
        return process.slot == slot and any(
            e.status is status and (progress is None or (e.progress is not None) is progress) for e in plan.events
        )

    return where


# --- Zombies ----------------------------------------------------------------------------------------------------------


def zombie_whose_batch_has_no_offsets() -> None:
    """A is frozen before it produces a mere progress event; B runs the task to its end; then A wakes and goes on."""
    stage = Stage()
    stage.start(A)
    task = stage.submit("progress", "ok")
    stage.on(Produce, stage.freeze, where=_says(A, RUNNING, progress=True))
    stage.until_struck()
    stage.start(B)
    stage.until(lambda: task.ended is not None, "B has ended it")
    stage.cluster.thaw(stage.process(A))
    stage.play()
    stage.cluster.run_for(15_000)
    stage.expect(task, COMPLETED, attempt=2, lost=1)


def zombie_with_offsets_pending() -> None:
    """A is frozen between its offsets and its EndTxn; B must see it out; A wakes while B claims."""
    stage = Stage()
    stage.start(A)
    task = stage.submit("ok")
    stage.on(EndTransaction, stage.freeze, where=slot_of(A))
    stage.until_struck()
    stage.start(B)
    stage.on(ReadSettled, lambda _: stage.cluster.thaw(stage.process(A)), where=slot_of(B))
    stage.play()
    stage.cluster.run_for(15_000)
    stage.expect(task, COMPLETED)


def zombie_that_comes_back_as_a_member() -> None:
    """A is frozen over its session while a handler runs, wakes, polls, joins again: what it had is not its own any more."""
    stage = Stage()
    stage.start(A)
    task = stage.submit("long", "long")
    stage.until_running(task)
    stage.start(B)
    stage.freeze(stage.process(A))
    stage.until_running(task, 2)
    stage.cluster.thaw(stage.process(A))
    stage.play()
    stage.expect(task, COMPLETED, attempt=2, lost=1)


def late_result_of_a_lost_shard() -> None:
    """A's session ends while a thread runs that cannot be ended; A joins again, B runs the task; then A's thread returns.
    Kafka fences members, not partitions: it would take A's batch."""
    stage = Stage()
    stage.start(A, B)
    task = stage.submit("stubborn", "long", task_type="thread", timeout_seconds=10.0)
    stage.until_running(task)
    first = stage.process(A)
    stage.cluster.expire(first)
    stage.until_running(task, 2)
    assert first.executions, "the thread of A has ended too early for this scenario"
    stage.play()
    stage.expect(task, COMPLETED, attempt=2, lost=1)


def owner_frozen_before_the_first_instruction() -> None:
    """Frozen between the committed RUNNING and the handler: it may still begin that old attempt, and nothing more."""
    stage = Stage()
    stage.start(A)
    task = stage.submit("ok", "ok")
    stage.on(Execution, stage.freeze, where=slot_of(A))
    stage.until_struck()
    stage.start(B)
    stage.until(lambda: task.ended is not None, "B has ended it")
    stage.cluster.thaw(stage.process(A))
    stage.cluster.run_for(15_000)
    stage.expect(task, COMPLETED, attempt=2)


def stable_read_of_a_decided_transaction() -> None:
    """A's commit is decided, its markers are late, and A loses its membership and gets the shard again under its own id:
    only the stable read tells it of its own batch."""
    stage = Stage(slots=1)
    stage.broker.delays.marker = (600, 600)
    stage.start(A)
    task = stage.submit("ok")
    stage.on(EndTransaction, stage.cluster.expire, before=False)
    stage.play()
    stage.expect(task, COMPLETED)


# --- Claims -----------------------------------------------------------------------------------------------------------


def claim_interrupted(moment: int, act: str, *, open_transaction: bool) -> bool:
    """A dies (inside a transaction, or not); B is struck at the n-th moment of its claim; C has to bring it to its end.
    False: a claim has fewer moments."""
    stage = Stage(slots=3)
    stage.start(A)
    task = stage.submit("long", "ok", "ok", band=1)
    other = stage.submit("ok", band=2)
    stage.until_running(task)
    if open_transaction:
        stage.on(EndTransaction, stage.crash, where=slot_of(A))
        stage.submit("ok", band=0)
        stage.until_struck()
    else:
        stage.crash(stage.process(A))
    strike: dict[str, Callable[[Process], object]] = {
        "crash": stage.crash,
        "freeze": stage.freeze,
        "freeze and wake": lambda process: stage.cluster.freeze(process, 20_000),
        "expire": stage.cluster.expire,
        "move": lambda process: stage.start(C),
    }
    before = stage.struck
    if act == "move":
        stage.start(B, C)
        act_now: Callable[[Process], object] = lambda process: stage.move(0, C)  # noqa: E731
    else:
        act_now = strike[act]
        stage.cluster.start(B)
    stage.at_moment(moment, act_now, of=lambda process, ask: process.slot == B and type(ask) in CLAIM_ASKS)
    stage.cluster.run_for(11_000)
    if stage.struck == before:
        return False
    if stage.cluster.processes[C] is None:
        stage.cluster.start(C)
    stage.play()
    stage.cluster.run_for(25_000)
    stage.expect(task, COMPLETED, attempt=2 if act in ("crash", "freeze") else None, lost=1 if act == "crash" else None)
    stage.expect(other, COMPLETED)
    return True


def trace_late_copy_of_a_claim() -> None:
    """dupc crash: a copy of the claim commit would land over a newer ledger, and the next owner would believe it."""
    stage = Stage()
    stage.hold_copies()
    stage.answer(CommitPlain, "copy")
    stage.start(A)
    task = stage.submit("ok", "ok")
    stage.on(SendOffsets, stage.deliver, before=False, where=_says(A, TaskStatus.CREATED))
    stage.until_running(task)
    stage.crash(stage.process(A))
    stage.start(B)
    stage.play()
    stage.expect(task, COMPLETED, attempt=2, lost=1)


# --- Doubt ------------------------------------------------------------------------------------------------------------


def doubtful_commit(word: str) -> None:
    """The answer of a commit is lost: it had taken effect, will take effect, or never does. Read back, not guessed."""
    for status in (RUNNING, COMPLETED):
        stage = Stage()
        stage.start(A)
        task = stage.submit("progress")
        armed: list[Process] = []
        stage.on(SendOffsets, armed.append, where=_says(A, status))

        def is_armed(process: Process, ask: Any, armed: list[Process] = armed) -> bool:
            return bool(armed)

        stage.answer(EndTransaction, word, where=is_armed)
        stage.play()
        stage.expect(task, COMPLETED, attempt=1, lost=0)


def producer_left_inside_its_transaction() -> None:
    """A broker has died, no answer comes: the producer is left with its transaction open, and its own worker fences it."""
    for kind in (Flush, SendOffsets):
        for status in (RUNNING, COMPLETED):
            stage = Stage()
            stage.start(A)
            task = stage.submit("progress")
            stage.answer(kind, "left", where=_says(A, status))
            stage.play()
            stage.expect(task, COMPLETED, attempt=1, lost=0)


def trace_two_doubtful_commits() -> None:
    """amb=2: the first recovery gives up on its claim; the second must still ask for the id of the batch in doubt."""
    stage = Stage()
    stage.broker.delays.marker = (0, 8_000)  # its marker comes while the first recovery waits, or later
    stage.start(A)
    tasks = [stage.submit("ok"), stage.submit("ok")]
    stage.answer(EndTransaction, "applied")
    stage.answer(EndTransaction, "applied")
    stage.play()
    stage.cluster.run_for(20_000)
    for task in tasks:
        stage.expect(task, COMPLETED, attempt=1, lost=0)


def second_recovery_before_the_first_has_resolved() -> None:
    """The claim that would resolve the doubt fails, its own id is fenced, a third one has to resolve it."""
    for moment in range(12):
        stage = Stage()
        stage.start(A)
        task = stage.submit("ok")
        stage.answer(EndTransaction, "applied")
        fence = lambda process, stage=stage: stage.broker.init(process.producer.id)  # noqa: E731
        recovering = lambda process, ask, stage=stage: process.ids > 1 and type(ask) in CLAIM_ASKS  # noqa: E731
        stage.at_moment(moment, fence, of=recovering)
        stage.play()
        stage.expect(task, COMPLETED, attempt=1, lost=0)


def trace_late_copy_of_end_txn() -> None:
    """dup: a copy of EndTxn would end the next batch early, before its offsets; then A dies. A slow commit ends its id."""
    stage = Stage()
    stage.hold_copies()
    stage.start(A)
    task = stage.submit("ok", "ok")
    stage.answer(EndTransaction, "copy")
    finishing: list[Process] = []

    def deliver_and_finish(process: Process) -> None:
        stage.deliver()
        finishing.append(process)

    stage.on(SendOffsets, deliver_and_finish, where=_says(A, COMPLETED))
    stage.on(EndTransaction, stage.crash, where=lambda process, ask: bool(finishing))
    stage.until_struck(2)
    stage.start(B)
    stage.cluster.run_for(15_000)
    stage.play()
    stage.expect(task, COMPLETED, attempt=2)


def refused_record() -> None:
    """One result is too large: its neighbours' batch goes through without it, and it is FAILED result_too_large."""
    stage = Stage()
    stage.start(A)
    big = stage.submit("big")
    others = [stage.submit("ok", band=n % 3) for n in range(5)]
    stage.play()
    stage.expect(big, FAILED, attempt=1)
    assert big.ended_code == "result_too_large", f"{big}"
    for other in others:
        stage.expect(other, COMPLETED, attempt=1)


SCENARIOS: dict[str, Callable[[], None]] = {
    scene.__name__: scene
    for scene in (
        zombie_whose_batch_has_no_offsets,
        zombie_with_offsets_pending,
        zombie_that_comes_back_as_a_member,
        late_result_of_a_lost_shard,
        owner_frozen_before_the_first_instruction,
        stable_read_of_a_decided_transaction,
        poison_before_its_first_commit,
        death_inside_the_first_transaction,
        poison_of_its_child,
        child_dies_and_then_its_worker,
        child_that_starts_slowly,
        time_limit_behind_others,
        killed_with_a_queue_of_started_tasks,
        clean_handover_then_instant_death,
        clean_owner_is_not_fenced,
        trial_charges_the_suspect_alone,
        poison_that_kills_in_the_trial_of_another,
        poison_that_nobody_suspects_kills_in_the_trial_of_another,
        poison_beside_one_that_is_never_quarantined,
        poison_among_many,
        suspect_that_is_acquitted,
        owner_that_was_frozen_claims_again,
        second_record_of_a_running_task_changes_hands,
        trace_death_charged_twice,
        trace_death_charged_to_a_waiting_task,
        trace_death_hidden_by_a_clean_record,
        trace_late_copy_of_a_claim,
        producer_left_inside_its_transaction,
        trace_two_doubtful_commits,
        second_recovery_before_the_first_has_resolved,
        trace_late_copy_of_end_txn,
        refused_record,
        *REFUSALS,
        offset_behind_the_log_start,
        nothing_is_waited_for_that_cannot_come,
        offset_beyond_the_log_end,
        offset_missing,
        offset_not_ours,
        recovery_interrupted,
        refused_earlier_request_of_a_key_is_forgotten,
        id_used_again_and_compacted,
        topic_made_anew,
        log_cut_and_recovery_interrupted,
        log_cut_under_its_owner,
        unknown_version,
        flood_of_heavy_requests,
        requests_heavier_than_the_memory,
        high_requests_behind_a_flood_of_low_ones,
        parameters_that_fill_the_memory,
        expires_while_no_broker_answers,
        expires_while_its_start_is_in_doubt,
        expires_while_its_start_is_committed,
        ends_behind_executions_that_hang,
    )
}
SCENARIOS |= {
    f"doubtful_commit_{word}": partial(doubtful_commit, word) for word in ("applied", "late", "never", "copy")
}
