"""Who takes part, each in the configuration that two cores give most with, and what each one's word is worth.

The counts are scaled so that each measurement takes about four seconds: `--tasks` (60,000) is what 15,000 tasks a second
would do in that time, and a peer of which `per_s` are expected gets as many fewer. A tenth of `--tasks` shows that all of it
runs; its figures are of bursts, and no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.peers.apps.jobs import WAITS
from benchmarks.stand import Failed

JOBS: tuple[str, ...] = tuple(WAITS)  # noop first: its ratio orders the rows
FULL_PER_S = 15_000
TASKS_MIN = 100
TURNS = 10

RAW = "raw"
OURS = "streamtask"

REDIS = "Redis, AOF with fsync each second, no replica: its last second can be lost. "
KAFKA = "Kafka, here one replica without fsync. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Who takes part. The limit and ourselves are no more than this: they need no environment."""

    name: str
    per_s: tuple[int, int, int, int, int]  # expected, in the order of JOBS; only the counts depend on it
    configuration: str
    durability: str
    concurrency: int = 1

    def tasks(self, job: str, tasks: int) -> int:
        """How many of this job, where --tasks is `tasks`."""
        return scaled(self.per_s[JOBS.index(job)], tasks, self.concurrency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer(Known):
    """One way to run one peer."""

    environment: str  # requirements/NAME.txt; several ways share one
    package: str  # whose version is told
    script: str  # in apps/
    store: Literal["redis", "kafka"]
    mode: str = ""
    python: tuple[int, int] = (3, 11)  # the oldest that its package takes


def scaled(per_s: int, tasks: int, concurrency: int) -> int:
    """What of `tasks` is left for who does `per_s` a second; never more than `tasks`. At least TURNS for each place, else
    the first ones, which end at one moment, would be too large a share."""
    return min(tasks, max(tasks * per_s // FULL_PER_S, TURNS * concurrency, TASKS_MIN))


KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            name=RAW,
            per_s=(15_000, 800, 180, 900, 2_000),
            configuration="one process, 1,000 requests a transaction, the job done in the loop: the limit, not a peer",
            durability=KAFKA + "Results and offsets in one transaction; three events a task.",
        ),
        Known(
            name=OURS,
            per_s=(15_000, 10_000, 10_000, 1_500, 2_000),
            configuration="one process, 1,000 coroutines; cpu_1ms in 2 child processes",
            durability=KAFKA
            + "Three events a task, the start written ahead, events and offsets in one transaction: exactly once; "
            "handlers at least once.",
        ),
    )
}

