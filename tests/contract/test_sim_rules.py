"""The simulation's Kafka against the real one: the same script is played on both, and every answer is the same.

A line of a script is a verb and its words; what it answers is a fault kind, a value, or None. The broker rules of
tests/sim/broker.py and group.py that a client can see are all here; how long markers take is not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import DeadLetter, StatusEvent
from streamtask.domain.ports import CommitPlain, FenceIds, ListOffsets, OffsetCommit, ReadSettled
from streamtask.kafka.broker_adapter import Deadlines
from streamtask.kafka.transaction import StatusTransaction, new_transactional_id
from tests.contract.member import Member, fill, kind, plan, read_values
from tests.sim.broker import Broker, Entry, Producer
from tests.sim.group import Membership
from tests.sim.timeline import Timeline

pytestmark = pytest.mark.broker
END = b"the end"
Line = tuple[Any, ...]


class Real:
    """The verbs on a real Kafka: one member that owns every shard, and further producers of its group."""

    def __init__(self, settings: KafkaSettings, names: TopicNames) -> None:
        self.settings, self.names = settings, names
        self.member = Member(settings, names, deadlines=Deadlines(settled_s=1.0)).owning(4)
        self.other: Member | None = None
        self.producers: dict[str, StatusTransaction] = {}
        self.captured: dict[str, Any] = {}

    def close(self) -> None:
        for producer in self.producers.values():
            producer.discard()
        if self.other is not None:
            self.other.adapter.close()
        self.member.adapter.close()

    def producer(self, name: str) -> None:
        id = new_transactional_id(self.names.group, name)
        encode: Callable[[StatusEvent], bytes] = lambda held: (held.message or "").encode()  # noqa: E731
        made = self.producers[name] = StatusTransaction(self.settings, self.names, id, encode, _no_letters)
        assert made.init(20) is None

    def produce(self, name: str, shard: int, text: str) -> Any:
        made = self.producers[name]
        return kind(made.produce(plan(shard, 0, text), 5) or made.flush())

    def capture(self, name: str) -> None:
        self.captured[name] = self.member.adapter.consumer.group_metadata()

    def send(self, name: str, shard: int, offset: int, text: str, captured: str | None = None) -> Any:
        metadata = self.captured[captured] if captured else self.member.adapter.consumer.group_metadata()
        return kind(self.producers[name].send_offsets(plan(shard, offset, text), metadata, 5))

    def end(self, name: str) -> Any:
        return kind(self.producers[name].commit(5))

    def abort(self, name: str) -> Any:
        return kind(self.producers[name].abort(5))

    def fence(self, name: str) -> Any:
        return kind(self.member.adapter.perform(FenceIds((self.producers[name].transactional_id,))))

    def fence_unknown(self) -> Any:
        return kind(self.member.adapter.perform(FenceIds((new_transactional_id(self.names.group, "nobody"),))))

    def list(self, shard: int) -> Any:
        found = self.member.adapter.perform(ListOffsets((shard,)))[0, shard]
        return found.offset, found.text

    def settled(self, shard: int) -> Any:
        answer = self.member.adapter.perform(ReadSettled((shard,)))
        return kind(answer) or (answer[0, shard].offset, answer[0, shard].text)

    def plain(self, shard: int, offset: int, text: str) -> Any:
        return kind(self.member.adapter.perform(CommitPlain((OffsetCommit(0, shard, offset, text),))))

    def another_member(self) -> None:
        self.other = Member(self.settings, self.names)
        self.other.owning(2, self.member)

    def read(self, shard: int) -> Any:
        fill(self.settings.bootstrap, self.names.status, shard, 1, value=END)
        return [value.decode() for value in read_values(self.settings.bootstrap, self.names.status, shard, END)]


class Heard:
    """A watch that only remembers what readers see."""

    def __init__(self) -> None:
        self.seen: list[StatusEvent] = []

    def decided(self, entries: Sequence[Entry], dead: Sequence[DeadLetter], commits: Sequence[OffsetCommit]) -> None:
        """Nothing to check here."""

    def recorded(self, commits: Sequence[OffsetCommit], *, fresh: frozenset[int]) -> None:
        """Nothing to check here."""

    def visible(self, event: StatusEvent) -> None:
        self.seen.append(event)


class Simulated:
    """The verbs on the simulation's broker."""

    def __init__(self) -> None:
        import random

        rng = random.Random(0)
        self.timeline, self.heard = Timeline(rng), Heard()
        self.broker = Broker(3, 4, self.timeline, rng, self.heard)
        self.member = self.broker.group.join()
        self.producers: dict[str, Producer] = {}
        self.captured: dict[str, Membership | None] = {}

    def _until(self, ready: Callable[[], bool]) -> bool:
        while not ready():
            if not self.timeline.step():
                return False
        return True

    def producer(self, name: str) -> None:
        self.producers[name] = self.broker.new_producer(name)

    def produce(self, name: str, shard: int, text: str) -> Any:
        made = self.producers[name]
        assert self._until(lambda: not self.broker.busy(made))
        return kind(self.broker.produce(made, plan(shard, 0, text)))

    def capture(self, name: str) -> None:
        self.captured[name] = self.broker.group.capture(self.member)

    def send(self, name: str, shard: int, offset: int, text: str, captured: str | None = None) -> Any:
        membership = self.captured[captured] if captured else self.broker.group.capture(self.member)
        return kind(self.broker.send_offsets(self.producers[name], membership, plan(shard, offset, text).offsets))

    def end(self, name: str) -> Any:
        return kind(self.broker.end(self.producers[name]))

    def abort(self, name: str) -> Any:
        return kind(self.broker.abort(self.producers[name]))

    def fence(self, name: str) -> Any:
        assert self._until(lambda: self.broker.init(self.producers[name].id))

    def fence_unknown(self) -> Any:
        assert self.broker.init("nobody")

    def list(self, shard: int) -> Any:
        self._until(lambda: False)  # markers that are on their way
        found = self.broker.list_offsets((shard,))[0, shard]
        return found.offset, found.text

    def settled(self, shard: int) -> Any:
        from streamtask.domain.ports import FaultKind

        if not self._until(lambda: not self.broker.unstable((shard,))):
            return FaultKind.UNSTABLE
        found = self.broker.read_settled((shard,))[0, shard]
        return found.offset, found.text

    def plain(self, shard: int, offset: int, text: str) -> Any:
        commit = (OffsetCommit(0, shard, offset, text),)
        return kind(self.broker.commit_plain(self.broker.group.capture(self.member), commit, fresh=frozenset()))

    def another_member(self) -> None:
        group = self.broker.group
        group.join()
        group.release(self.member, group.revoking(self.member))

    def read(self, shard: int) -> Any:
        self._until(lambda: False)
        return [seen.message for seen in self.heard.seen if seen.partition == shard]


