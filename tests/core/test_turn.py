"""Which facts a turn takes when, and when it hands effects over: the one order that worker and simulation have."""

from __future__ import annotations

from typing import Any

from streamtask.core import turn
from streamtask.domain.model import HandlerKind, RequestRecord, TaskPolicy
from streamtask.domain.ports import (
    STATUS,
    Answer,
    Ask,
    AwaitExecutions,
    EndTransaction,
    Executions,
    Facts,
    Fetch,
    HandOver,
    LocalAsk,
    Produce,
    Start,
    Stop,
    TakeExecutions,
    TakeFacts,
    TakeRecords,
)

from .desk import RETURNED, STOPPED, Desk

NOBODY = "0190a0a0-0000-7000-8000-000000000000"
LOCAL = (Fetch, TakeRecords, TakeExecutions, TakeFacts, AwaitExecutions, HandOver)


class Owner(Desk):
    """A desk at which whole turns are played: what lies in `log`, `executions` and `facts` is taken when it is asked for."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.log: list[RequestRecord] = []
        self.executions = Executions()
        self.facts = Facts()
        self.handed: list[list[type]] = []
        self.answer: Answer = None  # to the last ask; None at the end of a flow, whose last ask is a HandOver
        self.asks: list[Ask | LocalAsk] = []
        self.ready()
        self.asked.clear()

    def play(self, flow: turn.Turn) -> bool:
        """The rest of it. Returns what it returns."""
        while True:
            try:
                self.step(flow)
            except StopIteration as end:
                return bool(end.value)

    def play_until(self, flow: turn.Turn, kind: type) -> None:
        """Up to and with the first ask of this kind."""
        while type(self.step(flow)) is not kind:
            pass

    def step(self, flow: turn.Turn) -> Ask | LocalAsk:
        ask = flow.send(self.answer)
        self.asks.append(ask)
        self.answer = self.local(ask) if isinstance(ask, LOCAL) else self.perform(ask)
        return ask

    def local(self, ask: LocalAsk) -> Answer:
        match ask:
            case Fetch():
                return bool(self.log)
            case TakeRecords(bands):
                taken = [record for record in self.log if bands is None or record.band < bands]
                self.log = [record for record in self.log if record not in taken]
                return taken
            case TakeExecutions():
                told, self.executions = self.executions, Executions()
                return told
            case TakeFacts():
                facts, self.facts = self.facts._replace(executions=self.executions), Facts()
                self.executions = Executions()
                return facts
            case AwaitExecutions(wait_ms):
                self.later(wait_ms)
                self.when_awaiting(())
            case HandOver(effects):
                self.handed.append([type(effect) for effect in effects])
                self.running.update({effect.token: effect for effect in effects if isinstance(effect, Start)})
        return None

    def once(self) -> bool:
        self.asks.clear()
        return self.play(turn.turn(self.engine, self.clock))

    def names(self) -> list[str]:
        return [type(ask).__name__ for ask in self.asks]

    def start(self) -> int:
        """A request comes and starts. Returns its token."""
        self.log.append(self.record())
        while self.once():
            pass
        return next(reversed(self.running))


def test_a_turn_fetches_takes_in_commits_and_hands_over_in_this_order() -> None:
    owner = Owner()
    owner.log.append(owner.record())
    assert owner.once()
    assert owner.names() == [
        *("Fetch", "TakeRecords", "TakeFacts", "Produce"),
        *("TakeRecords", "TakeExecutions", "Flush"),
        *("SendOffsets", "EndTransaction", "TakeRecords", "HandOver"),
    ]
    assert owner.handed == [[Start]], "nothing is handed over before its RUNNING is committed"


def test_a_turn_without_anything_says_so() -> None:
    owner = Owner()
    owner.once()  # the claim owes its head
    while owner.once():
        pass
    assert not owner.once()
    assert owner.names() == ["Fetch", "TakeRecords", "TakeFacts", "TakeRecords", "HandOver"]


def test_every_kind_of_fact_makes_another_turn_follow_but_the_answers_of_probes() -> None:
    owner = Owner()
    token = owner.start()
    for facts in (Facts(cancelled=[NOBODY]), Facts(controlled=[0]), Facts(recalled=[(0, 0, [], True)])):
        owner.facts = facts
        assert owner.once(), facts
    owner.facts = Facts(probed=[((STATUS, 0), None)])
    assert not owner.once()
    for executions in (
        Executions(begun=[99]),
        Executions(progress=[(token, 0.5, None)]),
        Executions(ended=[(99, RETURNED)]),
    ):
        owner.executions = executions
        assert owner.once(), executions


def test_what_comes_in_during_a_flush_is_taken_before_its_answer_and_committed_by_the_next_turn() -> None:
    owner = Owner()
    token = owner.start()
    first, late = owner.record(), owner.record()
    owner.log.append(first)
    flow = turn.turn(owner.engine, owner.clock)
    owner.play_until(flow, Produce)
    owner.log.append(late)
    owner.executions = Executions(ended=[(token, RETURNED)])
    assert owner.play(flow)
    assert (owner.log, owner.executions) == ([], Executions()), "both were taken in while the flush was waited for"
    assert owner.history(first) == ["created", "running 1"]
    assert owner.history(late) == []
    before = len(owner.events)
    assert owner.once()
    assert [event.status.value for event in owner.events[before:]] == ["completed", "created", "running"]


def test_while_enough_waits_only_the_high_band_is_taken_before_a_batch() -> None:
    owner = Owner(events_max=9)
    for _ in range(60):
        owner.log.append(owner.record(band=2))
    owner.once()
    assert owner.engine.supplied
    owner.log += [owner.record(band=2), owner.record(band=0)]
    owner.once()
    assert [ask.bands for ask in owner.asks if isinstance(ask, TakeRecords)] == [1, None, None]


def test_a_revoke_tells_what_runs_to_stop_before_it_waits_and_takes_their_ends_before_it_commits() -> None:
    owner = Owner()
    token = owner.start()
    owner.handed.clear()
    owner.asks.clear()

    def awaiting(_: tuple[int, ...]) -> None:
        assert [Stop] in owner.handed
        owner.executions = Executions(ended=[(token, STOPPED)])

    owner.when_awaiting = awaiting
    assert owner.play(turn.revoked(owner.engine, [0], owner.clock))
    assert owner.names()[:5] == ["TakeExecutions", "HandOver", "AwaitExecutions", "TakeExecutions", "Produce"]
    assert not owner.engine.shards


def test_a_revoke_waits_for_a_stubborn_handler_within_its_deadline_alone() -> None:
    owner = Owner()
    owner.start()
    owner.asks.clear()
    began_ms = owner.now.mono_ms
    assert owner.play(turn.revoked(owner.engine, [0], owner.clock)), "what is done is committed, its mark too"
    assert owner.now.mono_ms - began_ms == turn.REVOKE_WAIT_MS
    waits = [ask.wait_ms for ask in owner.asks if isinstance(ask, AwaitExecutions)]
    assert set(waits) == {turn.AWAIT_MS}


def test_a_lost_shard_stops_what_runs_for_it_at_once_and_commits_nothing() -> None:
    owner = Owner()
    owner.start()
    owner.handed.clear()
    owner.asks.clear()
    owner.play(turn.lost(owner.engine, [0]))
    assert (owner.names(), owner.handed) == (["HandOver"], [[Stop]])


def test_an_execution_that_begins_progresses_and_ends_between_two_turns_is_told_in_this_order() -> None:
    policies = {"noop": TaskPolicy(kind=HandlerKind.PROCESS, timeout_ms=1_000)}
    slots = {HandlerKind.ASYNC: 1, HandlerKind.THREAD: 1, HandlerKind.PROCESS: 2}
    owner = Owner(policies=policies, slots=slots)
    token = owner.start()
    owner.executions = Executions([token], [(token, 0.5, "half")], [(token, RETURNED)])
    while owner.once():
        pass
    assert [event.status.value for event in owner.events] == ["created", "running", "completed"]


def test_a_broker_that_lets_records_wait_is_sent_nothing_for_so_long() -> None:
    owner = Owner()
    owner.log.append(owner.record())
    owner.facts = Facts(hold_ms=500)
    owner.once()
    assert not any(isinstance(ask, Produce) for ask in owner.asks)
    owner.later(501)
    owner.once()
    assert any(isinstance(ask, EndTransaction) for ask in owner.asks)


def test_a_drained_worker_has_finished_when_nothing_runs_and_no_end_is_owed() -> None:
    owner = Owner()
    token = owner.start()
    owner.engine.drain()
    assert turn.unfinished(owner.engine)
    owner.executions = Executions(ended=[(token, RETURNED)])
    while owner.once():
        pass
    assert not turn.unfinished(owner.engine)
