"""One partition that takes nothing stops what needs it, and nothing else (core/set_aside.py)."""

from __future__ import annotations

import pytest

from streamtask.core import ownership, protocol, set_aside
from streamtask.core.refused_places import FIRST_PAUSE_MS, PAUSE_MAX_MS
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord
from streamtask.domain.ports import (
    DEAD,
    LETTERS,
    STATUS,
    AbortTransaction,
    Answer,
    Ask,
    CommitPlan,
    Fault,
    FaultKind,
    Flush,
    Place,
    Probe,
    RenewProducer,
    Waiting,
)
from tests.core.desk import Desk, raised

SLOTS = {HandlerKind.ASYNC: 8, HandlerKind.THREAD: 0, HandlerKind.PROCESS: 0}
SICK: Place = (STATUS, 1)
RESULT = Outcome(Ending.RETURNED, result=b"1")


class Ward:
    """A desk whose places in `sick` take nothing: by silence, or by a refusal that names them."""

    def __init__(self, *, by: FaultKind | None = None, shards: tuple[int, ...] = (0, 1), dead: int = 2) -> None:
        self.d = Desk(shards=shards, slots=SLOTS)
        self.d.ready()
        self.d.turn()
        self.d.ids = iter(f"tasks.workers.0.{n}" for n in range(1, 100_000))
        self.by, self.dead = by, dead
        self.sick: set[Place] = set()
        self.lost_ms: list[int] = []
        self._real, self.d.perform = self.d.perform, self.perform  # type: ignore[method-assign]
        self._since = 0

    def needs(self, plan: CommitPlan) -> set[Place]:
        """The sick places that this plan needs."""
        needed: set[Place] = {(STATUS, event.partition) for event in plan.events}
        for letter in plan.dead:
            free = [n for n in range(self.dead) if n not in plan.avoid]
            needed.add((LETTERS, free[letter.record.offset % len(free)] if free else -1))
        if DEAD in self.sick and plan.dead:
            needed.add(DEAD)
        return needed & self.sick

    def perform(self, ask: Ask) -> Answer:
        if not isinstance(ask, Flush) or not (needed := self.needs(ask.plan)):
            return self._real(ask)
        if self.by is not None:
            return Fault(self.by, "NOT_ENOUGH_REPLICAS", frozenset(needed))
        self.d.later(ask.wait_ms)
        if ask.last:
            return Fault(FaultKind.FENCED, "not acknowledged in time", frozenset(needed))
        touched = {event.partition for event in ask.plan.events}
        silent = {number for topic, number in needed if topic == STATUS}
        produced = len(ask.plan.events) + len(ask.plan.dead)
        return Waiting(produced if touched == silent else 1, produced)

    def turns(self, count: int, *, ms: int = 100, ends: bool = True) -> None:
        for _ in range(count):
            began = self.d.now.mono_ms
            if not self.d.turn() and self.d.now.mono_ms > began:
                self.lost_ms.append(self.d.now.mono_ms - began)
            self.d.later(ms)
            self.answer_probes()
            if ends:
                for start in list(self.d.running.values()):
                    self.d.end(start.record, RESULT)

    def answer_probes(self) -> None:
        effects, self.d.other_effects = self.d.other_effects, []
        for effect in effects:
            if isinstance(effect, Probe):
                for place in effect.places:
                    set_aside.probed(self.d.engine, place, "still" if place in self.sick else None, self.d.now)
        self.d.take()

    def notes(self, name: str) -> list[Place]:
        return [(n.fields["topic"], n.fields["partition"]) for n in self.d.notes if n.name == name]

    def ended(self, records: list[RequestRecord]) -> int:
        return sum(self.d.history(record)[-1:] == ["completed"] for record in records)


