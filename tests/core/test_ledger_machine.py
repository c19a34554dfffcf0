"""The ledger against a naive model: any order of events, any transaction lost, a restart at any point."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamtask.core.ledger import Draft, Ledger, charge
from streamtask.core.offset_map import Entry, Head, Mark, decode
from streamtask.core.suspects import ALONE, narrowed, stage_of

CHOICE = st.integers(0, 1_000_000)
ID = "0190a0a0-0000-7000-8000-000000000001"  # only a recall compares it
SMALL = 400  # characters: small enough for the cap to be reached


class LedgerMachine(RuleBasedStateMachine):
    """The log holds `records` (offsets; others are gaps). The model keeps what the ledger must know: per record
    created, entry, done; once as memory has it, once as the last commit has it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[int] = []
        self.log_end = 0
        self.fetched = 0  # index of the next record to be fetched
        self.created: set[int] = set()
        self.done: set[int] = set()
        self.entries: dict[int, Entry] = {}
        self.draft: Draft | None = None
        self.planned: list[tuple[str, int, Entry]] = []
        self.in_draft: set[int] = set()
        self.worked: set[int] = set()  # received as to be worked on since the last restart
        self.head: Head | None = None
        self.sequence = 0

    @initialize(start=st.integers(0, 2**40))
    def begin(self, start: int) -> None:
        self.log_end = start
        self.ledger = Ledger(start, text_max=SMALL)
        self.committed = (start, self.ledger.text())
        self.last_position = start

    # --- the log ---

    @rule(gaps=st.lists(st.one_of(st.just(0), st.integers(0, 40), st.integers(0, 70_000)), min_size=1, max_size=20))
    def records_arrive_in_the_log(self, gaps: list[int]) -> None:
        for gap in gaps:
            self.log_end += gap
            self.records.append(self.log_end)
            self.log_end += 1

    @precondition(lambda self: self.draft is None)
    @rule(count=st.integers(1, 30))
    def records_are_received(self, count: int) -> None:
        for _ in range(min(count, self.ledger.room())):
            if self.fetched == len(self.records) or not self.ledger.room():
                break
            offset = self.records[self.fetched]
            self.fetched += 1
            work = self.ledger.receive(offset, ID)
            assert work == (offset not in self.done), offset
            if work:
                self.worked.add(offset)
                assert self.ledger.is_created(offset) == (offset in self.created)
                assert self.ledger.entry(offset) == self.entries.get(offset, Entry())
            assert not self.ledger.receive(offset, ID), "received twice"

    # --- transactions ---

    def _open(self, pick: int) -> int | None:
        choice = sorted(self.worked - self.done - self.in_draft)
        return choice[pick % len(choice)] if choice else None

    def _plan(self) -> Draft:
        if self.draft is None:
            self.draft = self.ledger.draft()
        return self.draft

    @rule(count=st.integers(1, 30))
    def created_is_planned_in_order(self, count: int) -> None:
        planned = max((offset for kind, offset, _ in self.planned if kind == "created"), default=-1)
        for offset in sorted(self.worked - self.created - self.done - self.in_draft)[:count]:
            if offset < planned:
                continue
            self._plan().created(offset)
            self.planned.append(("created", offset, Entry()))
            self.in_draft.add(offset)

    @rule(pick=CHOICE, trial=st.booleans())
    def a_start_is_planned(self, pick: int, trial: bool) -> None:
        offset = self._open(pick)
        if offset is None:
            return
        old = self.entries.get(offset, Entry())
        new = Entry(old.attempt + 1, old.failed, old.lost, Mark.TRIAL if trial else Mark.RUNNING, old.trial)
        self._plan().started(offset, new.attempt, new.mark, new.trial)
        self._planned("entry", offset, new)

    @rule(pick=CHOICE)
    def a_wait_is_planned(self, pick: int) -> None:
        offset = self._open(pick)
        if offset is None or offset not in self.entries:
            return
        old = self.entries[offset]
        new = Entry(old.attempt, old.failed + 1, old.lost, Mark.NONE, old.trial)
        self._plan().waiting(offset, new.failed)
        self._planned("entry", offset, new)

    @rule(pick=CHOICE)
    def a_hand_over_is_planned(self, pick: int) -> None:
        offset = self._open(pick)
        if offset is None or offset not in self.entries:
            return
        old = self.entries[offset]
        self._plan().cleared(offset)
        self._planned("entry", offset, Entry(old.attempt, old.failed, old.lost, Mark.NONE, old.trial))

    @rule(picks=st.lists(CHOICE, min_size=1, max_size=20))
    def ends_are_planned(self, picks: list[int]) -> None:
        for pick in picks:
            offset = self._open(pick)
            if offset is not None:
                self._plan().done(offset)
                self._planned("done", offset, Entry())

    def _planned(self, kind: str, offset: int, entry: Entry) -> None:
        self.planned.append((kind, offset, entry))
        self.in_draft.add(offset)

    def _head(self) -> Head:
        self.sequence += 1
        return Head("tasks.workers.0.abc", self.sequence, 1_700_000_000_000 + self.sequence, "open")

    def _apply(self) -> None:
        for kind, offset, entry in self.planned:
            if kind == "created":
                self.created.add(offset)
            elif kind == "entry":
                self.created.add(offset)
                self.entries[offset] = entry
            else:
                self.done.add(offset)
                self.entries.pop(offset, None)

    def _drop(self) -> None:
        self.draft = None
        self.planned = []
        self.in_draft = set()

    @precondition(lambda self: self.draft is not None)
    @rule()
    def the_transaction_commits(self) -> None:
        assert self.draft is not None
        before = self.ledger.text()
        self.committed = self.draft.close(self._head())
        assert self.ledger.text() == before, "planning changed the ledger"
        self.ledger.settle(self.draft)
        self._apply()
        self._drop()

    @precondition(lambda self: self.draft is not None)
    @rule(count=st.integers(0, 10))
    def the_transaction_commits_after_a_doubt(self, count: int) -> None:
        assert self.draft is not None
        self.committed = self.draft.close(self._head())
        self._receive_in_doubt(count)
        self._apply()
        self.ledger.settle(self.draft)
        self._drop()

    def _receive_in_doubt(self, count: int) -> None:
        for _ in range(count):
            if self.fetched == len(self.records) or not self.ledger.room():
                return
            offset = self.records[self.fetched]
            self.fetched += 1
            if self.ledger.receive(offset, ID):
                self.worked.add(offset)
            else:
                assert offset in self.done

    @precondition(lambda self: self.draft is not None)
    @rule()
    def the_transaction_aborts(self) -> None:
        assert self.draft is not None
        before = self.ledger.text()
        self.draft.close()
        assert self.ledger.text() == before
        self._drop()

    # --- restarts ---

    @rule(charged=st.booleans())
    def the_worker_restarts(self, charged: bool) -> None:
        self._drop()
        offset, text = self.committed
        read = decode(text, offset, log_start=0, log_end=self.log_end)
        assert read is not None
        self.ledger = Ledger.restored(read[0], text_max=SMALL)
        assert self.ledger.text(read[1]) == text
        if charged:
            self._charge()
        self.worked = set()
        self.last_position = offset
        self.fetched = sum(record < offset for record in self.records)
        assert all(record in self.done for record in self.records[: self.fetched]), "work was lost"

    def _charge(self) -> None:
        on_trial = [entry.trial for entry in self.entries.values() if entry.mark == Mark.TRIAL]
        alone = any(stage_of(trial) == ALONE for trial in on_trial)
        expected = []
        for offset, old in self.entries.items():
            trial, tried = old.trial, old.mark == Mark.TRIAL
            own = old.mark != Mark.NONE and (tried and stage_of(trial) == ALONE if alone else old.lost < 2)
            if tried and not alone:
                trial = narrowed(trial, len(on_trial))
            self.entries[offset] = Entry(old.attempt, old.failed, old.lost + own, Mark.NONE, trial)
            if own:
                expected.append((0, offset))
        assert sorted(charge([self.ledger])) == sorted(expected)
        self.committed = (self.ledger.position, self.ledger.text(self._head()))

    # --- always ---

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        ledger = self.ledger
        assert ledger.position >= self.last_position
        self.last_position = ledger.position
        assert ledger.open_offsets() == sorted(self.worked - self.done)
        assert ledger.entries == self.entries
        runs = zip(ledger.state.starts, ledger.state.ends, strict=True)
        assert ledger.state.count == sum(high - low for low, high in runs)
        assert len(ledger.text()) <= SMALL
        unfinished = [record for record in self.records if record not in self.done]
        assert ledger.position <= min(unfinished, default=self.log_end)
        assert not ledger.vanished


LedgerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLedgerMachine = LedgerMachine.TestCase
