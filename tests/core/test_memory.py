"""Memory: what waits and what runs is bounded by bytes, every band keeps a part of its own, and nothing stops for ever."""

from __future__ import annotations

import itertools
import json
import random
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtask.core import ownership, protocol
from streamtask.core.memory import OVERHEAD, Share, opened_weight
from streamtask.domain.model import Ending, HandlerKind, Outcome, RequestRecord, Retry, TaskPolicy
from streamtask.domain.ports import EndTransaction, Fault, FaultKind, Pause, Resume

from .accounts import check
from .desk import RETURNED, STOPPED, Desk, raised

MB = 1 << 20
KB = 1 << 10
HIGH, NORMAL, LOW = 0, 1, 2


class Tide:
    """A desk whose cells each have a log without end, of which what is not paused comes in, one record at a time."""

    def __init__(
        self, size: int, *, shards: int = 4, opened: int = 0, bands: tuple[int, ...] = (0, 1, 2), **config: Any
    ):
        policies = config.pop("policies", {"noop": TaskPolicy()})
        self.desk = Desk(policies, shards=tuple(range(shards)), **config)
        self.desk.ready()
        self.size, self.opened = size, opened
        self.paused: set[tuple[int, int]] = set()
        self.cells = [(band, shard) for shard in range(shards) for band in bands]

    def heed(self) -> bool:
        """Pauses and resumes; True when something was resumed."""
        effects, self.desk.other_effects = self.desk.other_effects, []
        resumed = False
        for effect in effects:
            if isinstance(effect, Pause):
                self.paused |= set(effect.cells)
            elif isinstance(effect, Resume):
                self.paused -= set(effect.cells)
                resumed = True
        return resumed

    def flow(self, rounds: int = 3_000) -> int:
        """Until every cell is paused; returns how many records came."""
        came = 0
        for _ in range(rounds):
            self.heed()
            cells = [cell for cell in self.cells if cell not in self.paused]
            if not cells:
                return came
            for band, shard in cells:
                self.feed(band, shard)
                came += 1
            self.desk.engine.prepare(self.desk.now)
            self.desk.take()
        raise AssertionError(f"{len(cells)} cells are not paused after {came} records")

    def feed(self, band: int, shard: int, task_type: str = "noop", **more: Any) -> RequestRecord:
        record = self.desk.record(task_type, band=band, shard=shard, **more)
        record.value = record.text = bytes(self.size)
        if self.opened:
            record.text = b"{" + b" " * (self.opened - 241) + b"}"  # weighs its length and one object
        self.desk.feed(record)
        self.desk.take()
        self.heed()
        return record

    def turn(self) -> None:
        self.desk.turn()
        self.heed()

    @property
    def memory(self) -> Any:
        return self.desk.engine.memory


# --- What waits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20 * KB, 900 * KB])
def test_waiting_requests_are_bounded_by_bytes_and_not_only_by_count(size: int) -> None:
    tide = Tide(size, shards=12, waiting_bytes_max=32 * MB)
    tide.flow()
    most = 32 * MB + len(tide.cells) * (size + OVERHEAD)
    assert 16 * MB < tide.memory.waiting.total <= most
    check(tide.desk.engine)


def test_small_requests_are_bounded_by_count_as_before() -> None:
    tide = Tide(150, shards=12)
    assert tide.flow() > 12 * 3 * 450
    assert tide.memory.waiting.total < tide.desk.config.waiting_bytes_max
    assert not tide.memory.heavy


def test_high_requests_come_in_however_many_low_ones_wait() -> None:
    tide = Tide(20 * KB, shards=12, waiting_bytes_max=8 * MB, bands=(LOW,))
    tide.flow()
    assert all((LOW, shard) in tide.paused for shard in range(12))
    for _ in range(80):
        tide.feed(HIGH, 0)
    assert (HIGH, 0) not in tide.paused, "a quarter of 8 MB is high's alone"
    for _ in range(20):
        tide.feed(HIGH, 0)
    assert (HIGH, 0) in tide.paused


