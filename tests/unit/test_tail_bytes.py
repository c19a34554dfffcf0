"""A reader that bounds its batches by bytes takes no more than that, and about one record of the heaviest beyond."""

from __future__ import annotations

from collections import deque
from typing import Any, cast

import pytest
from confluent_kafka import Consumer

from streamtask.kafka.tail import STEP_RECORDS, _within


class FakeMessage:
    def __init__(self, size: int) -> None:
        self._value = bytes(size)

    def value(self) -> bytes:
        return self._value


class FakeConsumer:
    """Has everything at once."""

    def __init__(self, sizes: list[int]) -> None:
        self.left = deque(sizes)
        self.calls = 0

    def consume(self, count: int, _timeout: float) -> list[Any]:
        self.calls += 1
        return [FakeMessage(self.left.popleft()) for _ in range(min(count, len(self.left)))]


def taken(sizes: list[int], *, records: int = 50_000, limit: int = 25_000_000) -> tuple[int, int, FakeConsumer]:
    consumer = FakeConsumer(sizes[1:])
    found = _within(cast(Consumer, consumer), records - 1, limit, sizes[0])
    return len(found) + 1, sizes[0] + sum(len(one.value() or b"") for one in found), consumer


def test_heavy_records_end_a_batch_by_their_bytes() -> None:
    count, size, _ = taken([900_000] * 200)
    assert size <= 25_000_000 + 900_000
    assert count == 28


def test_small_records_end_a_batch_by_their_number_in_few_calls() -> None:
    count, _, consumer = taken([300] * 60_000)
    assert count == 50_000
    assert consumer.calls <= 50_000 // STEP_RECORDS + 2


@pytest.mark.parametrize("limit", [1, 900_000])
def test_one_record_always_comes_however_heavy(limit: int) -> None:
    count, _, _ = taken([900_000] * 3, limit=limit)
    assert count == 1


def test_what_is_not_there_is_not_waited_for() -> None:
    assert taken([300] * 10)[0] == 10
