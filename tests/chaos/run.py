"""One chaos run: brokers, workers and load up, the schedule played, everything healed and finished, and judged."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException

from streamtask.config import TopicNames
from streamtask.devbroker import cluster
from streamtask.devbroker.cluster import QUICK, DevBroker
from streamtask.errors import StreamtaskError
from streamtask.kafka import admin
from streamtask.kafka.tail import Tail
from tests.acceptance.harness import Bench, until
from tests.chaos.acting import Player
from tests.chaos.faults import Fault, table
from tests.chaos.fleet import Fleet
from tests.chaos.judge import by_origin, deleted, judge, letter_gone
from tests.chaos.kinds import LONG_S, LONGEST_S
from tests.chaos.layout import make_thin
from tests.chaos.load import Load
from tests.chaos.network import Network, ProxiedBroker
from tests.chaos.outcome import Outcome
from tests.chaos.schedule import Planned, schedule
from tests.chaos.stage import GONE_S, PARTITIONS, Stage
from tests.conftest import warm_up

WARM_TRIES = 5
BROKER_START_S = 240.0  # on a machine where everything else starts again, too
HOSTS = 3  # at the beginning and, at least, at the end
LONG_RUN_MINUTES, LONGEST_RUN_MINUTES = 5.0, 20.0
BEGIN_S = 180.0
HEAL_S = 90.0
FINISH_S = 300.0
LOOK_S = 0.2
SAID_LINES, SAID_CHARS = 4, 300


def run(
    seed: int,
    minutes: float,
    brokers: int,
    only: Collection[str] = (),
    *,
    rate: float | None = None,
    tell: Callable[[str], None] = print,
) -> Outcome:
    """Play the seed. Raises ValueError (no such fault) before anything is started."""
    plan, faults = schedule(seed, minutes, brokers, only), table()
    cluster.START_TIMEOUT_S = BROKER_START_S
    directory = Path(tempfile.mkdtemp(prefix="streamtask-chaos-"))
    outcome = Outcome(seed)
    proxied = any("network" in faults[one.fault].claims for one in plan)
    try:
        kafka = (ProxiedBroker if proxied else DevBroker)(brokers, config=QUICK)
        thin = any("thin" in faults[one.fault].needs for one in plan)
        with kafka, _network(kafka) as network, _bench(kafka, directory, thin=thin) as bench:
            try:
                _played(_Run(kafka, bench, network, plan, faults, minutes, rate, tell, directory), outcome)
            except (AssertionError, StreamtaskError, KafkaException) as error:
                outcome.violations.append(f"{type(error).__name__}: {error}")
            finally:
                bench.stop()
                if outcome.violations:
                    _keep(kafka, bench, directory)
    finally:
        if outcome.violations:
            outcome.evidence = directory
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return outcome


def _warm(bootstrap: str) -> None:
    """Coordinators of a cluster that has just begun still move: asked again."""
    for left in reversed(range(WARM_TRIES)):
        try:
            warm_up(bootstrap)
            return
        except KafkaException:
            if not left:
                raise


def _keep(kafka: DevBroker, bench: Bench, directory: Path) -> None:
    """Beside the logs of the workers and the record of executions: the brokers' logs, and every status event."""
    for log in kafka.directory.glob("broker*.log"):
        shutil.copy(log, directory)
    with (directory / "status.jsonl").open("w") as out:
        for events in bench.known().values():
            for one in events:
                out.write(f'{{"at": "{one.partition}@{one.offset}", "ms": {one.timestamp_ms}, "event": ')
                out.write(one.value.decode() + "}\n")


@dataclass
class _Run:
    kafka: DevBroker
    bench: Bench
    network: Network | None
    plan: list[Planned]
    faults: dict[str, Fault]
    minutes: float
    rate: float | None
    tell: Callable[[str], None]
    directory: Path


@contextlib.contextmanager
def _network(kafka: DevBroker) -> Iterator[Network | None]:
    if not isinstance(kafka, ProxiedBroker):
        yield None
        return
    with Network(kafka) as network:
        yield network


@contextlib.contextmanager
def _bench(kafka: DevBroker, directory: Path, *, thin: bool) -> Iterator[Bench]:
    _warm(kafka.bootstrap)
    names = TopicNames("chaos")
    admin.ensure_topics({"bootstrap.servers": kafka.bootstrap}, names, partitions=PARTITIONS)
    if thin:
        make_thin(kafka.bootstrap, names, PARTITIONS)
    yield Bench(kafka.bootstrap, names, directory, quiet=True)


