"""A cell of which the client has lost a resume: it is found, assigned anew, and nothing is lost or read twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Producer, TopicPartition
from structlog.testing import capture_logs

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.ports import Cell, Expected, Seat
from tests.contract.member import Member, fill, together, wait_until

pytestmark = pytest.mark.broker

COUNT = 20
SHARDS = 4
CELL = (0, 0)


class Watched(Member):
    """A member that is looked after with a clock of its own: each turn takes a second."""

    now_s = 1_000.0
    held = ""

    def turn(self, timeout_s: float = 0.02, records_max: int = 1_000) -> None:
        super().turn(timeout_s, records_max)
        self.now_s += 1.0
        self.adapter.reseating.look(self.expected(), self.now_s)

    def expected(self) -> dict[Cell, Expected]:
        received = {cell: self.positions.get(cell, 0) for cell in self.cells(self.shards)}
        received |= {(record.band, record.partition): record.offset + 1 for record in self.records}
        return {cell: Expected(at, held=self.held if cell == CELL else "") for cell, at in received.items()}

    def offsets(self, cell: Cell = CELL) -> list[int]:
        return [record.offset for record in self.records if (record.band, record.partition) == cell]


@pytest.fixture
def settings(broker: object) -> KafkaSettings:
    return KafkaSettings(broker.bootstrap, client_id="contract")  # type: ignore[attr-defined]


@pytest.fixture
def join(settings: KafkaSettings, topics: TopicNames) -> Iterator[Callable[[], Watched]]:
    members: list[Watched] = []
    fill(settings.bootstrap, topics.requests[0], 0, COUNT)

    def make() -> Watched:
        members.append(Watched(settings, topics))
        return members[-1]

    yield make
    for member in members:
        member.adapter.close()


def read(member: Watched, count: int) -> None:
    wait_until(lambda: len(member.offsets()) >= count, turn=member.turn)


def behind_our_back(member: Watched, topics: TopicNames) -> None:
    """What a lost resume leaves: the client holds the cell paused, and nothing of ours knows."""
    member.adapter.consumer.handle.pause([TopicPartition(topics.requests[0], 0)])


def test_a_cell_whose_resume_was_lost_delivers_again_in_order(
    join: Callable[[], Watched], settings: KafkaSettings, topics: TopicNames
) -> None:
    member = join()
    read(member, COUNT)
    behind_our_back(member, topics)
    fill(settings.bootstrap, topics.requests[0], 0, COUNT)
    with capture_logs() as told:
        read(member, 2 * COUNT)
    assert member.offsets() == list(range(2 * COUNT))
    evidence = [one for one in told if one["event"] == "cell_reseated"]
    assert [(one["band"], one["shard"], one["received"], one["log_end"]) for one in evidence] == [
        (0, 0, COUNT, 2 * COUNT)
    ]
    wait_until(lambda: member.adapter.consumer.group_metadata() is not None, turn=member.turn)


def test_a_cell_that_is_paused_on_purpose_is_left_alone(
    join: Callable[[], Watched], settings: KafkaSettings, topics: TopicNames
) -> None:
    member = join()
    read(member, COUNT)
    member.adapter.pause([CELL])
    member.held = "paused"
    fill(settings.bootstrap, topics.requests[0], 0, COUNT)
    for _ in range(60):
        member.turn()
    assert member.offsets() == list(range(COUNT))
    member.adapter.resume([CELL])
    member.held = ""
    read(member, 2 * COUNT)
    assert member.offsets() == list(range(2 * COUNT))


def test_a_log_that_ends_in_markers_or_an_open_transaction_is_left_alone(
    join: Callable[[], Watched], settings: KafkaSettings, topics: TopicNames
) -> None:
    member = join()
    read(member, COUNT)
    producer = Producer({"bootstrap.servers": settings.bootstrap, "transactional.id": f"{topics.prefix}.foreign"})
    producer.init_transactions(20)
    with capture_logs() as told:
        for _ in range(3):
            producer.begin_transaction()
            producer.produce(topics.requests[0], b"aborted", b"k", 0)
            assert producer.flush(20) == 0
            for _ in range(40):  # it is open
                member.turn()
            producer.abort_transaction(20)
            for _ in range(40):  # its marker is the last of the log
                member.turn()
    assert [one for one in told if one["event"] == "cell_reseated"] == []
    assert member.offsets() == list(range(COUNT))


def test_a_pause_ends_with_the_seat_that_it_belongs_to(join: Callable[[], Watched], topics: TopicNames) -> None:
    """Bug: a shard that was claimed anew while a cell of it was paused; its new backlog never asked for a resume."""
    member = join()
    read(member, COUNT)
    member.adapter.pause([CELL])
    assert member.adapter.perform(Seat({CELL: 5})) is None
    member.held = "unwatched"
    read(member, 2 * COUNT - 5)
    assert member.offsets() == [*range(COUNT), *range(5, COUNT)]


def test_a_pause_does_not_outlive_the_ownership_of_its_shard(
    join: Callable[[], Watched], settings: KafkaSettings, topics: TopicNames
) -> None:
    for shard in range(1, SHARDS):
        fill(settings.bootstrap, topics.requests[0], shard, COUNT)
    first = join().owning(SHARDS)
    cells = [(0, shard) for shard in range(SHARDS)]
    wait_until(lambda: all(len(first.offsets(cell)) == COUNT for cell in cells), turn=first.turn)
    first.adapter.pause(cells)
    second = join()
    half = SHARDS // 2
    wait_until(lambda: len(first.shards) == half and len(second.shards) == half, turn=together(first, second))
    moved = [cell for cell in cells if cell[1] in second.shards]
    second.adapter.leave()
    first.owning(SHARDS)  # seated at 0 again
    wait_until(lambda: all(len(first.offsets(cell)) == 2 * COUNT for cell in moved), turn=first.turn)
