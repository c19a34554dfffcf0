"""Every broker frozen at once, at each step of the owner's loop: no turn takes long, and work goes on after it.

A worker's watchdog ends its process when the owner gives no sign of life for STUCK_S. A freeze of the brokers alone must
never be the reason, wherever the owner is when it comes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streamtask.app import App
from streamtask.codec import decode_status
from streamtask.codec.reader import PLAIN
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.devbroker.cluster import QUICK, DevBroker
from streamtask.domain.ports import (
    Answer,
    Ask,
    CommitPlain,
    EndTransaction,
    Fault,
    FaultKind,
    FenceIds,
    Flush,
    ListOffsets,
    ReadSettled,
    RecallStatus,
    RenewProducer,
    SendOffsets,
)
from streamtask.kafka import admin, permissions
from streamtask.kafka.acls import Role
from streamtask.kafka.broker_adapter import BrokerAdapter
from streamtask.kafka.consumer import ShardConsumer
from streamtask.kafka.side_reader import SideReader
from streamtask.kafka.tail import Tail
from streamtask.worker.recovery import ControlReader, StatusRecall
from streamtask.worker.watchdog import STUCK_S
from streamtask.worker.worker import Worker
from tests.conftest import warm_up
from tests.contract.member import wait_until

pytestmark = pytest.mark.broker
SHARDS = 6
MOCK_SHARDS = 4  # the partitions of a topic of the mock
FROZEN_S = 14.0  # longer than any one step may take
PAUSE = threading.Event()  # never set: between two looks
TURN_MAX_S = STUCK_S / 2
# Frozen for longer than its session with the controller, a broker alone serves nothing for up to a minute after it thaws.
PATIENT = {"broker.session.timeout.ms": "60000"}
MOCK = """\
from confluent_kafka import Producer
import sys
made = Producer({"test.mock.num.brokers": 1, "log_level": 0})
broker = next(iter(made.list_topics(timeout=5).brokers.values()))
print(f"{broker.host}:{broker.port}", flush=True)
sys.stdin.read()
"""


@contextmanager
def mock_broker() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """librdkafka's own broker in a process that can be frozen."""
    child = subprocess.Popen([sys.executable, "-c", MOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip(), child
    finally:
        child.kill()
        with child:  # closes its pipes, waits
            pass


def test_recovery_and_control_reading_never_wait_for_frozen_brokers() -> None:
    """Bug: 12 shards to recover kept the owner for 25 s in one turn, and the watchdog ended the process at 20."""
    names = TopicNames("t")
    with mock_broker() as (bootstrap, child):
        producer = Producer({"bootstrap.servers": bootstrap})
        for topic in names.all:
            for number in range(MOCK_SHARDS):
                producer.produce(topic, b"{}", partition=number)
        assert producer.flush(10) == 0
        side = SideReader(KafkaSettings(bootstrap), (names.control,))
        control, recall = ControlReader(side, names), StatusRecall(side, names)
        longest, turns = 0.0, 0
        ready: list[int] = []
        over: list[int] = []

        def turn() -> None:
            nonlocal longest, turns
            turns += 1
            began = time.monotonic()
            ready.extend(control.poll()[1])
            over.extend(shard for shard, _, _, done in recall.poll() if done)
            longest = max(longest, time.monotonic() - began)
            PAUSE.wait(0.005)

        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)  # it has stopped
        frozen = time.monotonic()
        control.await_end(tuple(range(MOCK_SHARDS)))
        for number in range(MOCK_SHARDS):
            recall.begin(RecallStatus(number, 1))
        wait_until(lambda: time.monotonic() > frozen + 7.0, turn=turn)  # the questions run into their timeouts, twice
        assert (ready, over) == ([], [])
        while_frozen = turns
        os.kill(child.pid, signal.SIGCONT)
        wait_until(lambda: ready and len(over) == MOCK_SHARDS, turn=turn)
        assert (sorted(ready), sorted(over)) == (list(range(MOCK_SHARDS)), list(range(MOCK_SHARDS)))
        side.close()
    # A turn that waits for answers takes 2 s for each shard; one that does not takes as long as the machine interrupts it.
    assert while_frozen > 50, f"{while_frozen} turns while it was frozen"
    assert longest < 5.0, f"a turn of {longest:.1f} s"


class Step:
    """One worker in a thread of this process. Its owner halts where the freeze is to find it.

    longest_s  the longest time without a sign of life since the brokers were frozen
    """

    def __init__(self, name: str, bootstrap: str) -> None:
        self.name = name
        self.names = TopicNames(f"frozen.{name}")
        self.arrived, self.go_on = threading.Event(), threading.Event()
        self.longest_s = 0.0
        self.tasks: set[str] = set()
        self.failures: list[BaseException] = []
        admin.ensure_topics({"bootstrap.servers": bootstrap}, self.names, partitions=SHARDS)
        self.app = App(name, bootstrap_servers=bootstrap, prefix=self.names.prefix)

        @self.app.task
        async def nothing() -> None: ...

        self.worker = Worker(name, self.app.registry, self.app.settings, lifespan=None)
        self.kafka = self.worker.kafka
        self.thread = threading.Thread(target=self._run, name=f"step-{name}", daemon=True)

    def _run(self) -> None:
        try:
            self.worker.run(signals=False)
        except BaseException as error:  # noqa: BLE001 asserted by the test
            self.failures.append(error)
            self.arrived.set()

    def submit(self) -> None:
        self.tasks |= {one.task_id for one in self.app.client().submit_many([{"task_type": "nothing"}] * 40)}

    def halt(self) -> None:
        """The owner has come here: wait for the freeze."""
        if not self.arrived.is_set():
            self.arrived.set()
            self.go_on.wait(300)

    def sample(self, frozen_s: float) -> None:
        if self.thread.is_alive():
            self.longest_s = max(self.longest_s, min(self.worker.watchdog.silent_s(), time.monotonic() - frozen_s))

    def until_all_ended(self) -> None:
        with Tail(self.kafka, [self.names.status]) as tail:
            left = set(self.tasks)

            def read() -> None:
                for record in tail.poll(1_000, 0.2):
                    event = decode_status(record.value or b"", PLAIN)
                    if event.ended:
                        left.discard(event.task_id)

            deadline = time.monotonic() + 90.0
            while left:
                assert time.monotonic() < deadline, f"{self.name}: {len(left)} of {len(self.tasks)} have not ended"
                read()


ASKS: dict[str, type] = {
    "list": ListOffsets,
    "fence": ReadSettled,
    "settled": ReadSettled,
    "plain": CommitPlain,
    "flush": Flush,
    "offsets": SendOffsets,
    "end": EndTransaction,
    "renew": RenewProducer,
}
METHODS: dict[str, tuple[type, str]] = {
    "control": (ControlReader, "await_end"),
    "recall": (StatusRecall, "begin"),
    "growth": (BrokerAdapter, "partition_counts"),
    "astray": (ShardConsumer, "_fetch"),
    "leave": (BrokerAdapter, "leave"),
}


class Halts:
    """Has the owner of each step halt at its place, and plants there what the place needs."""

    def __init__(self, steps: Iterable[Step], patch: pytest.MonkeyPatch) -> None:
        self._steps = {step.thread.name: step for step in steps}
        self._perform, self._count = BrokerAdapter.perform, permissions.partition_count
        patch.setattr(permissions, "partition_count", self._counted)
        patch.setattr(BrokerAdapter, "perform", lambda adapter, ask: self._performed(adapter, ask))
        for name, (owner, method) in METHODS.items():
            patch.setattr(owner, method, self._halting(name, getattr(owner, method)))

    def _here(self) -> Step | None:
        return self._steps.get(threading.current_thread().name)

    def _counted(self, kafka: KafkaSettings, names: TopicNames, role: Role) -> int:
        """For the step `growth`, none: as if the topics had grown since the worker looked."""
        step = self._here()
        return 0 if step is not None and step.name == "growth" else self._count(kafka, names, role)

    def _performed(self, adapter: BrokerAdapter, ask: Ask) -> Answer:
        step = self._here()
        if step is not None and step.name == "renew" and isinstance(ask, Flush) and not step.arrived.is_set():
            return Fault(FaultKind.FENCED, "planted")
        if step is None or step.arrived.is_set() or not isinstance(ask, ASKS.get(step.name, Flush)):
            return self._perform(adapter, ask)
        if step.name == "leave":
            step.worker.stop()
        if step.name in METHODS:
            return self._perform(adapter, ask)
        step.halt()
        if step.name == "fence":
            ask = FenceIds(tuple(f"{step.names.group}.gone.{number}" for number in range(40)))
        return self._perform(adapter, ask)

    def _halting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def halted(self_: Any, *arguments: Any) -> Any:
            step = self._here()
            if step is not None and step.name == name:
                if name != "astray":
                    step.halt()
                elif len(self_._seated) == 3 * SHARDS and not step.arrived.is_set():
                    step.halt()
                    self_._astray.update(self_._seated)
            return method(self_, *arguments)

        return halted


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_turn_of_the_owner_takes_long_wherever_a_freeze_of_all_brokers_finds_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "streamtask.worker.watchdog.STUCK_S", 1e9
    )  # it would end this process; its measure is asserted below
    with DevBroker(config={**QUICK, **PATIENT}) as kafka:
        warm_up(kafka.bootstrap)
        steps = [Step(name, kafka.bootstrap) for name in (*ASKS, *METHODS)]
        Halts(steps, monkeypatch)
        try:
            for step in steps:
                if step.name != "astray":
                    step.submit()
                if step.name == "recall":
                    spoil(step)
                step.thread.start()
            for step in steps:
                assert step.arrived.wait(150), f"{step.name} was not reached"
            kafka.freeze(1)
            frozen_s = time.monotonic()
            for step in steps:
                step.go_on.set()
            while time.monotonic() <= frozen_s + FROZEN_S:
                PAUSE.wait(0.02)
                for step in steps:
                    step.sample(frozen_s)
            kafka.thaw(1)
            for step in steps:
                if step.name != "leave":
                    step.submit()
                    step.until_all_ended()
        finally:
            kafka.thaw(1)
            for step in steps:
                step.go_on.set()
                step.worker.stop()
                step.thread.join(30)
                step.app.close()
        told = ", ".join(f"{step.name} {step.longest_s:.1f}" for step in steps)
        with capsys.disabled():
            print(
                f"\nlongest time without a sign of life while all brokers are frozen: {told} s (limit {STUCK_S:g})",
                end="",
            )
        assert [step.failures for step in steps if step.failures] == []
        assert max(step.longest_s for step in steps) < TURN_MAX_S, told


def spoil(step: Step) -> None:
    """Positions of the group that are not a worker's: every shard whose log is not empty has to be recovered."""
    consumer = Consumer({"bootstrap.servers": step.kafka.bootstrap, "group.id": step.names.group})
    parts = [TopicPartition(topic, n, 0, "foreign") for topic in step.names.requests for n in range(SHARDS)]
    consumer.commit(offsets=parts, asynchronous=False)
    consumer.close()
