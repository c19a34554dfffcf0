"""Deadlines against a dictionary."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamtask.core.deadlines import Deadlines

KEYS = st.integers(0, 5)
KINDS = st.integers(0, 2)


class DeadlinesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.deadlines: Deadlines[int] = Deadlines()
        self.model: dict[tuple[int, int], tuple[int, int]] = {}
        self.count = 0

    @rule(key=KEYS, kind=KINDS, due_ms=st.integers(0, 50))
    def arm(self, key: int, kind: int, due_ms: int) -> None:
        self.count += 1
        self.deadlines.arm(key, due_ms, kind)
        self.model[key, kind] = (due_ms, self.count)

    @rule(key=KEYS, kind=KINDS)
    def disarm(self, key: int, kind: int) -> None:
        self.deadlines.disarm(key, kind)
        self.model.pop((key, kind), None)

    @rule(now_ms=st.integers(0, 60))
    def take_what_is_due(self, now_ms: int) -> None:
        due = sorted((armed, name) for name, armed in self.model.items() if armed[0] <= now_ms)
        assert self.deadlines.due(now_ms) == [name for _, name in due]
        for _, name in due:
            del self.model[name]

    @invariant()
    def the_next_one_is_known(self) -> None:
        assert self.deadlines.next_ms() == min((due_ms for due_ms, _ in self.model.values()), default=None)
        assert len(self.deadlines) == len(self.model)


DeadlinesMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestDeadlinesMachine = DeadlinesMachine.TestCase


def test_what_is_disarmed_or_replaced_does_not_pile_up() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for count in range(10_000):
        deadlines.arm(count % 10, 10**9 + count, 0)
        deadlines.arm(10_000 + count, 10**9, 1)
        deadlines.disarm(10_000 + count, 1)
        assert len(deadlines._heap) <= 2 * len(deadlines) + 66
    assert deadlines.next_ms() == 10**9 + 9_990


def test_keys_are_never_compared_with_each_other() -> None:
    deadlines: Deadlines[object] = Deadlines()
    first, second = object(), object()
    deadlines.arm(first, 5, 0)
    deadlines.arm(second, 5, 0)
    assert deadlines.due(4) == []
    assert deadlines.due(5) == [(first, 0), (second, 0)]
    assert deadlines.next_ms() is None


def test_what_is_put_off_comes_again_at_the_next_look_and_wakes_nobody() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key in ("a", "b"):
        deadlines.arm(key, 10, 0)
    assert deadlines.due(10) == [("a", 0), ("b", 0)]
    deadlines.put_off("a", 0)
    deadlines.put_off("b", 0)
    assert deadlines.next_ms() is None
    deadlines.disarm("b", 0)
    assert deadlines.due(10) == [("a", 0)]
    assert deadlines.due(10) == []