def test_low_requests_come_in_however_many_high_ones_wait() -> None:
    tide = Tide(20 * KB, shards=12, waiting_bytes_max=8 * MB, bands=(HIGH,))
    tide.flow()
    for _ in range(40):
        tide.feed(LOW, 0)
    assert (LOW, 0) not in tide.paused, "an eighth of 8 MB is low's alone"


def test_a_cell_that_holds_nothing_may_always_have_one_request_even_one_heavier_than_the_budget() -> None:
    tide = Tide(9 * MB, shards=4, waiting_bytes_max=2 * MB, bands=(NORMAL,))
    for shard in range(4):
        tide.feed(NORMAL, shard)
        assert (NORMAL, shard) in tide.paused
    for _ in range(20):  # one after the other they run, and each makes room for the next of its cell
        tide.turn()
        for start in list(tide.desk.running.values()):
            tide.desk.end(start.record)
            tide.turn()
            tide.turn()
            shard = start.record.partition
            assert (NORMAL, shard) not in tide.paused
            tide.feed(NORMAL, shard)
        assert tide.memory.waiting.total <= 4 * (9 * MB + OVERHEAD)
    assert len([e for e in tide.desk.events if e.status.value == "completed"]) > 40


def test_a_cell_paused_for_its_weight_is_resumed_once_a_quarter_is_free_and_not_before() -> None:
    tide = Tide(100 * KB, shards=1, waiting_bytes_max=4 * MB, bands=(NORMAL,))
    tide.flow()
    assert (NORMAL, 0) in tide.paused
    full, resumed_at = tide.memory.waiting.total, 0
    for _ in range(40):
        tide.turn()
        if (NORMAL, 0) not in tide.paused:
            resumed_at = tide.memory.waiting.total
            break
        tide.desk.end(next(iter(tide.desk.running.values())).record)
    assert 0.5 * full < resumed_at < 0.85 * full
    assert tide.memory.pauses == 1


def test_a_shard_that_is_taken_over_reads_on_to_what_its_earlier_owner_had_open() -> None:
    """Seed 365 of the simulation: what came before it could not be admitted without it, and filled the memory."""
    former = Tide(20 * KB, shards=1, bands=(LOW,), events_max=2, slots={HandlerKind.ASYNC: 1})
    former.desk.feed(
        first := former.desk.record(band=LOW, priority=1), second := former.desk.record(band=LOW, priority=3)
    )
    former.desk.turn()
    assert former.desk.history(first) == []
    assert former.desk.history(second) == ["created", "running 1"]
    tide = Tide(20 * KB, shards=1, bands=(LOW,), waiting_bytes_max=16 * KB)
    tide.desk = former.desk.successor(waiting_bytes_max=16 * KB)
    first.value = first.text = bytes(20 * KB)
    first.weight = 0
    tide.desk.feed(first)
    tide.desk.take()
    tide.heed()
    assert (LOW, 0) in tide.paused
    tide.desk.engine.prepare(tide.desk.now)
    tide.desk.take()
    tide.heed()
    assert (LOW, 0) not in tide.paused
    tide.desk.feed(second)
    tide.desk.turn()
    tide.desk.turn()
    assert second in [start.record for start in tide.desk.running.values()]


def test_requests_that_only_wait_take_at_most_half_of_the_memory() -> None:
    tide = Tide(100 * KB, shards=8, waiting_bytes_max=4 * MB, bands=(NORMAL,))
    later = tide.desk.now.wall_ms + 600_000
    for shard in range(8):
        for _ in range(5):
            if (NORMAL, shard) not in tide.paused:
                tide.feed(NORMAL, shard, not_before_ms=later)
                tide.desk.engine.prepare(tide.desk.now)
    tide.desk.settle()
    assert tide.memory.parked <= 2 * MB + 100 * KB + OVERHEAD
    refused = [e for e in tide.desk.events if e.error_code == "invalid_parameters"]
    assert refused
    assert all("memory" in (e.error or "") for e in refused)
    tide.heed()
    record = tide.feed(NORMAL, 0)
    tide.turn()
    assert record in [start.record for start in tide.desk.running.values()]


