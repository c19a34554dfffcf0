"""When a cell counts as silent: it should deliver, its log goes on, and nothing comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from streamtask.domain.ports import Cell
from streamtask.kafka.silent_cells import (
    AGAIN_MAX_S,
    ASK_S,
    LOOK_MAX_S,
    QUIET_S,
    SILENT_S,
    STUBBORN,
    SilentCells,
    Standing,
)

A, B = (0, 1), (2, 1)


class Watch:
    """Looks once a second; the logs end where `ends` says, unless the brokers are away."""

    def __init__(self, standings: Mapping[Cell, Standing], ends: Mapping[Cell, int]) -> None:
        self.cells: SilentCells[Cell] = SilentCells()
        self.standings, self.ends = dict(standings), dict(ends)
        self.readable: Mapping[Cell, int] | None = None  # where it differs: records of an open transaction
        self.away = False
        self.now_s = 100.0
        self.asked: list[float] = []
        self.reseated: list[tuple[float, Cell]] = []

    def turn(self, seconds: float = 1.0) -> None:
        self.now_s += seconds
        self.cells.look(self.standings, self.now_s)
        if silent := self.cells.silent(self.now_s):
            ends = {} if self.away else self.ends if self.readable is None else self.readable
            self.reseated += [(self.now_s, cell) for cell in self.cells.confirmed(ends, silent, self.now_s)]
        if quiet := self.cells.to_ask(self.now_s):
            self.asked.append(self.now_s)
            self.cells.answered({} if self.away else {c: self.ends[c] for c in quiet if c in self.ends}, self.now_s)

    def turns(self, count: int) -> list[Cell]:
        for _ in range(count):
            self.turn()
        return [cell for _, cell in self.reseated]

    def deliver(self, cell: Cell, received: int) -> None:
        self.standings[cell] = Standing(received, received)


def behind(*cells: Cell, **more: str) -> Watch:
    return Watch({cell: Standing(5, 5, **more) for cell in cells}, dict.fromkeys(cells, 9))  # type: ignore[arg-type]


def silent_after(watch: Watch, most_s: int = 60) -> float:
    began = watch.now_s
    while not watch.reseated:
        watch.turn()
        assert watch.now_s - began < most_s, "never"
    return watch.reseated[0][0] - began


def test_a_cell_that_is_behind_its_log_and_delivers_nothing_for_ten_seconds_is_assigned_anew() -> None:
    watch = behind(A, B)
    watch.deliver(B, 9)
    assert SILENT_S <= silent_after(watch) <= SILENT_S + QUIET_S + ASK_S + 1
    assert watch.reseated[0][1] == A
    assert [cell for _, cell in watch.reseated] == [A]


def test_a_cell_that_delivers_is_not_silent_however_far_behind_it_is() -> None:
    watch = behind(A)
    for received in range(5, 9):
        watch.deliver(A, received)
        assert watch.turns(int(SILENT_S) - 1) == []


def test_a_cell_at_its_end_is_asked_about_now_and_then_and_left_alone() -> None:
    watch = behind(A)
    watch.ends[A] = 5
    assert watch.turns(60) == []
    assert 60 / ASK_S - 2 <= len(watch.asked) <= 60 / ASK_S


def test_a_record_that_comes_after_a_long_calm_gets_its_ten_seconds() -> None:
    watch = behind(A)
    watch.ends[A] = 5
    watch.turns(100)
    watch.ends[A] = 6
    assert watch.turns(int(SILENT_S) - 1) == []
    assert watch.turns(int(ASK_S) + 2) == [A]


def test_a_position_that_passed_over_markers_counts_as_read() -> None:
    watch = behind(A)
    watch.standings[A] = Standing(5, 9)
    assert watch.turns(60) == []


def test_a_position_that_is_not_known_counts_for_nothing() -> None:
    watch = behind(A)
    watch.standings[A] = Standing(5, None)
    assert watch.turns(20) == [A]


def test_what_is_held_back_on_purpose_is_never_silent() -> None:
    for why in ("paused", "schema", "seek", "astray"):
        assert behind(A, held=why).turns(100) == [], why


def test_the_count_starts_when_it_is_held_back_no_more() -> None:
    watch = behind(A, held="paused")
    watch.turns(100)
    watch.deliver(A, 5)
    assert watch.turns(int(SILENT_S)) == []
    assert watch.turns(int(QUIET_S + ASK_S) + 1) == [A]


def test_while_no_broker_answers_nothing_is_assigned_anew_and_then_the_count_starts_again() -> None:
    watch = behind(A)
    watch.turns(8)  # seen behind
    watch.away = True
    assert watch.turns(100) == []
    watch.away = False
    assert watch.turns(int(SILENT_S)) == []
    assert watch.turns(int(QUIET_S + ASK_S) + 1) == [A]


def test_a_cell_whose_leader_did_not_answer_is_left_alone() -> None:
    watch = behind(A, B)
    watch.turns(8)
    del watch.ends[A]
    assert set(watch.turns(30)) == {B}


def test_an_owner_that_did_not_look_for_a_while_starts_again() -> None:
    watch = behind(A)
    watch.turns(12)
    watch.turn(LOOK_MAX_S + 30)  # frozen, or inside a transaction: it could not have received anything
    assert watch.turns(int(SILENT_S) - 1) == []
    assert watch.turns(int(QUIET_S + ASK_S) + 1) == [A]


def test_records_of_an_open_transaction_are_no_reason() -> None:
    watch = behind(A)
    watch.readable = {A: 5}
    assert watch.turns(100) == []
    watch.readable = {A: 9}
    assert watch.turns(20) == [A]


def gaps(reseated: Iterable[tuple[float, Cell]]) -> list[float]:
    times = [at for at, _ in reseated]
    return [later - earlier for earlier, later in pairwise(times)]


def test_one_that_stays_silent_is_tried_again_after_ever_longer_times() -> None:
    """A batch of a megabyte over a slow link takes longer than the first wait, and each new assignment drops it."""
    watch = behind(A)
    watch.turns(3_000)
    found = gaps(watch.reseated)
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(found[:5])), found
    assert max(found) <= AGAIN_MAX_S + QUIET_S + ASK_S + 1


def test_one_that_delivered_in_between_gets_the_short_wait_again() -> None:
    watch = behind(A)
    watch.turns(200)
    watch.reseated.clear()
    watch.deliver(A, 6)
    assert silent_after(watch) <= SILENT_S + QUIET_S + ASK_S + 1


def test_a_cell_that_went_to_another_worker_is_forgotten() -> None:
    watch = behind(A, B)
    watch.turns(8)
    del watch.standings[A]
    assert set(watch.turns(30)) == {B}


def test_a_cell_whose_log_ends_before_its_position_is_silent_and_needs_a_new_client_at_once() -> None:
    """Its topic was deleted and made anew, and the client stays with a leader of the old one."""
    watch = behind(A)
    watch.ends[A] = 2
    assert SILENT_S <= silent_after(watch) <= SILENT_S + QUIET_S + ASK_S + 1
    assert watch.cells.stubborn(A)


def test_a_cell_that_was_assigned_anew_twice_in_vain_needs_a_new_client() -> None:
    watch = behind(A)
    stubborn = []
    while len(watch.reseated) < STUBBORN + 1:
        before = len(watch.reseated)
        watch.turn()
        if len(watch.reseated) > before:
            stubborn.append(watch.cells.stubborn(A))
    assert stubborn == [False] * STUBBORN + [True]