@pytest.mark.parametrize("by", [None, FaultKind.ABORT, FaultKind.FENCED])
def test_a_partition_that_takes_nothing_stops_its_own_shard_alone(by: FaultKind | None) -> None:
    """Bug: one status partition below its min ISR, and no shard of its worker committed anything."""
    ward = Ward(by=by)
    ward.sick = {SICK}
    good = [ward.d.submit(shard=0) for _ in range(50)]
    bad = [ward.d.submit(shard=1) for _ in range(20)]
    ward.turns(30)
    assert ward.ended(good) == 50
    assert not any(ward.d.history(record) for record in bad)
    assert len(ward.lost_ms) <= 1, "one transaction an incident"
    assert sum(ward.lost_ms) <= 3_000
    assert ward.notes("partition_set_aside") == [SICK]
    ward.sick = set()
    ward.turns(PAUSE_MAX_MS // 100 + 30)
    assert ward.ended(bad) == 20
    assert ward.notes("partition_back") == [SICK]


def test_a_shard_set_aside_starts_nothing_new_and_holds_no_slot() -> None:
    ward = Ward()
    ward.sick = {SICK}
    ward.d.submit(shard=0)
    for _ in range(20):
        ward.d.submit(shard=1)
    ward.turns(2, ends=False)
    for _ in range(20):
        ward.d.submit(shard=1)
    good = [ward.d.submit(shard=0) for _ in range(6)]
    ward.turns(3, ends=False)
    assert {start.record.partition for start in ward.d.running.values()} == {0}
    assert len(ward.d.running) == 7, "every slot is free for the shards that work"
    assert all(ward.d.history(record) == ["created", "running 1"] for record in good)


def test_what_runs_when_its_shard_is_set_aside_ends_when_the_partition_is_back() -> None:
    ward = Ward()
    runs = [ward.d.submit(shard=n) for n in (1, 1, 0)]
    ward.d.turn()
    ward.sick = {SICK}
    ward.turns(20)
    assert [ward.d.history(record)[-1] for record in runs] == ["running 1", "running 1", "completed"]
    ward.sick = set()
    ward.turns(PAUSE_MAX_MS // 100)
    assert [ward.d.history(record) for record in runs] == [["created", "running 1", "completed"]] * 3


def test_order_of_a_key_survives_its_shard_being_set_aside() -> None:
    ward = Ward()
    ward.sick = {SICK}
    keyed = [ward.d.submit(shard=1, ordering_key="k") for _ in range(3)]
    ward.d.submit(shard=0)
    ward.turns(5)
    keyed.append(ward.d.submit(shard=1, ordering_key="k"))
    ward.turns(5)
    ward.sick = set()
    started: list[int] = []
    for _ in range(PAUSE_MAX_MS // 100):
        ward.turns(1, ends=False)
        assert len(ward.d.running) <= 1
        for start in list(ward.d.running.values()):
            started.append(start.record.offset)
            ward.d.end(start.record)
    assert started == [record.offset for record in keyed]


def test_silence_of_every_partition_sets_none_aside() -> None:
    """A frozen broker, or a slow link, is no partition's fault."""
    ward = Ward()
    ward.sick = {SICK, (STATUS, 0)}
    records = [ward.d.submit(shard=n % 2) for n in range(10)]
    ward.turns(5)
    assert not ward.notes("partition_set_aside")
    ward.sick = set()
    ward.turns(10)
    assert ward.ended(records) == 10


def test_a_probe_is_made_again_after_pauses_that_double() -> None:
    ward = Ward()
    ward.sick = {SICK}
    ward.d.submit(shard=1)
    ward.d.submit(shard=0)
    probes: list[int] = []
    for _ in range(1_500):
        ward.turns(1)
        count = sum(isinstance(e, Probe) for e in ward.d.other_effects)
        probes += [ward.d.now.mono_ms] * count
    sick = ward.d.engine.aside.places[SICK]
    assert sick.pause_ms == PAUSE_MAX_MS
    assert ward.notes("partition_set_aside") == [SICK]
    assert len(ward.lost_ms) == 1, "probes cost the other shards nothing"


def test_one_that_relapses_waits_longer_each_time() -> None:
    ward = Ward()
    pauses = []
    for _ in range(4):
        ward.sick = {SICK}
        ward.d.submit(shard=1)
        ward.d.submit(shard=0)
        ward.turns(3)
        pauses.append(ward.d.engine.aside.places[SICK].pause_ms)
        ward.sick = set()
        ward.turns(pauses[-1] // 100 + 3)
        assert not ward.d.engine.aside
    assert pauses == [FIRST_PAUSE_MS * 2**n for n in range(4)]


# --- Dead letters -----------------------------------------------------------------------------------------------------


def failing(ward: Ward, count: int, **more: object) -> list[RequestRecord]:
    records = [ward.d.submit(**more) for _ in range(count)]  # type: ignore[arg-type]
    ward.d.turn()
    for record in records:
        ward.d.end(record, raised("broken"))
    return records


def test_a_dead_letter_goes_to_another_partition_when_one_takes_none() -> None:
    ward = Ward()
    ward.sick = {(LETTERS, 0)}
    failed = failing(ward, 4, shard=0)
    good = [ward.d.submit(shard=1) for _ in range(4)]
    ward.turns(20)
    assert [ward.d.history(record)[-1] for record in failed] == ["failed"] * 4
    assert ward.ended(good) == 4
    assert ward.notes("partition_set_aside") == [(LETTERS, 0)]


@pytest.mark.parametrize("by", [None, FaultKind.ABORT])
def test_without_any_partition_for_dead_letters_only_tasks_that_failed_wait(by: FaultKind | None) -> None:
    """Bug: tasks.dead deleted, and the first task that failed stopped its worker."""
    ward = Ward(by=by)
    ward.sick = {DEAD}
    failed = failing(ward, 3, shard=0)
    good = [ward.d.submit(shard=n % 2) for n in range(40)]
    ward.turns(20)
    assert ward.ended(good) == 40
    assert [ward.d.history(record) for record in failed] == [["created", "running 1"]] * 3
    assert not ward.d.dead
    ward.sick = set()
    ward.turns(PAUSE_MAX_MS // 100)
    assert [ward.d.history(record)[-1] for record in failed] == ["failed"] * 3
    assert len(ward.d.dead) == 3


def test_a_task_that_fails_before_it_ran_shows_created_while_its_letter_cannot_be_written() -> None:
    ward = Ward(by=FaultKind.ABORT)
    ward.sick = {DEAD}
    invalid = ward.d.submit(problem=("invalid_parameters", "no"))
    good = [ward.d.submit() for _ in range(3)]
    ward.turns(10)
    assert ward.d.history(invalid) == ["created"]
    assert ward.ended(good) == 3
    ward.sick = set()
    ward.turns(PAUSE_MAX_MS // 100)
    assert ward.d.history(invalid) == ["created", "running 1", "failed"]


def test_the_created_of_others_waits_behind_a_refusal_that_cannot_be_written_and_their_start_does_not() -> None:
    ward = Ward(by=FaultKind.ABORT)
    ward.sick = {DEAD}
    before = ward.d.submit()
    ward.d.submit(problem=("invalid_request", "not JSON"), task_id="")
    more = [ward.d.submit() for _ in range(12)]  # more than there are slots
    ward.turns(2, ends=False)
    assert [ward.d.history(record)[:1] for record in [before, *more[:6]]] == [["created"]] * 7
    assert not any(ward.d.history(record) for record in more[7:]), "the mark may not pass the refusal"
    ward.turns(10)
    assert ward.ended([before, *more]) == 13, "it holds nothing up"
    assert ward.d.offsets[1, 0].offset == 1, "the refusal is still open"
    ward.sick = set()
    ward.turns(PAUSE_MAX_MS // 100)
    assert len(ward.d.dead) == 1
    assert ward.d.offsets[1, 0].offset == 14


# --- Shards come and go -----------------------------------------------------------------------------------------------


def revoke(ward: Ward, *shards: int) -> bool:
    def stop_all(tokens: tuple[int, ...]) -> None:
        for token in tokens:
            ward.d.running.pop(token, None)
            ward.d.engine.ended(token, Outcome(Ending.STOPPED), ward.d.now)

    ward.d.when_awaiting = stop_all
    return ward.d.drive(protocol.revoked(ward.d.engine, shards, ward.d.clock))


@pytest.mark.parametrize("together", [True, False])
def test_a_hand_over_with_a_shard_set_aside_is_clean_for_all(together: bool) -> None:
    """Its ledger needs no partition of tasks.status. What had ended there runs again; nobody is charged for it."""
    ward = Ward()
    running, ending, good = ward.d.submit(shard=1), ward.d.submit(shard=1), ward.d.submit(shard=0)
    ward.d.turn()
    ward.sick = {SICK}
    ward.d.end(ending)
    ward.d.end(good)
    ward.turns(5, ends=False)
    assert ward.d.engine.aside
    assert revoke(ward, *((0, 1) if together else (1,)))
    assert not ward.d.engine.aside
    ward.sick = set()
    if not together:
        assert revoke(ward, 0)
    other = ward.d.successor()
    other.feed(running, ending)
    other.turn()
    assert [other.history(record)[-1] for record in (running, ending)] == ["running 2"] * 2
    assert {claim.lost for claim in other.engine.shards[1].claims.values()} == {0}


def test_a_shard_that_comes_back_to_its_worker_is_no_longer_set_aside() -> None:
    ward = Ward()
    ward.sick = {SICK}
    record = ward.d.submit(shard=1)
    ward.d.submit(shard=0)
    ward.turns(5)
    protocol.lost(ward.d.engine, (1,))
    ward.sick = set()
    ward.d.shards = (1,)
    assert ward.d.claim()
    ownership.control_read(ward.d.engine, (1,))
    ward.d.feed(record)
    ward.turns(5)
    assert ward.d.history(record)[-1] == "completed"


def test_nothing_of_a_batch_that_was_given_up_is_in_doubt() -> None:
    ward = Ward()
    ward.sick = {SICK}
    ward.d.submit(shard=1)
    ward.d.submit(shard=0)
    ward.d.turn()
    assert ward.d.engine.fenced
    assert ward.d.engine.doubt is None, "it was never ended"
    ward.d.asked.clear()
    ward.d.turn()
    assert any(isinstance(ask, RenewProducer) for ask in ward.d.asked)


def test_a_cancel_reaches_a_task_whose_shard_is_set_aside() -> None:
    ward = Ward()
    ward.sick = {SICK}
    record = ward.d.submit(shard=1)
    ward.d.submit(shard=0)
    ward.turns(3)
    ward.d.engine.cancel_read([record.task_id], ward.d.now)
    ward.turns(3)
    ward.sick = set()
    ward.turns(PAUSE_MAX_MS // 100)
    assert ward.d.history(record) == ["created", "cancelled"]


def test_a_refusal_by_name_is_aborted_and_keeps_its_producer() -> None:
    ward = Ward(by=FaultKind.ABORT)
    ward.sick = {SICK}
    ward.d.submit(shard=1)
    good = ward.d.submit(shard=0)
    ward.turns(4)
    assert any(isinstance(ask, AbortTransaction) for ask in ward.d.asked)
    assert not any(isinstance(ask, RenewProducer) for ask in ward.d.asked)
    assert ward.ended([good]) == 1
