"""Ids of a client: spread by chance, and under load a few partitions at a time."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from itertools import pairwise

import pytest

from streamtask.client.nearby_ids import ENDINGS, GROUPS, NearbyIds
from streamtask.domain.partitioner import block_mixed, finished, murmur2, partition_of, prefix_hashed


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time, "time_ns", lambda: round(self.now_s * 1e9))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def drawn(ids: NearbyIds, clock: Clock, per_s: float, count: int) -> list[str]:
    made = []
    for _ in range(count):
        clock.now_s += 1 / per_s
        made.append(ids.new())
    return made


def warm(clock: Clock, per_s: float, partitions: int = 12) -> NearbyIds:
    """After two seconds at this rate."""
    ids = NearbyIds()
    ids.partitions = partitions
    drawn(ids, clock, per_s, round(2 * per_s) + 2)
    return ids


def places(ids: list[str], partitions: int) -> list[int]:
    return [partition_of(task_id.encode(), partitions) for task_id in ids]


def test_the_steps_of_the_hash_are_the_whole() -> None:
    for _ in range(100):
        key = str(uuid.uuid4()).encode()
        assert finished(prefix_hashed(key[:32], 36) ^ block_mixed(key[32:])) == murmur2(key) & 0x7FFFFFFF


def test_requests_of_ten_milliseconds_lie_in_one_partition_and_the_next_ones_in_the_next(clock: Clock) -> None:
    ids = warm(clock, 5_000)
    turns = Counter(places(drawn(ids, clock, 5_000, 12 * 50), 12))
    assert turns == dict.fromkeys(range(12), 50)
    lying = places(drawn(ids, clock, 5_000, 600), 12)
    assert sum(one != other for one, other in pairwise(lying)) <= 12


@pytest.mark.parametrize("partitions", [1, 2, 7, 12, 13, 100, 1_000])
def test_any_number_of_partitions_gets_all_its_requests_in_turn(clock: Clock, partitions: int) -> None:
    ids = warm(clock, 5_000, partitions)
    found = Counter(places(drawn(ids, clock, 5_000, 5_000), partitions))
    assert len(found) >= min(partitions, 900)
    together = set(places(drawn(ids, clock, 5_000, 100)[:20], partitions))
    assert len(together) <= 2 * -(-partitions // GROUPS)


def test_below_a_thousand_a_second_and_in_a_single_burst_ids_are_spread_by_chance(clock: Clock) -> None:
    slow = warm(clock, 900)
    assert len(set(places(drawn(slow, clock, 900, 50), 12))) > 6
    burst = NearbyIds()
    burst.partitions = 12
    assert len(set(places(drawn(burst, clock, 50_000, 50), 12))) > 6
    rested = warm(clock, 5_000)
    clock.now_s += 10
    assert len(set(places(drawn(rested, clock, 5_000, 50), 12))) > 6, "what was measured long ago says nothing"


def test_nothing_is_chosen_before_a_receipt_has_shown_the_partitions(clock: Clock) -> None:
    ids = warm(clock, 5_000, partitions=0)
    assert len(set(places(drawn(ids, clock, 5_000, 50), 12))) > 6


def test_ids_are_uuids_of_version_seven_that_differ_and_sort_by_their_millisecond(clock: Clock) -> None:
    ids = warm(clock, 50_000)
    made = [ids.new() for _ in range(3 * ENDINGS)]  # in one millisecond: more than it has endings
    made += drawn(ids, clock, 5_000, 1_000)
    assert len(set(made)) == len(made)
    parsed = [uuid.UUID(one) for one in made]
    assert {(one.version, one.variant) for one in parsed} == {(7, uuid.RFC_4122)}
    assert [str(one) for one in parsed] == made
    heads = [one[:13] for one in made]
    assert heads == sorted(heads)


def test_the_ids_of_two_clients_have_nothing_in_common_but_the_time(clock: Clock) -> None:
    one, other = warm(clock, 5_000), warm(clock, 5_000)
    assert one.new()[14:32] != other.new()[14:32]
