"""A record whose schema is being asked for holds back its own cell, and nothing of what lies behind it is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import RequestRecord
from streamtask.domain.ports import Poll, Seat
from streamtask.errors import SchemaPending
from tests.contract.member import Member, fill, raw_record, together, wait_until

pytestmark = pytest.mark.broker

COUNT = 30


class Doorkeeper:
    """Decodes everything but some places, until they are opened. asked: how often each of those was tried."""

    def __init__(self, *closed: tuple[int, int, int]) -> None:
        self.closed = set(closed)
        self.asked: dict[tuple[int, int, int], int] = dict.fromkeys(closed, 0)

    def decode(self, band: int, partition: int, offset: int, *rest: Any) -> RequestRecord:
        place = (band, partition, offset)
        if place in self.asked:
            self.asked[place] += 1
        if place in self.closed:
            raise SchemaPending("being asked for", lambda: place not in self.closed)
        return raw_record(band, partition, offset, *rest)


@pytest.fixture
def settings(broker: object) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap, client_id="contract")  # type: ignore[attr-defined]


@pytest.fixture
def join(settings: KafkaSettings, topics: TopicNames) -> Iterator[Callable[..., Member]]:
    members: list[Member] = []
    for topic in topics.requests[:2]:
        for shard in range(2):
            fill(settings.bootstrap, topic, shard, COUNT)

    def make(keeper: Doorkeeper) -> Member:
        members.append(Member(settings, topics, decode=keeper.decode))
        return members[-1]

    yield make
    for member in members:
        member.adapter.close()


def read(member: Member, band: int, shard: int) -> list[int]:
    return [record.offset for record in member.records if (record.band, record.partition) == (band, shard)]


def until_others(member: Member, *held: tuple[int, int]) -> None:
    """Everything of the cells that are not held was read, in order."""
    others = [(band, shard) for band in range(2) for shard in range(2) if (band, shard) not in held]
    wait_until(lambda: all(read(member, *cell) == list(range(COUNT)) for cell in others), turn=member.turn)


def test_its_cell_waits_and_no_other_then_everything_comes_in_order(join: Callable[..., Member]) -> None:
    keeper = Doorkeeper((0, 0, 7), (1, 1, 0))
    member = join(keeper)
    until_others(member, (0, 0), (1, 1))
    for _ in range(20):
        member.turn()
    assert read(member, 0, 0) == list(range(7))
    assert read(member, 1, 1) == []
    assert keeper.asked == {(0, 0, 7): 1, (1, 1, 0): 1}, "it is not fetched again and again meanwhile"
    keeper.closed.clear()
    until_others(member)


def test_one_after_another_in_one_cell(join: Callable[..., Member]) -> None:
    keeper = Doorkeeper((0, 0, 3), (0, 0, 4), (0, 0, COUNT - 1))
    member = join(keeper)
    until_others(member, (0, 0))
    for place in sorted(keeper.closed):
        wait_until(lambda place=place: keeper.asked[place], turn=member.turn)  # type: ignore[misc]
        assert read(member, 0, 0) == list(range(place[2]))
        keeper.closed.discard(place)
    until_others(member)


def test_records_that_came_while_the_group_was_served_do_not_overtake_it(join: Callable[..., Member]) -> None:
    keeper = Doorkeeper((0, 0, 7))
    member = join(keeper)
    until_others(member, (0, 0))
    member.adapter.resume([(0, 0)])  # what the core may say at any time
    for _ in range(10):
        member.adapter.perform(Poll())
    keeper.closed.clear()
    for _ in range(3):
        member.adapter.perform(Poll())
    until_others(member)


def test_a_cell_that_was_paused_stays_paused_when_it_is_held_back_no_more(join: Callable[..., Member]) -> None:
    keeper = Doorkeeper((0, 0, 7))
    member = join(keeper)
    until_others(member, (0, 0))
    member.adapter.pause([(0, 0)])
    keeper.closed.clear()
    for _ in range(20):
        member.turn()
    assert read(member, 0, 0) == list(range(7))
    member.adapter.resume([(0, 0)])
    until_others(member)


def test_a_new_seat_ends_it(join: Callable[..., Member]) -> None:
    keeper = Doorkeeper((0, 0, 7))
    member = join(keeper)
    until_others(member, (0, 0))
    assert member.adapter.perform(Seat({(0, 0): 10})) is None
    wait_until(lambda: read(member, 0, 0)[-1:] == [COUNT - 1], turn=member.turn)
    assert read(member, 0, 0) == [*range(7), *range(10, COUNT)]


def test_a_shard_that_moves_takes_it_along(join: Callable[..., Member]) -> None:
    keeper = Doorkeeper((0, 0, 7), (0, 1, 7))
    first = join(keeper)
    until_others(first, (0, 0), (0, 1))
    second = join(keeper)
    wait_until(lambda: len(first.shards) == 2 and len(second.shards) == 2, turn=together(first, second))
    keeper.closed.clear()
    for shard in range(2):
        owner = first if shard in first.shards else second
        wait_until(lambda o=owner, s=shard: read(o, 0, s)[-1:] == [COUNT - 1], turn=owner.turn)  # type: ignore[misc]
        assert read(owner, 0, shard) == list(range(COUNT))