# --- What runs --------------------------------------------------------------------------------------------------------


def test_fewer_tasks_are_started_when_their_parameters_fill_the_memory() -> None:
    tide = Tide(50 * KB, opened=MB, bands=(NORMAL,), slots={HandlerKind.ASYNC: 100}, active_bytes_max=8 * MB)
    for _ in range(20):
        for shard in range(4):
            tide.feed(NORMAL, shard)
    tide.turn()
    tide.turn()
    assert 4 <= len(tide.desk.running) <= 6  # half of 8 MB and an eighth
    for start in list(tide.desk.running.values()):
        tide.desk.end(start.record)
    tide.turn()
    tide.turn()
    assert 4 <= len(tide.desk.running) <= 6, "they have gone, and others start"
    check(tide.desk.engine)


def test_one_task_may_always_run_even_one_heavier_than_the_budget() -> None:
    tide = Tide(50 * KB, opened=20 * MB, bands=(LOW,), slots={HandlerKind.ASYNC: 100}, active_bytes_max=8 * MB)
    done = 0
    for _ in range(6):
        tide.feed(LOW, 0)
    for _ in range(30):
        tide.turn()
        assert len(tide.desk.running) <= 1
        for start in list(tide.desk.running.values()):
            tide.desk.end(start.record)
            done += 1
    assert done == 6


def test_high_tasks_start_while_low_ones_fill_the_memory_that_low_may_have() -> None:
    tide = Tide(10 * KB, opened=MB, slots={HandlerKind.ASYNC: 100}, active_bytes_max=8 * MB)
    for _ in range(20):
        tide.feed(LOW, 0)
    tide.turn()
    tide.turn()
    low = len(tide.desk.running)
    assert low < 8
    record = tide.feed(HIGH, 0)
    tide.turn()
    assert record in [start.record for start in tide.desk.running.values()]


def test_results_that_wait_for_their_commit_count_and_what_a_type_returns_is_learned() -> None:
    tide = Tide(500, bands=(NORMAL,), slots={HandlerKind.ASYNC: 100}, active_bytes_max=8 * MB)
    for _ in range(60):
        for shard in range(4):
            tide.feed(NORMAL, shard)
    tide.turn()
    assert len(tide.desk.running) == 88, "nothing is known of what they return"
    big, before = Outcome(Ending.RETURNED, result=b"1" * MB), tide.memory.active.total
    tide.desk.end(next(iter(tide.desk.running.values())).record, big)
    assert tide.memory.active.total == before - tide.size + MB, "its parameters have gone, its result is there"
    for start in list(tide.desk.running.values()):
        tide.desk.end(start.record, Outcome(Ending.RETURNED, result=b"1" * MB))
    for _ in range(10):  # 16 MB of results go into a batch
        tide.turn()
        assert len(tide.desk.running) <= 6
    assert len(tide.desk.running) >= 4
    for start in list(tide.desk.running.values()):
        tide.desk.end(start.record, RETURNED)
    for _ in range(200):  # they return little again: so many start again
        tide.turn()
        for start in list(tide.desk.running.values())[:3]:
            tide.desk.end(start.record, RETURNED)
    tide.desk.settle()
    check(tide.desk.engine)


# --- Weights ----------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=12), inner, max_size=12),
    max_leaves=60,
)


