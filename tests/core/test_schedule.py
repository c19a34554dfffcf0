"""Who starts next: bands, slots, keys, limits and trials; and the whole of it against a naive model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamtask.core.schedule import AGED_TURNS_MAX, Schedule
from streamtask.core.slot_sharing import AHEAD_MAX_MS, MOST_MIN, WHOLE
from streamtask.core.suspects import ALONE, GROUPS_ON_TRIAL, ONLY, SINGLE, Groups, stage_of
from streamtask.domain.model import BANDS, HandlerKind

ASYNC, THREAD, PROCESS = HandlerKind.ASYNC, HandlerKind.THREAD, HandlerKind.PROCESS
AGEING_MS = 30_000
ALONE_MS = 5_000
HIGH, NORMAL, LOW = range(3)


@dataclass(eq=False)
class Item:
    band: int = NORMAL
    priority: int = 5
    offset: int = 0
    kind: HandlerKind = ASYNC
    task_type: str = "any"
    ordering_key: str | None = None
    shard: int = 0
    queued_ms: int = 0
    suspect: bool = False
    trial: int = 0


def schedule(slots: int = 1_000, *, limits: dict[str, int | None] | None = None, **kinds: int) -> Schedule[Item]:
    counts = {ASYNC: slots, **{HandlerKind(kind): count for kind, count in kinds.items()}}
    return Schedule(BANDS, counts, limits or {}, AGEING_MS, ALONE_MS, Groups(GROUPS_ON_TRIAL))


def add(to: Schedule[Item], *items: Item, now_ms: int = 0) -> None:
    for item in items:
        to.add(item, now_ms)


def some(count: int, **fields: object) -> list[Item]:
    return [Item(offset=offset, **fields) for offset in range(count)]  # type: ignore[arg-type]


def test_inside_a_band_the_most_urgent_goes_first_and_of_equals_the_first_queued() -> None:
    plan = schedule()
    items = [Item(priority=priority, offset=offset) for offset, priority in enumerate([4, 7, 5, 7, 4, 6])]
    add(plan, *items)
    assert [items.index(item) for item in plan.pick_many(9, 0)] == [1, 3, 5, 2, 0, 4]


def test_while_all_bands_have_work_turns_are_16_to_4_to_1() -> None:
    plan = schedule(10_000)
    for band in (LOW, NORMAL, HIGH):
        add(plan, *some(1_000, band=band))
    counts = Counter(item.band for item in plan.pick_many(210, 0))
    assert counts == {HIGH: 160, NORMAL: 40, LOW: 10}


def test_high_takes_the_next_free_slot_unless_another_bands_turn_is_due() -> None:
    plan = schedule(8)
    add(plan, *some(20, band=LOW))
    low = plan.pick_many(20, 0)
    assert len(low) == 7
    high = Item(band=HIGH)
    add(plan, high)
    assert plan.pick(0) is high, "the kept slot"
    late = Item(band=HIGH)
    add(plan, late)
    assert plan.pick(0) is None
    plan.release(low[0])
    assert plan.pick(0) is late


def test_a_turn_that_is_due_goes_before_high() -> None:
    plan = schedule(10_000)
    add(plan, *some(100, band=HIGH), *some(100, band=NORMAL), *some(100, band=LOW))
    assert [item.band for item in plan.pick_many(22, 0)] == [HIGH] * 16 + [NORMAL] * 4 + [LOW] + [HIGH]


@pytest.mark.parametrize(("slots", "kept"), [(1, 0), (2, 1), (7, 1), (8, 1), (16, 2), (100, 12)])
def test_one_slot_in_eight_is_kept_for_high(slots: int, kept: int) -> None:
    plan = schedule(slots)
    add(plan, *some(2 * slots, band=LOW), *some(2 * slots, band=NORMAL))
    assert len(plan.pick_many(2 * slots, 0)) == slots - kept
    assert plan.free(ASYNC) == kept
    add(plan, *some(2 * slots, band=HIGH))
    assert [item.band for item in plan.pick_many(2 * slots, 0)] == [HIGH] * kept
    assert plan.pick(0) is None


def test_high_may_take_every_slot() -> None:
    plan = schedule(16)
    add(plan, *some(20, band=HIGH))
    assert len(plan.pick_many(20, 0)) == 16


def test_each_kind_has_slots_of_its_own() -> None:
    plan = schedule(2, thread=1)
    items = [Item(kind=kind, band=HIGH) for kind in (PROCESS, ASYNC, ASYNC, ASYNC, THREAD, THREAD)]
    add(plan, *items)
    assert plan.pick_many(9, 0) == [items[1], items[2], items[4]]
    assert (plan.free(ASYNC), plan.free(THREAD), plan.free(PROCESS)) == (0, 0, 0)
    plan.release(items[4])
    assert plan.pick_many(9, 0) == [items[5]]


def worst_wait(plan: Schedule[Item], now_ms: int) -> int:
    """Picks until a claim of low that comes at the worst moment (low has just had its turn), high and normal full."""
    add(plan, Item(band=LOW))
    first = plan.pick(now_ms)
    assert first is not None
    assert first.band == LOW
    return picks_until_low(plan, now_ms)


def picks_until_low(plan: Schedule[Item], now_ms: int) -> int:
    add(plan, *some(200, band=HIGH), *some(200, band=NORMAL), Item(band=LOW), now_ms=now_ms)
    for picks in range(1, 400):
        item = plan.pick(now_ms)
        assert item is not None
        if item.band == LOW:
            return picks
    raise AssertionError("low starves")


def test_low_waits_for_at_most_twice_the_turns_of_the_others() -> None:
    assert worst_wait(schedule(10_000), 0) == 2 * (16 + 4) + 1
    aged = schedule(10_000)
    now_ms = 100 * AGEING_MS
    add(aged, *some(200, band=HIGH), *some(200, band=NORMAL), *some(200, band=LOW))
    waits, since = [], 0
    for item in aged.pick_many(500, now_ms):
        since += 1
        if item.band == LOW:
            waits.append(since)
            since = 0
    assert max(waits) <= 2 * (16 + 4 + 2 * AGED_TURNS_MAX) + 1


def test_a_band_whose_oldest_has_waited_gets_more_turns() -> None:
    plan = schedule(10_000)
    add(plan, *some(900, band=HIGH), *some(900, band=LOW))
    for item in plan.pick_many(17, 0):
        plan.release(item)
    counts = Counter(item.band for item in plan.pick_many(16 + 3 + 1 + 3, 3 * AGEING_MS))
    assert counts == {HIGH: 19, LOW: 4}
    plan.pick_many(200, 10**9)
    counts = Counter(item.band for item in plan.pick_many(49 * 4, 10**9))
    assert counts[LOW] == 17 * 4


# --- Keys ---


def test_claims_of_one_key_run_one_at_a_time_in_order() -> None:
    plan = schedule()
    first, second, third = some(3, ordering_key="k")
    other = Item(ordering_key="other")
    add(plan, first, second, third, other)
    assert plan.pick_many(9, 0) == [first, other]
    plan.release(first)
    assert plan.pick(0) is None, "the end of the first one is not settled yet"
    plan.finish(first)
    assert plan.pick_many(9, 0) == [second]
    plan.release(second)
    plan.finish(second)
    assert plan.pick_many(9, 0) == [third]


def test_order_of_a_key_wins_over_priority() -> None:
    plan = schedule()
    first, second = Item(ordering_key="k", priority=4), Item(ordering_key="k", priority=7, offset=1)
    add(plan, first, second)
    assert plan.pick_many(9, 0) == [first]


def test_the_same_key_in_another_band_or_shard_is_another_key() -> None:
    plan = schedule()
    items = [Item(ordering_key="k"), Item(ordering_key="k", band=LOW), Item(ordering_key="k", shard=1)]
    add(plan, *items)
    assert len(plan.pick_many(9, 0)) == 3


def test_a_retry_keeps_its_key_and_comes_back_before_those_behind_it() -> None:
    plan = schedule()
    first, second = some(2, ordering_key="k")
    add(plan, first, second)
    assert plan.pick(0) is first
    plan.release(first)
    assert plan.pick(0) is None
    add(plan, first)
    assert plan.pick_many(9, 0) == [first]


def test_a_held_key_lets_nobody_pass() -> None:
    plan = schedule()
    first, second = some(2, ordering_key="k")
    plan.hold(first)
    add(plan, second)
    assert plan.pick(0) is None
    add(plan, first)
    assert plan.pick_many(9, 0) == [first]
    plan.release(first)
    plan.finish(first)
    assert plan.pick_many(9, 0) == [second]


def test_one_that_is_held_behind_another_is_not_passed_either() -> None:
    plan = schedule()
    first, held, last = some(3, ordering_key="k")
    add(plan, first)
    plan.hold(held)
    add(plan, last)
    assert plan.pick(0) is first
    plan.release(first)
    plan.finish(first)
    assert plan.pick(0) is None
    plan.finish(held)
    assert plan.pick(0) is last


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_one_that_is_cancelled_in_line_holds_up_nobody(gone: int) -> None:
    plan = schedule()
    line = some(3, ordering_key="k")
    add(plan, *line)
    plan.remove(line[gone])
    started = []
    if gone == 0:
        assert plan.pick(0) is None, "its end is not settled yet"
    plan.finish(line[gone])
    while (item := plan.pick(0)) is not None:
        started.append(item)
        plan.release(item)
        plan.finish(item)
    assert started == [item for at, item in enumerate(line) if at != gone]
    assert not plan._lines


# --- Shared slots ---


def learned(plan: Schedule[Item], ms: float, runs: int = 200) -> None:
    for _ in range(runs):
        plan.pace.ran("any", ms)


@pytest.mark.parametrize("kind", [THREAD, PROCESS])
def test_executions_of_a_short_type_share_slots_and_those_of_an_unknown_one_do_not(kind: HandlerKind) -> None:
    plan = schedule(thread=2, process=2)
    add(plan, *some(2 * WHOLE, kind=kind, band=HIGH), *some(4, kind=kind, band=HIGH, task_type="new", priority=4))
    running = plan.pick_many(9, 0)
    assert len(running) == 2, "nothing is known yet"
    learned(plan, 0.02)
    assert len(plan.pick_many(9 * WHOLE, 0)) == 0, "both slots are taken whole"
    plan.release(running[0])
    assert len(plan.pick_many(9 * WHOLE, 0)) == (WHOLE if kind is PROCESS else MOST_MIN + 1)


def test_a_type_that_takes_longer_than_what_shares_may_wait_shares_with_nobody() -> None:
    plan = schedule(process=4)
    learned(plan, AHEAD_MAX_MS)
    add(plan, *some(9, kind=PROCESS, band=HIGH))
    assert len(plan.pick_many(9, 0)) == 4


def test_a_suspect_takes_a_whole_slot_however_short_it_is() -> None:
    plan = schedule(2, process=2)
    learned(plan, 0.02)
    suspects = some(2, kind=PROCESS, band=HIGH, suspect=True)
    add(plan, *some(5, band=HIGH), *suspects)
    assert Counter(item.kind for item in plan.pick_many(9, 0)) == {ASYNC: 5, PROCESS: 1}, "half are left to others"
    assert plan.parts_of(suspects[0]) == WHOLE


def test_short_ones_leave_an_eighth_of_all_slots_to_the_first_band() -> None:
    plan = schedule(process=2)
    learned(plan, 0.02)
    add(plan, *some(2 * WHOLE, kind=PROCESS, band=LOW))
    assert len(plan.pick_many(9 * WHOLE, 0)) == 2 * WHOLE * 7 // 8
    add(plan, *some(2 * WHOLE, kind=PROCESS, band=HIGH))
    assert len(plan.pick_many(9 * WHOLE, 0)) == 2 * WHOLE // 8


def test_long_ones_leave_a_whole_slot_to_the_first_band_even_beside_short_ones() -> None:
    plan = schedule(process=2)
    learned(plan, 0.02)
    add(plan, *some(2, kind=PROCESS, band=LOW, task_type="long"), *some(9, kind=PROCESS, band=LOW))
    assert [item.task_type for item in plan.pick_many(99, 0)] == ["long"], "the next of its band in line is long, too"
    add(plan, Item(kind=PROCESS, band=HIGH, task_type="long"))
    assert len(plan.pick_many(99, 0)) == 1


def test_a_limit_counts_executions_not_slots() -> None:
    plan = schedule(process=2, limits={"any": 3})
    learned(plan, 0.02)
    add(plan, *some(9, kind=PROCESS, band=HIGH))
    assert len(plan.pick_many(9, 0)) == 3


# --- Limits and trials ---


def test_a_type_at_its_limit_is_put_aside_and_others_go_on() -> None:
    plan = schedule(limits={"slow": 2, "free": None})
    slow = some(4, task_type="slow", priority=7)
    free = some(2, task_type="free")
    add(plan, *slow, *free)
    assert plan.pick_many(9, 0) == [*slow[:2], *free]
    plan.release(slow[1])
    assert plan.pick_many(9, 0) == [slow[2]]


def test_what_was_aside_comes_back_in_its_place() -> None:
    plan = schedule(limits={"slow": 1})
    slow = [Item(task_type="slow", priority=priority) for priority in (6, 5, 7)]
    add(plan, slow[0])
    assert plan.pick(0) is slow[0]
    add(plan, slow[1], slow[2])
    assert plan.pick(0) is None
    add(plan, Item(priority=4))
    plan.release(slow[0])
    assert plan.pick(0) is slow[2]


def test_a_limit_holds_over_all_bands() -> None:
    plan = schedule(limits={"slow": 1})
    low, high = Item(task_type="slow", band=LOW), Item(task_type="slow", band=HIGH)
    add(plan, low)
    assert plan.pick(0) is low
    add(plan, high, Item(task_type="slow", band=LOW))
    assert plan.pick(0) is None
    plan.release(low)
    assert plan.pick(0) is high


def test_cancelling_the_one_that_was_next_does_not_hold_up_its_type() -> None:
    plan = schedule(limits={"slow": 1})
    first, second = some(2, task_type="slow")
    add(plan, first, second)
    plan.remove(first)
    assert plan.pick(0) is second


def test_suspects_hold_at_most_half_of_the_slots_of_their_kind() -> None:
    """Defect: they filled what there was, and new requests hardly started."""
    plan = schedule(9)
    suspects, others = some(20, suspect=True, band=HIGH), some(20, band=HIGH)
    add(plan, *suspects, *others)
    assert plan.pick_many(30, 0) == [*suspects[:5], *others[:4]]
    plan.release(suspects[0])
    assert plan.pick_many(30, 0) == [others[4]], "its end is not settled yet"
    plan.leave(suspects[0])
    plan.acquit(suspects[1])
    assert plan.pick_many(30, 0) == [], "no slot is free"
    plan.release(others[0])
    plan.release(others[1])
    assert plan.pick_many(30, 0) == suspects[5:7], "an acquitted one is like all others"


def test_suspects_are_picked_into_groups_of_their_stage_and_only_so_many_groups_are_on_trial() -> None:
    plan = schedule()
    wide, narrow, single = (
        some(3, suspect=True),
        some(3, suspect=True, trial=SINGLE - 1),
        some(3, suspect=True, trial=SINGLE),
    )
    add(plan, *wide, *narrow, *single)
    assert set(plan.pick_many(30, 0)) == {*wide, *narrow, single[0]}
    assert len({plan.group_of(item) for item in wide}) == 1
    assert [len({plan.group_of(item) for item in pair}) for pair in (narrow, narrow[:2])] == [2, 1]
    assert plan.on_trial == 7
    plan.acquit(narrow[2])
    assert plan.pick_many(30, 0) == [single[1]]
    assert len({plan.group_of(item) for item in single[:2]}) == 2


def test_a_suspect_of_a_limited_type_waits_for_its_type_too() -> None:
    plan = schedule(limits={"slow": 1})
    first, second = some(2, suspect=True, task_type="slow")
    add(plan, first, second)
    assert plan.pick_many(9, 0) == [first]
    plan.acquit(first)
    assert plan.pick_many(9, 0) == []
    plan.release(first)
    plan.finish(first)
    assert plan.pick_many(9, 0) == [second]


def test_the_only_one_on_trial_waits_for_the_others_and_no_other_suspect_starts_meanwhile() -> None:
    plan = schedule()
    first, second, only, other = Item(suspect=True), Item(suspect=True), Item(suspect=True, trial=ONLY), Item()
    add(plan, first)
    assert plan.pick(0) is first
    add(plan, only, second, other)
    assert plan.pick_many(9, 1) == [other]
    plan.acquit(first)
    assert plan.pick_many(9, 2) == [only]
    plan.acquit(only)
    assert plan.pick_many(9, 3) == [second]


def test_suspects_go_on_when_the_only_one_on_trial_cannot_start_or_is_gone() -> None:
    for goes in (True, False):
        plan = schedule(limits={"slow": 1})
        slow, only, second = (
            Item(task_type="slow"),
            Item(suspect=True, trial=ONLY, task_type="slow"),
            Item(suspect=True),
        )
        add(plan, slow)
        assert plan.pick(0) is slow
        add(plan, only, second)
        assert plan.pick_many(9, 1) == []
        if goes:
            plan.finish(only)
        assert plan.pick_many(9, 1 if goes else 1 + ALONE_MS) == [second]


def lone(**fields: object) -> Item:
    return Item(suspect=True, trial=ALONE, **fields)  # type: ignore[arg-type]


def test_one_that_is_to_be_alone_goes_first_when_all_has_ended_and_nothing_starts_beside_it() -> None:
    plan = schedule(process=2)
    running, urgent, alone = Item(), Item(band=HIGH, priority=9), lone(kind=PROCESS, band=LOW, priority=1)
    add(plan, running)
    assert plan.pick(0) is running
    add(plan, urgent, alone)
    assert plan.pick(1) is None, "what runs is waited for"
    plan.release(running)
    assert plan.pick_many(9, 2) == [alone]
    assert plan.pick(3) is None
    plan.acquit(alone)
    assert plan.pick_many(9, 4) == [urgent]


def test_one_that_is_to_be_alone_waits_only_so_long_for_what_runs() -> None:
    plan = schedule()
    endless, other, alone = Item(), Item(), lone()
    add(plan, endless)
    assert plan.pick(0) is endless
    add(plan, other, alone)
    assert plan.pick(10) is None
    assert plan.pick(10 + ALONE_MS - 1) is None
    assert plan.pick(10 + ALONE_MS) is alone, "the endless one is beside it"
    assert plan.pick(10 + 100 * ALONE_MS) is None, "nothing starts beside it, however long its trial is"
    plan.leave(alone)
    assert plan.pick(10 + 100 * ALONE_MS) is other


@pytest.mark.parametrize("limits", [{}, {"any": 1}], ids=["no slot is free", "its type is at its limit"])
def test_one_that_is_to_be_alone_and_cannot_start_holds_nobody_up_for_ever(limits: dict[str, int | None]) -> None:
    plan = schedule(process=2 if limits else 1, limits=limits)
    endless, other, alone = Item(kind=PROCESS, band=HIGH), Item(task_type="other"), lone(kind=PROCESS, band=HIGH)
    add(plan, endless)
    assert plan.pick(0) is endless
    add(plan, alone, other)
    assert plan.pick(1) is None
    assert plan.pick_many(9, 1 + ALONE_MS) == [other]
    plan.release(endless)
    assert plan.pick_many(9, 2 + ALONE_MS) == [alone], "before anything else"


def test_one_of_a_kind_that_this_worker_has_no_slots_for_holds_nobody_up() -> None:
    plan = schedule(process=0)
    other = Item()
    add(plan, lone(kind=PROCESS), other)
    assert plan.pick_many(9, 0) == [other]


@pytest.mark.parametrize("goes", ["cancelled", "with its shard", "unpicked"])
def test_one_that_was_to_be_alone_and_is_gone_holds_nobody_up(goes: str) -> None:
    plan = schedule()
    running, other, alone = Item(shard=1), Item(shard=1), lone()
    add(plan, running)
    assert plan.pick(0) is running
    add(plan, alone, other)
    assert plan.pick(1) is None
    if goes == "cancelled":
        plan.finish(alone)
    elif goes == "with its shard":
        plan.forget_shard(0)
    else:
        plan.release(running)
        assert plan.pick(2) is alone
        plan.release(alone)
        plan.leave(alone)
    assert plan.pick_many(9, 2) == [other]


def test_who_is_to_be_alone_waits_for_the_trial_of_another() -> None:
    plan = schedule()
    suspect, beside, first, second = Item(suspect=True), Item(), lone(offset=1), lone(offset=2)
    add(plan, suspect)
    assert plan.pick(0) is suspect
    add(plan, first, second, beside)
    assert plan.pick_many(9, 1) == [], "what runs is waited for"
    plan.release(suspect)
    plan.finish(suspect)
    assert plan.pick_many(9, 3) == [first]
    plan.release(first)
    assert plan.pick(4) is None, "its end is not settled yet"
    plan.finish(first)
    assert plan.pick_many(9, 5) == [second]
    plan.finish(second)
    assert plan.pick_many(9, 6) == [beside]


# --- Counts, shards, bounds ---


def test_a_forgotten_shard_leaves_nothing_but_the_slots_of_what_runs() -> None:
    plan = schedule(2, limits={"slow": 1})
    running = Item(ordering_key="k", task_type="slow")
    add(plan, running)
    assert plan.pick(0) is running
    add(plan, Item(ordering_key="k", offset=1), Item(task_type="slow"), Item(), Item(suspect=True))
    other = Item(shard=1, band=HIGH)
    add(plan, other)
    plan.forget_shard(0)
    assert [plan.queued(band) for band in (HIGH, NORMAL, LOW)] == [1, 0, 0]
    assert plan.pick_many(9, 0) == [other]
    again = Item(ordering_key="k", band=HIGH)
    add(plan, again)
    assert plan.free(ASYNC) == 0
    plan.release(running)
    plan.finish(running)
    assert plan.pick_many(9, 0) == [again]


def test_counts_and_the_oldest_are_told_per_band() -> None:
    plan = schedule()
    assert plan.oldest_ms(LOW) is None
    old, young = Item(band=LOW, queued_ms=5, priority=1), Item(band=LOW, queued_ms=9, priority=3)
    add(plan, old, now_ms=5)
    add(plan, young, now_ms=9)
    assert (plan.queued(LOW), plan.oldest_ms(LOW)) == (2, 5)
    assert plan.pick(9) is young
    assert (plan.queued(LOW), plan.oldest_ms(LOW)) == (1, 5)
    plan.remove(old)
    assert (plan.queued(LOW), plan.oldest_ms(LOW)) == (0, None)


def held(plan: Schedule[Item]) -> int:
    return sum(len(home) for homes in plan._heaps for home in homes) + sum(
        len(lane.heap) for lane in plan._lanes.values()
    )


def test_what_is_cancelled_does_not_pile_up() -> None:
    plan = schedule(0, limits={"slow": 1})
    for round_ in range(200):
        items = [*some(20), *some(20, task_type="slow"), *some(5, ordering_key=str(round_))]
        add(plan, *items)
        for item in items:
            plan.finish(item)
        assert held(plan) + sum(map(len, plan._since)) + len(plan._lane_of) < 700
        assert not plan._lines


def test_a_starving_one_at_the_front_does_not_keep_those_behind_it_in_memory() -> None:
    plan = schedule(2)
    add(plan, Item(priority=4))
    for _ in range(5_000):
        item = Item(priority=7)
        add(plan, item)
        assert plan.pick(0) is item
        plan.release(item)
        plan.finish(item)
    assert held(plan) < 10
    assert sum(map(len, plan._since)) < 100


# --- Against a naive model ---

TYPES = {"free": None, "one": 1, "two": 2}
SLOTS = {ASYNC: 4, THREAD: 2, PROCESS: 1}


class NaiveSchedule:
    """The same rules, by looking at everything each time."""

    def __init__(self) -> None:
        self.queue: list[Item] = []  # in the order of add
        self.running: list[Item] = []
        self.lines: dict[tuple[int, int, str], list[Item]] = {}
        self.turns = [band.weight for band in BANDS]
        self.groups: Groups[Item] = Groups(GROUPS_ON_TRIAL)
        self.spared = False
        self.taken: dict[Item, int] = {}  # parts of a slot, by what runs
        self.parts: dict[str, int] = {}  # what a type takes when it is known
        self.runnable_since: list[Item] = []
        self.waits_until: dict[Item, int] = {}  # of those that are to be alone: how long others wait for them

    @staticmethod
    def line(item: Item) -> tuple[int, int, str]:
        return (item.shard, item.band, str(item.ordering_key))

    def front(self, item: Item) -> bool:
        return item.ordering_key is None or self.lines[self.line(item)][0] is item

    def note_runnable(self) -> None:
        known = set(map(id, self.runnable_since))
        self.runnable_since = [item for item in self.runnable_since if item in self.queue]
        self.runnable_since += [item for item in self.queue if self.front(item) and id(item) not in known]

    def room_of(self, kind: HandlerKind) -> bool:
        return sum(self.taken[other] for other in self.running if other.kind is kind) < SLOTS[kind] * WHOLE

    def has_room(self, item: Item) -> bool:
        limit = TYPES[item.task_type]
        of_type = sum(other.task_type == item.task_type for other in self.running)
        return self.room_of(item.kind) and (limit is None or of_type < limit)

    def may_run(self, item: Item) -> bool:
        return (
            self.front(item)
            and self.has_room(item)
            and self.leaves_room(item, SLOTS[item.kind] / 8)
            and (not item.suspect or self.may_be_tried(item))
        )

    def leaves_room(self, item: Item, kept: float) -> bool:
        """Whether so many slots are left to the first band."""
        slots = SLOTS[item.kind]
        others = sum(self.taken[one] for one in self.running if one.kind is item.kind and one.band != HIGH)
        return item.band == HIGH or others < (slots - (kept if slots >= 2 else 0)) * WHOLE

    def parts_of(self, item: Item) -> int:
        sharing = sum(other.kind is item.kind and self.taken[other] < WHOLE for other in self.running)
        if item.suspect or (sharing >= MOST_MIN and item.kind is not PROCESS):
            return WHOLE
        return self.parts.get(item.task_type, WHOLE)

    def may_be_tried(self, item: Item) -> bool:
        half = (SLOTS[item.kind] + 1) // 2
        room = self.groups.has_room(stage_of(item.trial), item.kind)
        return not self.spared and self.groups.tried_of(item.kind) < half and room

    @staticmethod
    def is_narrow(item: Item) -> bool:
        return item.suspect and stage_of(item.trial) >= ONLY

    def pick_narrow(self, now_ms: int) -> tuple[Item | None, bool]:
        """The one that nobody may be on trial beside, if it goes now; whether all others wait for the sake of one."""
        if self.groups.narrowest == ALONE:
            return None, True
        self.spared = False
        self.note_runnable()
        first = next((item for item in self.runnable_since if self.is_narrow(item)), None)
        if first is None:
            return None, False
        waits = now_ms < self.waits_until.setdefault(first, now_ms + ALONE_MS)
        alone, full = stage_of(first.trial) == ALONE, not self.has_room(first)
        if bool(self.running) and (waits or full) if alone else self.groups.tried > 0 or full:
            self.spared = waits
            return None, alone and waits
        return self.take(first), True

    def pick(self, now_ms: int) -> Item | None:
        if self.queue and any(self.room_of(kind) for kind in SLOTS):
            narrow, holds = self.pick_narrow(now_ms)
            if narrow is not None or holds:
                return narrow
        first: dict[tuple[int, HandlerKind], Item] = {}
        for item in self.queue:
            place = (item.band, item.kind)
            if not self.is_narrow(item) and self.may_run(item):
                if place not in first or item.priority > first[place].priority:
                    first[place] = item
        best: dict[int, Item] = {}
        for item in (one for one in self.queue if one in first.values()):
            kept = 1 if self.parts_of(item) == WHOLE else 0
            if self.leaves_room(item, kept) and (item.band not in best or item.priority > best[item.band].priority):
                best[item.band] = item
        if not best:
            return None
        if not any(self.turns[band] > 0 for band in best):
            for band, weight in enumerate(band.weight for band in BANDS):
                waiting = [item for item in self.runnable_since if item.band == band]
                aged = (now_ms - waiting[0].queued_ms) // AGEING_MS if waiting else 0
                self.turns[band] = weight + min(aged, AGED_TURNS_MAX)
        return self.take(best[min(band for band in best if self.turns[band] > 0)])

    def take(self, item: Item) -> Item:
        self.turns[item.band] -= 1
        self.waits_until.pop(item, None)
        self.queue.remove(item)
        self.taken[item] = self.parts_of(item)
        self.running.append(item)
        if item.suspect:
            self.groups.join(item)
        return item


class ScheduleMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.plan: Schedule[Item] = Schedule(BANDS, SLOTS, TYPES, AGEING_MS, ALONE_MS, Groups(GROUPS_ON_TRIAL))
        self.naive = NaiveSchedule()
        self.now_ms = 0
        self.offset = 0
        self.waiting: list[Item] = []  # released, may come back
        self.ending: list[Item] = []  # removed or released, to be finished

    @rule(
        band=st.sampled_from([HIGH, NORMAL, NORMAL, LOW]),
        priority=st.integers(4, 6),
        kind=st.sampled_from([ASYNC, ASYNC, THREAD, PROCESS]),
        task_type=st.sampled_from(list(TYPES)),
        key=st.sampled_from([None, None, "a", "b"]),
        shard=st.integers(0, 1),
        suspect=st.integers(0, 4).map(lambda value: value == 0),
        trial=st.sampled_from([0, 0, SINGLE - 1, SINGLE, ONLY, ALONE]),
        hold=st.integers(0, 5).map(lambda value: value == 0),
        count=st.integers(1, 4),
    )
    def claims_come(
        self, band: int, priority: int, kind: HandlerKind, task_type: str, key: str | None, shard: int,
        suspect: bool, trial: int, hold: bool, count: int,
    ) -> None:  # fmt: skip
        for _ in range(count):
            self.offset += 1
            item = Item(band, priority, self.offset, kind, task_type, key, shard, self.now_ms, suspect, trial)
            if hold:
                self.plan.hold(item)
                self._into_line(item)
                self.waiting.append(item)
            else:
                self._add(item)

    def _into_line(self, item: Item) -> None:
        if item.ordering_key is not None:
            line = self.naive.lines.setdefault(self.naive.line(item), [])
            if item not in line:
                line.append(item)

    def _add(self, item: Item) -> None:
        item.queued_ms = self.now_ms
        self.plan.add(item, self.now_ms)
        self._into_line(item)
        self.naive.queue.append(item)

    @rule(ms=st.sampled_from([1, 500, ALONE_MS, AGEING_MS, 5 * AGEING_MS]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @rule(count=st.integers(1, 5))
    def some_are_picked(self, count: int) -> None:
        for _ in range(count):
            expected = self.naive.pick(self.now_ms)
            assert self.plan.pick(self.now_ms) is expected
            self.naive.note_runnable()
            if expected is None:
                return

    @rule(
        task_type=st.sampled_from(list(TYPES)), ms=st.sampled_from([0.0, 0.1, 2.0, 8.0, 300.0]), runs=st.integers(1, 40)
    )
    def a_type_is_learned(self, task_type: str, ms: float, runs: int) -> None:
        for _ in range(runs):
            self.plan.pace.ran(task_type, ms)
        self.naive.parts[task_type] = self.plan.pace.parts[task_type]

    @precondition(lambda self: self.naive.running)
    @rule(at=st.integers(0, 99), retry=st.booleans())
    def one_ends(self, at: int, retry: bool) -> None:
        item = self.naive.running.pop(at % len(self.naive.running))
        self.plan.release(item)
        if retry:
            self.waiting.append(item)
            self.plan.leave(item)
            self.naive.groups.leave(item)
        else:
            self.ending.append(item)

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 99))
    def one_comes_back(self, at: int) -> None:
        self._add(self.waiting.pop(at % len(self.waiting)))

    @precondition(lambda self: self.naive.queue)
    @rule(at=st.integers(0, 99))
    def one_is_cancelled(self, at: int) -> None:
        item = self.naive.queue.pop(at % len(self.naive.queue))
        self.plan.remove(item)
        self.ending.append(item)

    @precondition(lambda self: self.ending)
    @rule(at=st.integers(0, 99))
    def an_end_is_settled(self, at: int) -> None:
        item = self.ending.pop(at % len(self.ending))
        self.plan.finish(item)
        self.naive.groups.leave(item)
        if item.ordering_key is not None and item in self.naive.lines.get(self.naive.line(item), []):
            self.naive.lines[self.naive.line(item)].remove(item)

    @precondition(lambda self: self.naive.running)
    @rule(at=st.integers(0, 99))
    def one_is_acquitted(self, at: int) -> None:
        item = self.naive.running[at % len(self.naive.running)]
        self.plan.acquit(item)
        self.naive.groups.acquit(item)

    @rule(shard=st.integers(0, 1))
    def a_shard_goes(self, shard: int) -> None:
        self.plan.forget_shard(shard)
        self.naive.queue = [item for item in self.naive.queue if item.shard != shard]
        self.waiting = [item for item in self.waiting if item.shard != shard]
        self.naive.lines = {name: line for name, line in self.naive.lines.items() if name[0] != shard}
        for item in [item for item in self.naive.running if item.shard == shard]:
            self.naive.running.remove(item)
            self.plan.release(item)
            self.plan.finish(item)
            self.naive.groups.leave(item)
        self.ending = [item for item in self.ending if item.shard != shard]

    @invariant()
    def counts_agree(self) -> None:
        self.naive.note_runnable()
        for band in range(3):
            assert self.plan.queued(band) == sum(item.band == band for item in self.naive.queue)
            oldest = [item.queued_ms for item in self.naive.runnable_since if item.band == band]
            assert self.plan.oldest_ms(band) == (oldest[0] if oldest else None)
        for kind, total in SLOTS.items():
            taken = sum(self.naive.taken[item] for item in self.naive.running if item.kind is kind)
            assert self.plan.free(kind) == max(0, total * WHOLE - taken) // WHOLE
            whole = [item for item in self.naive.running if item.kind is kind and self.naive.taken[item] == WHOLE]
            assert len(whole) <= total
        assert self.plan.on_trial == self.naive.groups.tried


ScheduleMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestScheduleMachine = ScheduleMachine.TestCase
