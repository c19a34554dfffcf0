"""Cancels that a worker remembers: the newest million, each once, in little memory."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from streamtask.config import EngineConfig
from streamtask.core.cancels import BUCKETS_MAX, IDS_A_BUCKET, Cancels


def spelled(number: int) -> str:
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def test_nobody_is_cancelled_at_first() -> None:
    held = Cancels(10)
    assert (len(held), spelled(0) in held) == (0, False)


@given(
    ids_max=st.integers(1, 70),
    numbers=st.lists(st.one_of(st.integers(0, 90), st.integers(0, 2**128 - 1)), max_size=300),
)
def test_the_newest_are_kept_each_once_and_one_that_comes_again_keeps_its_place(
    ids_max: int, numbers: list[int]
) -> None:
    held, model = Cancels(ids_max), OrderedDict[int, None]()
    for number in numbers:
        held.add(spelled(number))
        model.setdefault(number)
        if len(model) > ids_max:
            model.popitem(last=False)
        assert len(held) == len(model)
    for number in {*numbers, 91, 2**128 - 1}:
        assert (spelled(number) in held) is (number in model), f"{number} of {list(model)}"


def test_an_id_that_lies_across_two_others_is_none_of_them() -> None:
    held = Cancels(2)
    first, second = bytes(range(16)), bytes(range(16, 32))
    held.add(spelled(int.from_bytes(first, "big")))
    held.add(spelled(int.from_bytes(second, "big")))
    for shift in range(1, 16):
        across = (first + second)[shift : shift + 16]
        assert spelled(int.from_bytes(across, "big")) not in held


def test_beyond_the_cap_the_oldest_are_forgotten_and_a_million_would_take_thirty_megabytes() -> None:
    assert EngineConfig.__dataclass_fields__["cancels_max"].default == 1_000_000 <= BUCKETS_MAX * IDS_A_BUCKET
    cap, more = 50_000, 2_000  # an id takes as much among a million: there are as many more buckets
    rng, held, spread = random.Random(7), Cancels(cap), 0x9E3779B97F4A7C15F39CC0605CEDC835  # odd: no id comes twice
    start, mask = rng.getrandbits(128), 2**128 - 1
    for number in range(cap + more):
        held.add(spelled(start + number * spread & mask))
    assert len(held) == cap
    told = [spelled(start + number * spread & mask) in held for number in range(more + 1_000)]
    assert told == [False] * more + [True] * 1_000
    taken = sum(map(sys.getsizeof, held._buckets)) + sys.getsizeof(held._buckets) + sys.getsizeof(held._order)
    assert taken / cap < 30, f"{taken / cap:.1f} bytes an id"