PEERS: tuple[Peer, ...] = (
    Peer(
        name="quix-eos",
        environment="quix",
        package="quixstreams",
        script="quix_app",
        store="kafka",
        mode="exactly-once",
        per_s=(12_000, 700, 180, 700, 2_000),
        configuration="one thread, a commit each 1,000 records or 0.5 s",
        durability=KAFKA + "Results and offsets in one transaction: exactly once.",
    ),
    Peer(
        name="quix-alo",
        environment="quix",
        package="quixstreams",
        script="quix_app",
        store="kafka",
        mode="at-least-once",
        per_s=(12_000, 700, 180, 800, 2_000),
        configuration="one thread, a commit each 1,000 records or 0.5 s",
        durability=KAFKA + "At least once: results twice after a crash.",
    ),
    Peer(
        name="faust",
        environment="faust",
        package="faust-streaming",
        script="faust_app",
        store="kafka",
        concurrency=100,
        per_s=(2_500, 2_500, 2_500, 600, 1_500),
        configuration="one process, 100 coroutines",
        durability=KAFKA + "At least once; results sent without waiting.",
    ),
    Peer(
        name="faststream",
        environment="faststream",
        package="faststream",
        script="faststream_app",
        store="kafka",
        mode="each",
        concurrency=100,
        per_s=(1_500, 1_500, 1_500, 500, 1_000),
        configuration="one process, confluent-kafka, 100 coroutines",
        durability=KAFKA + "At most once: the consumer commits by itself, what was running in a crash is lost.",
    ),
    Peer(
        name="faststream-batch",
        environment="faststream",
        package="faststream",
        script="faststream_app",
        store="kafka",
        mode="batch",
        concurrency=500,
        per_s=(6_000, 6_000, 5_000, 800, 2_000),
        configuration="one process, confluent-kafka, a handler for 500 requests at once",
        durability=KAFKA + "At least once, by batches.",
    ),
    *(
        Peer(
            name=f"pyrallel-{engine}-{output}",
            environment="pyrallel",
            package="pyrallel-consumer",
            script="pyrallel_app",
            store="kafka",
            mode=f"{engine}-{output}",
            concurrency=500 if engine == "async" else 200,  # in flight
            per_s=per_s,
            configuration=("500 coroutines" if engine == "async" else "2 child processes, batches of 64")
            + ", unordered",
            durability=KAFKA
            + (
                "At least once; it has no output: the handler awaits its own."
                if output == "awaited"
                else "The request is committed before its result is known to be stored: results can be lost."
            ),
            python=(3, 12),
        )
        for engine, output, per_s in (
            ("async", "awaited", (5_000, 5_000, 5_000, 600, 1_500)),
            ("async", "forget", (10_000, 6_000, 5_000, 600, 2_000)),
            ("process", "awaited", (1_000, 500, 250, 600, 500)),
            ("process", "forget", (3_500, 1_500, 350, 1_000, 1_000)),
        )
    ),
    Peer(
        name="celery-prefork",
        environment="celery",
        package="celery",
        script="celery_app",
        store="redis",
        mode="prefork",
        concurrency=2,
        per_s=(700, 500, 250, 500, 300),
        configuration="prefork, 2 processes, acks_late, prefetch 16 each",
        durability=REDIS + "At least once (acks_late): what was running returns after its visibility timeout.",
    ),
    Peer(
        name="celery-threads",
        environment="celery",
        package="celery",
        script="celery_app",
        store="redis",
        mode="threads",
        concurrency=100,
        per_s=(600, 600, 600, 400, 350),
        configuration="one process, 100 threads, acks_late, prefetch 16 each",
        durability=REDIS + "At least once (acks_late): what was running returns after its visibility timeout.",
    ),
    Peer(
        name="dramatiq",
        environment="dramatiq",
        package="dramatiq",
        script="dramatiq_app",
        store="redis",
        concurrency=16,
        per_s=(2_000, 2_000, 1_500, 700, 1_500),
        configuration="2 processes of 8 threads",
        durability=REDIS + "At least once: acknowledged after the actor, requeued when its worker is missed.",
    ),
    Peer(
        name="taskiq",
        environment="taskiq",
        package="taskiq",
        script="taskiq_app",
        store="redis",
        concurrency=200,
        per_s=(2_500, 2_000, 2_000, 1_000, 1_000),
        configuration="2 processes of 100 coroutines, Redis stream, acknowledged when the result is saved",
        durability=REDIS + "At least once: an idle entry of the stream is claimed again.",
    ),
    Peer(
        name="arq",
        environment="arq",
        package="arq",
        script="arq_app",
        store="redis",
        concurrency=200,
        per_s=(1_400, 1_200, 1_400, 500, 700),
        configuration="2 processes of 100 coroutines, poll_delay 10 ms",
        durability=REDIS + "At least once: a job leaves the queue when it is done.",
    ),
    Peer(
        name="rq",
        environment="rq",
        package="rq",
        script="rq_app",
        store="redis",
        concurrency=2,
        per_s=(500, 350, 230, 250, 300),
        configuration="2 SimpleWorkers: a job runs in its worker, without a fork for each",
        durability=REDIS + "A job whose worker dies fails once it is missed; it is run again only if it says so.",
    ),
)


def chosen(names: Sequence[str]) -> list[Peer]:
    """Those of PEERS that these name; a name takes each way that begins with it: celery, pyrallel-async. () is all.

    Raises Failed for a name that is none.
    """
    if not names:
        return list(PEERS)
    unknown = [name for name in names if not any(_named(peer, name) for peer in PEERS)]
    if unknown:
        known = ", ".join(peer.name for peer in PEERS)
        raise Failed(f"--peers {','.join(unknown)}: no such peer. There are {known}.")
    return [peer for peer in PEERS if any(_named(peer, name) for name in names)]


def _named(peer: Peer, name: str) -> bool:
    return name == peer.name or peer.name.startswith(f"{name}-")
