"""What a chaos run sends weighs what it should, and its layout starves some partitions and not all."""

from __future__ import annotations

import random
import zlib

import pytest

from tests.chaos.kinds import LONGEST, WEIGHS, kinds
from tests.chaos.layout import starved_by, thin_replicas
from tests.chaos.payload import PAYLOAD_MAX, PAYLOAD_MIN, payload, spread
from tests.chaos.stage import PARTITIONS


def test_a_payload_has_its_size_and_no_compression_makes_it_small() -> None:
    for size in (PAYLOAD_MIN, 1_000, PAYLOAD_MAX):
        text = payload(size, salt=7)
        assert len(text.encode()) == size
        assert text == payload(size, salt=7)
    assert len(zlib.compress(payload(PAYLOAD_MAX).encode())) > PAYLOAD_MAX * 0.7
    assert payload(1_000, salt=1) != payload(1_000, salt=2)


def test_sizes_are_spread_over_all_their_magnitudes() -> None:
    rng = random.Random(1)
    sizes = [spread(rng, PAYLOAD_MIN, PAYLOAD_MAX) for _ in range(2_000)]
    assert min(sizes) >= PAYLOAD_MIN
    assert max(sizes) <= PAYLOAD_MAX
    for low, high in ((10, 100), (100, 1_000), (1_000, 10_000), (10_000, 100_000), (100_000, 900_000)):
        assert sum(low <= size < high for size in sizes) > 200, (low, high)


@pytest.mark.parametrize("minutes", [0.6, 3, 5, 20])
def test_the_longest_tasks_take_as_long_as_the_run_can_judge(minutes: float) -> None:
    longest_s = 600 * min(minutes / 20, 1)
    rng = random.Random(2)
    kind = next(kind for kind in kinds(10.0, longest_s) if kind.task_type == LONGEST)
    drawn = [kind.draw(rng)["ms"] for _ in range(500)]
    assert min(drawn) >= 1_000
    assert max(drawn) <= max(longest_s * 1_000, 2_000)
    assert max(drawn) > 0.8 * longest_s * 1_000


def test_what_comes_in_and_what_goes_out_weigh_independently() -> None:
    rng = random.Random(3)
    kind = next(kind for kind in kinds() if kind.task_type == WEIGHS)
    drawn = [kind.draw(rng) for _ in range(200)]
    assert any(one["size"] > 100_000 > len(one["text"]) for one in drawn)
    assert any(len(one["text"]) > 100_000 > one["size"] for one in drawn)


@pytest.mark.parametrize("node", [1, 2, 3])
def test_each_brokers_death_starves_some_partitions_and_leaves_most(node: int) -> None:
    starved = starved_by(node, PARTITIONS)
    assert starved
    assert len(starved) <= PARTITIONS // 2
    assert all(len(thin_replicas(number) or ()) == 2 for number in starved)