def _played(this: _Run, outcome: Outcome) -> None:
    bench = this.bench
    bootstraps = this.network.bootstraps if this.network is not None else {"": this.kafka.bootstrap}
    fleet = Fleet(bench, this.directory, bootstraps)
    long_s = LONG_S * min(this.minutes / LONG_RUN_MINUTES, 1.0)
    longest_s = LONGEST_S * min(this.minutes / LONGEST_RUN_MINUTES, 1.0)
    load = Load(
        bench, outcome.seed, long_s, longest_s, this.minutes, **({} if this.rate is None else {"rate": this.rate})
    )
    stage = Stage(this.kafka, bench, fleet, load, this.tell, this.network)
    looked = 0.0

    def between() -> None:
        nonlocal looked
        load.check()
        if time.monotonic() - looked >= LOOK_S:
            bench.look()
            fleet.tend()
            looked = time.monotonic()

    for _ in range(HOSTS):
        fleet.start()
    if any("held" in this.faults[one.fault].needs for one in this.plan):
        fleet.start(held=True)
    load.start()

    def all_begun() -> bool:
        between()
        return _begun(bench, HOSTS)

    until(all_begun, "every host works", BEGIN_S)
    player = Player(stage, this.plan, this.faults, between)
    try:
        player.play(this.minutes * 60)
    except AssertionError as error:  # of a fault: a process that should have ended, a host that does not
        outcome.violations.append(str(error))
    stage.note("no more faults: healing, and finishing what is open")
    try:
        player.heal(HEAL_S)
        began = time.monotonic()
        _finish(stage, between)
        outcome.finish_s = time.monotonic() - began
    except AssertionError as error:
        outcome.violations.append(str(error))
    finally:
        fleet.thaw_all()
        outcome.struck, outcome.skipped, outcome.given_up = stage.struck, player.skipped, player.given_up
    judge(stage, outcome)


def _begun(bench: Bench, hosts: int) -> bool:
    return len({one.parent for one in bench.executions() if one.type == "async_nap"}) >= hosts


def _finish(stage: Stage, between: Callable[[], None]) -> None:
    """Everybody awake, enough of them there, no more load; then every request to its end, and everybody home."""
    fleet, load, bench = stage.fleet, stage.load, stage.bench

    def gone(origin: str) -> bool:
        # A duplicate whose refusal was forgotten with its letter is a task like any other once it has begun (decision 0007).
        return origin not in bench.known_origins and letter_gone(stage, origin)

    fleet.thaw_all()
    while len(fleet.wanted()) < HOSTS:
        fleet.start()
    load.stop()
    stage.note(f"{load.cancel_longest()} tasks that would go on for long are cancelled")
    deadline = time.monotonic() + FINISH_S
    while open_ := [one for one in load.acked if one not in bench.ended and not deleted(stage, one) and not gone(one)]:
        if time.monotonic() > deadline:
            known = by_origin(bench)
            told = [(one, [(s.status, s.event.attempt) for s in known.get(one, [])]) for one in sorted(open_)[:10]]
            text = f"{len(open_)} requests have not ended {FINISH_S:g} s after the last fault: {told}"
            raise AssertionError(text + bench.unread() + _held_back(bench) + _last_said(fleet))
        between()
        time.sleep(0.1)
    hosts = [host for host in fleet.wanted() if host.alive]
    for host in hosts:
        fleet.drain(host)
        code = host.running.wait(2 * GONE_S)
        # By the signal itself: it was still starting, and held nothing.
        assert code in (0, -signal.SIGTERM), (
            f"host {host.number} drained with exit code {code}:\n{host.running.text()[-2_000:]}"
        )
    for host in fleet.hosts:
        if host.alive:
            host.running.wait(2 * GONE_S)
    bench.look()


def _held_back(bench: Bench) -> str:
    """Partitions of tasks.status in which a transaction is still open, which no reader of committed records passes."""
    with Tail(bench.kafka, [bench.names.status]) as tail:
        stable, ends = tail.ends(read_committed=True), tail.ends(read_committed=False)
    held = {place: (stable[place], end) for place, end in ends.items() if stable[place] < end}
    return f"; a transaction is open at (last stable offset, end) {held}" if held else ""


def _last_said(fleet: Fleet) -> str:
    """What each host that lives has logged last: why it does not go on may stand there."""
    return "".join(
        f"\nhost {host.number} said last: {' '.join(line[:SAID_CHARS] for line in host.running.lines()[-SAID_LINES:])}"
        for host in fleet.hosts
        if host.alive
    )
