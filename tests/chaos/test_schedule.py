"""A plan is a pure function of its seed, and leaves no fault out."""

from __future__ import annotations

import random

import pytest
from confluent_kafka import KafkaError, KafkaException

from tests.chaos.acting import Player
from tests.chaos.control import POINTS, Control
from tests.chaos.document import PAGE, written
from tests.chaos.faults import PARTS, Acting, Fault, table
from tests.chaos.schedule import possible, schedule


def test_a_seed_gives_the_same_plan_every_time() -> None:
    assert schedule(7, 20, 3) == schedule(7, 20, 3)
    assert schedule(7, 20, 3) != schedule(8, 20, 3)


def test_a_plan_does_not_depend_on_who_else_draws() -> None:
    plan = schedule(7, 5, 3)
    random.seed(1)
    random.random()
    assert schedule(7, 5, 3) == plan


@pytest.mark.parametrize("seed", range(20))
def test_twenty_minutes_have_every_fault_and_five_nearly_all(seed: int) -> None:
    every = {fault.name for fault in possible(3)}
    assert {one.fault for one in schedule(seed, 20, 3)} == every
    assert len({one.fault for one in schedule(seed, 5, 3)}) >= 0.8 * len(every)


@pytest.mark.parametrize("seed", range(20))
def test_one_broker_has_no_fault_that_needs_three(seed: int) -> None:
    faults = table()
    assert all(faults[one.fault].brokers == 1 for one in schedule(seed, 20, 1))


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_begins_nothing_in_its_last_seconds_and_no_fault_more_often_than_it_may(seed: int) -> None:
    plan, faults = schedule(seed, 20, 3), table()
    assert [one.at_s for one in plan] == sorted(one.at_s for one in plan)
    assert plan[-1].at_s <= 20 * 60 - 3
    for fault in faults.values():
        if fault.most is not None:
            assert sum(one.fault == fault.name for one in plan) <= fault.most


def test_only_the_named_faults_are_drawn_and_unknown_names_are_refused() -> None:
    assert {one.fault for one in schedule(1, 2, 1, ("kill_worker", "scale"))} == {"kill_worker", "scale"}
    with pytest.raises(ValueError, match="no such fault: kill_wrker"):
        schedule(1, 2, 1, ("kill_wrker",))
    with pytest.raises(ValueError, match="none of move_group_coordinator"):
        schedule(1, 2, 1, ("move_group_coordinator",))


def test_every_fault_says_what_it_does_how_it_is_undone_and_what_it_claims() -> None:
    for fault in table().values():
        assert fault.does, fault.name
        assert fault.undone, fault.name
        assert fault.claims, fault.name
        assert fault.claims <= PARTS, fault.name


def test_there_is_a_fault_for_each_point_where_a_worker_can_be_held() -> None:
    assert {f"hold_{point}" for point in POINTS[1:]} <= table().keys()


def test_what_is_set_in_the_strip_of_memory_is_seen_by_whoever_opens_it(tmp_path: object) -> None:
    one = Control.create(tmp_path / "control")  # type: ignore[operator]
    other = Control(one.path)
    assert (other.point, other.clock_ms) == ("", 0)
    one.point, one.clock_ms = "commit", -3_600_000
    assert (other.point, other.clock_ms) == ("commit", -3_600_000)
    other.point = ""
    assert (one.point, one.clock_ms) == ("", -3_600_000)


class _Quiet:
    """A stage that nothing acts on."""

    acting = ""

    def begin(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def _fault(name: str, log: list[str], claims: str, steps: int = 2) -> Fault:
    def act(_stage: object, _args: object) -> Acting:
        log.append(f"{name} begins")
        try:
            for _ in range(steps):
                yield 0.0
        finally:
            log.append(f"{name} is undone")

    return Fault(name, "", "", act, lambda _rng: {}, frozenset({claims}))


def _play(faults: list[Fault], seconds: float) -> Player:
    from tests.chaos.schedule import Planned

    plan = [Planned(0.0, fault.name, {}) for fault in faults]
    player = Player(_Quiet(), plan, {fault.name: fault for fault in faults}, lambda: None)  # type: ignore[arg-type]  # it asks for less
    player.play(seconds)
    return player


def test_faults_of_one_part_follow_one_another_and_those_of_others_do_not_wait() -> None:
    log: list[str] = []
    _play([_fault("a", log, "workers"), _fault("b", log, "workers"), _fault("c", log, "brokers")], 1.0)
    assert log.index("a is undone") < log.index("b begins")
    assert log.index("c begins") < log.index("a is undone")
    assert sum("undone" in line for line in log) == 3


def test_what_is_under_way_at_the_end_is_undone() -> None:
    log: list[str] = []
    player = _play([_fault("for ever", log, "workers", steps=10**9)], 0.2)
    assert log == ["for ever begins"]
    player.heal(0.1)
    assert log == ["for ever begins", "for ever is undone"]


def test_a_fault_that_fails_leaves_nothing_of_the_others_behind() -> None:
    log: list[str] = []

    def fails(_stage: object, _args: object) -> Acting:
        yield 0.1
        raise AssertionError("a promise was broken")

    broken = Fault("fails", "", "", fails, lambda _rng: {}, frozenset({"brokers"}))
    with pytest.raises(AssertionError, match="a promise was broken"):
        _play([_fault("a", log, "workers", steps=10**9), broken], 5.0)
    assert log == ["a begins", "a is undone"]


def test_a_fault_whose_own_question_is_not_answered_gives_up_and_the_run_goes_on() -> None:
    log: list[str] = []

    def asks(_stage: object, _args: object) -> Acting:
        try:
            yield 0.0
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        finally:
            log.append("asks is undone")

    asking = Fault("asks", "", "", asks, lambda _rng: {}, frozenset({"brokers"}))
    player = _play([asking, _fault("b", log, "brokers")], 1.0)
    assert log == ["asks is undone", "b begins", "b is undone"]
    assert player.given_up == 1


def test_the_page_lists_every_fault() -> None:
    text = PAGE.read_text()
    assert written(text) == text, "run: python -m tests.chaos.document"
    assert "`kill_worker`" in text