def deep(value: Any, seen: set[int]) -> int:
    """Bytes of a JSON value and of all inside it, each object once."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(deep(key, seen) + deep(held, seen) for key, held in value.items())
    return size + sum(deep(held, seen) for held in value) if isinstance(value, list) else size


@settings(max_examples=300, deadline=None)
@given(JSON, st.booleans())
def test_the_weight_of_parameters_is_at_least_what_python_takes_for_them(value: Any, ascii_only: bool) -> None:
    text = json.dumps({"parameters": {"a": value}}, ensure_ascii=ascii_only, separators=(",", ":"))
    decoded = json.loads(text)
    assert opened_weight(text.encode("utf-8", "surrogatepass")) >= deep(decoded["parameters"]["a"], set()) - 64


@pytest.mark.parametrize(
    ("value", "most"),
    [([[] for _ in range(30_000)], 2.0), ([{"id": n, "name": f"n{n}", "v": n / 2} for n in range(3_000)], 2.5)],
    ids=["empty lists", "rows"],
)
def test_the_weight_of_parameters_is_not_far_above_what_python_takes(value: Any, most: float) -> None:
    text = json.dumps(value, separators=(",", ":"))
    real = deep(json.loads(text), set())
    assert real <= opened_weight(text.encode()) <= most * real


@pytest.mark.parametrize("length", range(5))
def test_however_a_string_ends_the_structure_after_it_is_counted(length: int) -> None:
    for end in itertools.product('"\\x', repeat=length):
        for text in ("".join(end), "x" * 600 + "".join(end)):
            value = {"text": text, "lists": [[] for _ in range(700)], "last": "", "filled": "x" * 600}
            assert opened_weight(json.dumps(value).encode()) >= deep(value, set()), f"the text ends with {end}"


def test_what_looks_like_structure_inside_a_long_string_weighs_no_more_than_its_bytes() -> None:
    text = json.dumps({"page": "[{,}]" * 4_000, "rows": [1, 2]}).encode()
    assert opened_weight(text) < len(text) + 1_000


@pytest.mark.parametrize(
    "text",
    ['"' * 500_000, "\\" * 500_000, '\\"' * 250_000, 'x"' * 250_000],
    ids=["quotes", "backslashes", "escapes", "pairs"],
)
def test_no_text_makes_weighing_examine_more_than_a_quote_for_each_kilobyte(text: str) -> None:
    encoded, places = json.dumps({"a": text, "b": [[] for _ in range(9)]}).encode(), []

    class Counted(bytes):
        def find(self, *given: Any) -> int:
            places.append(given)
            return super().find(*given)

    assert opened_weight(Counted(encoded)) >= len(encoded)
    assert len(places) <= len(encoded) // 1_024 + 42


def test_quotes_in_a_binary_format_enclose_nothing() -> None:
    text = b'\x00"' + b"[]," * 3_000 + b'"'
    assert opened_weight(text) > 3_000 * 100


def test_a_share_is_never_exceeded_by_more_than_what_was_taken_last() -> None:
    rng = random.Random(1)
    for _ in range(200):
        share, largest = Share(rng.randrange(1_000, 10_000), 3), 0
        for _ in range(200):
            band, weight = rng.randrange(3), rng.randrange(1, 400)
            if not share.full(band):
                share.add(band, weight)
                largest = max(largest, weight)
        assert share.total <= share.limit + 3 * largest


# --- Accounts ---------------------------------------------------------------------------------------------------------

TYPES = {
    "noop": TaskPolicy(),
    "again": TaskPolicy(retry=Retry(attempts=3, backoff_ms=50)),
    "thread": TaskPolicy(kind=HandlerKind.THREAD, timeout_ms=400),
    "child": TaskPolicy(kind=HandlerKind.PROCESS),
}
STEPS: tuple[str, ...] = (
    "feed",
    "feed",
    "feed",
    "turn",
    "turn",
    "turn",
    "end",
    "end",
    "fail",
    "cancel",
    "later",
    "progress",
    "abort",
)
STEPS += ("doubt", "revoke", "lose")


class Life:
    """A worker to which anything happens, one step after the other."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.desk = Desk(
            TYPES,
            shards=(0, 1),
            slots={HandlerKind.ASYNC: 3, HandlerKind.THREAD: 2, HandlerKind.PROCESS: 1},
            waiting_bytes_max=400_000,
            active_bytes_max=200_000,
            unknown_type_grace_ms=200,
        )
        self.desk.ready()

    def step(self) -> None:
        getattr(self, self.rng.choice(STEPS))()
        check(self.desk.engine)

    def feed(self) -> None:
        rng, desk = self.rng, self.desk
        more: dict[str, Any] = {}
        if rng.random() < 0.2:
            more["not_before_ms"] = desk.now.wall_ms + rng.choice((50, 300, 5_000))
        if rng.random() < 0.2:
            more["expires_ms"] = desk.now.wall_ms + rng.choice((10, 400))
        if rng.random() < 0.2:
            more["task_id"] = f"0190a0a0-0000-7000-8000-{rng.randrange(3):012d}"
        if rng.random() < 0.1:
            more["problem"] = ("invalid_request", "not JSON")
        shards = [shard for shard in (0, 1) if shard in desk.engine.shards]
        if not shards:
            return
        record = desk.record(
            rng.choice((*TYPES, "nobody_knows")), band=rng.randrange(3), shard=rng.choice(shards), **more
        )
        record.value = bytes(rng.choice((10, 3_000, 40_000, 500_000)))
        if rng.random() < 0.5 and record.request is not None:
            record.text = record.value
        desk.feed(record)

    def turn(self) -> None:
        self.desk.turn()

    def _running(self) -> Any:
        return self.rng.choice(list(self.desk.running.values())) if self.desk.running else None

    def _end(self, outcome: Outcome) -> None:
        start = self._running()
        if start is not None:
            stopped = any(stop.token == start.token for stop in self.desk.stops)
            self.desk.end(start.record, STOPPED if stopped else outcome)

    def end(self) -> None:
        self._end(Outcome(Ending.RETURNED, result=b"1" * self.rng.choice((1, 900, 60_000))))

    def fail(self) -> None:
        self._end(
            self.rng.choice((raised("x" * 900), raised(traceback="y" * 9_000), Outcome(Ending.LOST, error="died")))
        )

    def cancel(self) -> None:
        claims = [claim for shard in self.desk.engine.shards.values() for claim in shard.claims.values()]
        if claims:
            self.desk.engine.cancel_read([self.rng.choice(claims).task_id], self.desk.now)

    def later(self) -> None:
        self.desk.later(self.rng.choice((1, 100, 1_000)))

    def progress(self) -> None:
        start = self._running()
        if start is not None:
            message = self.rng.choice((None, "short", "m" * 1_000))
            self.desk.engine.progressed(start.token, 0.5, message, self.desk.now)

    def abort(self) -> None:
        self.desk.answers[EndTransaction] = [Fault(self.rng.choice((FaultKind.ABORT, FaultKind.RECORD)))]

    def doubt(self) -> None:
        self.desk.answers[EndTransaction] = [Fault(FaultKind.DOUBT)]

    def revoke(self) -> None:
        shard = self.rng.choice((0, 1))
        if shard in self.desk.engine.shards:
            self.desk.drive(protocol.revoked(self.desk.engine, (shard,), self.desk.clock))
            self.desk.take()
            check(self.desk.engine)
            self._back(shard)

    def lose(self) -> None:
        shard = self.rng.choice((0, 1))
        if shard in self.desk.engine.shards:
            protocol.lost(self.desk.engine, (shard,))
            self.desk.take()
            check(self.desk.engine)
            self._back(shard)

    def _back(self, shard: int) -> None:
        """It comes back to us, and its records are not read again: what counts here is what is held."""
        self.desk.drive(protocol.assigned(self.desk.engine, (shard,), self.desk.clock))
        self.desk.take()
        ownership.control_read(self.desk.engine, tuple(self.desk.engine.shards))

    def over(self) -> None:
        """Everything ends, and every shard goes."""
        self.desk.answers.clear()
        for start in list(self.desk.running.values()):
            stopped = any(stop.token == start.token for stop in self.desk.stops)
            self.desk.end(start.record, STOPPED if stopped else RETURNED)
            check(self.desk.engine)
        protocol.lost(self.desk.engine, tuple(self.desk.engine.shards))
        check(self.desk.engine)
        assert self.desk.engine.memory.held == 0


@pytest.mark.parametrize("seed", range(60))
def test_the_accounts_agree_with_what_is_held_after_every_step_and_are_zero_at_the_end(seed: int) -> None:
    life = Life(random.Random(seed))
    for _ in range(120):
        life.step()
    life.over()