def _no_letters(letter: DeadLetter) -> Any:
    raise AssertionError(f"no dead letter here: {letter}")


@pytest.fixture
def real(broker: Any, topics: TopicNames) -> Iterator[Real]:
    made = Real(KafkaSettings(broker.bootstrap, client_id="contract"), topics)
    yield made
    made.close()


def batch(name: str, shard: int, offset: int, text: str) -> list[Line]:
    """A whole transaction."""
    return [("produce", name, shard, text), ("send", name, shard, offset, text), ("end", name)]


def pending(name: str, shard: int, offset: int, text: str) -> list[Line]:
    """A transaction that stops before its end."""
    return batch(name, shard, offset, text)[:2]


P, Q = [("producer", "p")], [("producer", "q")]
SCRIPTS: dict[str, list[Line]] = {
    "what is committed is stable, listed and read": [
        *P,
        *batch("p", 0, 3, "one"),
        ("settled", 0),
        ("list", 0),
        ("read", 0),
    ],
    "batches of one producer follow each other": [
        *P,
        *batch("p", 0, 1, "one"),
        *batch("p", 0, 2, "two"),
        *batch("p", 1, 5, "three"),
        ("settled", 0),
        ("settled", 1),
        ("read", 0),
        ("read", 1),
    ],
    "pending offsets are not listed and hold the stable read back": [
        *P,
        *Q,
        *batch("p", 0, 1, "before"),
        ("settled", 0),
        *pending("q", 0, 2, "pending"),
        ("list", 0),
        ("settled", 0),
        ("settled", 1),
        ("end", "q"),
        ("settled", 0),
    ],
    "fencing aborts what is open and ends its holder": [
        *P,
        *pending("p", 0, 2, "zombie"),
        ("fence", "p"),
        ("settled", 0),
        ("end", "p"),
        ("abort", "p"),
        ("read", 0),
    ],
    "fencing lets what was decided stand": [
        *P,
        *batch("p", 0, 2, "decided"),
        ("fence", "p"),
        ("settled", 0),
        ("read", 0),
        ("produce", "p", 0, "late"),
    ],
    "an id that nobody used can be fenced": [("fence_unknown",), *P, *batch("p", 0, 1, "one"), ("settled", 0)],
    "a plain commit wins over an earlier pending one, whose events appear all the same": [
        *P,
        *pending("p", 0, 2, "zombie"),
        ("plain", 0, 1, "claim"),
        ("list", 0),
        ("end", "p"),
        ("settled", 0),
        ("read", 0),
    ],
    "a pending commit wins over an earlier plain one": [
        *P,
        ("plain", 0, 1, "claim"),
        *batch("p", 0, 2, "batch"),
        ("settled", 0),
    ],
    "of two pending commits the later sent wins, whoever ends first": [
        *P,
        *Q,
        *pending("p", 0, 1, "first"),
        *pending("q", 0, 2, "second"),
        ("end", "q"),
        ("end", "p"),
        ("settled", 0),
        *pending("p", 1, 1, "first"),
        *pending("q", 1, 2, "second"),
        ("end", "p"),
        ("end", "q"),
        ("settled", 1),
    ],
    "an aborted batch leaves nothing, and the next one works": [
        *P,
        *pending("p", 0, 2, "aborted"),
        ("abort", "p"),
        ("settled", 0),
        *batch("p", 0, 3, "next"),
        ("settled", 0),
        ("read", 0),
    ],
    "readers wait behind an open transaction and see the order of the log": [
        *P,
        *Q,
        ("produce", "p", 0, "first"),
        *batch("q", 0, 2, "second"),
        ("send", "p", 0, 1, "first"),
        ("end", "p"),
        ("read", 0),
    ],
    "the generation is checked where offsets are sent and never at the end": [
        *P,
        *Q,
        ("capture", "old"),
        ("produce", "p", 0, "early"),
        ("send", "p", 0, 1, "early", "old"),
        ("produce", "q", 1, "late"),
        ("another_member",),
        ("send", "q", 1, 1, "late", "old"),
        ("abort", "q"),
        ("end", "p"),
        ("settled", 0),
        ("read", 0),
        ("read", 1),
    ],
}


@pytest.mark.parametrize("title", SCRIPTS)
def test_the_simulated_broker_answers_as_the_real_one(title: str, real: Real) -> None:
    simulated = Simulated()
    for line in SCRIPTS[title]:
        verb, *words = line
        expected, found = getattr(real, verb)(*words), getattr(simulated, verb)(*words)
        assert found == expected, f"{line}: the real broker says {expected}, the simulated one {found}"
