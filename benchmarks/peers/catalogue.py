"""Who takes part, each as its documentation recommends for the cores of this machine, and what each promises.

Every system gets all cores. streamtask has its defaults, and nothing else in its row; the others are tuned. The counts are
scaled so that each measurement takes about four seconds: `--tasks` (60,000) is what 15,000 tasks a second would do in that
time, and a peer of which `per_s` are expected gets as many fewer. A tenth of `--tasks` shows that all of it runs; its figures
are of bursts, and no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.peers.apps.jobs import JOBS, TABLE
from benchmarks.stand import Failed
from streamtask.config.container import cores

__all__ = ["JOBS", "KNOWN", "OURS", "PEERS", "RAW", "TABLE", "Known", "Peer", "chosen", "scaled"]

FULL_PER_S = 15_000
TASKS_MIN = 100
TURNS = 10

RAW = "raw"
OURS = "streamtask"

REDIS = "Redis, AOF with fsync each second, no replica: its last second can be lost. "
KAFKA = "Kafka, here one replica without fsync. "
# Tasks that do nothing: beside the broker on two cores, one process can be faster than two.
READ_AND_WRITE = ("noop", "payload_20k")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Who takes part. The raw loop and streamtask are no more than this: they need no environment."""

    name: str
    title: str  # in the table
    guarantee: str  # in the table: a few words that anyone understands
    per_s: tuple[int, int, int, int, int, int]  # expected, in the order of JOBS; only the counts depend on it
    configuration: str
    durability: str
    concurrency: int = 1  # of each process

    def tasks(self, job: str, tasks: int) -> int:
        """How many of this job, where --tasks is `tasks`."""
        return scaled(self.per_s[JOBS.index(job)], tasks, self.concurrency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer(Known):
    """One way to run one peer."""

    environment: str  # requirements/NAME.txt; several ways share one
    package: str  # its version is printed
    script: str  # in apps/
    store: Literal["redis", "kafka"]
    mode: str = ""
    python: tuple[int, int] = (3, 11)  # the oldest that its package takes
    either: tuple[str, ...] = ()  # jobs that are measured with one process too, and the faster counts
    members: bool = True  # of Kafka: each process is a member of the group
    committed: bool = True  # of Kafka: it reads committed records only, so the backlog can lie there before it starts

    def processes(self, job: str) -> tuple[int, ...]:
        """How many processes are tried: one a core, and one where that may be faster."""
        many = cores().count
        return (1, many) if job in self.either and many > 1 else (many,)


def scaled(per_s: int, tasks: int, concurrency: int) -> int:
    """How many of `tasks` a system gets that does `per_s` a second; never more than `tasks`.

    At least TURNS for each place, because the first ones end at one moment and would be too large a share; but at most twice
    what it does in the time of the others.
    """
    usual = tasks * per_s // FULL_PER_S
    return min(tasks, max(usual, min(TURNS * concurrency, 2 * usual), TASKS_MIN))


KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            name=RAW,
            title="raw confluent-kafka loop",
            guarantee="exactly once, 3 events; no task system",
            per_s=(15_000, 380, 1_800, 3_000, 530, 1_700),
            configuration="a process per core, or one where that is faster; 1,000 requests a transaction, the job done in "
            "the loop: the limit, not a peer",
            durability=KAFKA + "Results and offsets in one transaction; three events a task.",
        ),
        Known(
            name=OURS,
            title="streamtask",
            guarantee="status exactly once, 3 events, start written ahead; a task of a dead worker runs again",
            per_s=(15_000, 10_000, 1_500, 3_000, 4_000, 10_000),
            configuration="`streamtask worker` with all its defaults: a process per core. Tasks that compute are process "
            "handlers, as the documentation recommends for work that keeps a CPU busy; the others are coroutines",
            durability=KAFKA
            + "Three events a task, the start written ahead, events and offsets in one transaction: exactly once; "
            "handlers at least once.",
        ),
    )
}

PEERS: tuple[Peer, ...] = (
    *(
        Peer(
            name=name,
            title=f"Quix Streams, {title}",
            guarantee=guarantee,
            environment="quix",
            package="quixstreams",
            script="quix_app",
            store="kafka",
            mode=mode,
            either=READ_AND_WRITE,
            per_s=(15_000, 370, 1_700, 3_000, 530, 1_500),
            configuration="a process per core, or one where that is faster, each one thread; a commit each 1,000 records "
            "or 0.5 s",
            durability=KAFKA + durability,
        )
        for name, mode, title, guarantee, durability in (
            (
                "quix-eos",
                "exactly-once",
                "exactly once",
                "result exactly once, no start event; one record after the other",
                "Results and offsets in one transaction: exactly once.",
            ),
            (
                "quix-alo",
                "at-least-once",
                "at least once",
                "results twice after a crash; one record after the other",
                "At least once: results twice after a crash.",
            ),
        )
    ),
    Peer(
        name="faust",
        title="Faust, one by one",
        guarantee="a task of a dead worker runs again; a result that was not sent yet is lost",
        environment="faust",
        package="faust-streaming",
        script="faust_app",
        store="kafka",
        mode="each",
        committed=False,
        concurrency=100,
        per_s=(5_000, 4_000, 1_500, 3_000, 2_000, 4_000),
        configuration="a process per core, each an agent of 100 coroutines; uvloop",
        durability=KAFKA + "At least once; results sent without waiting.",
    ),
    Peer(
        name="faust-batch",
        title="Faust, by batches",
        guarantee="a batch of a dead worker runs again; a result that was not sent yet is lost",
        environment="faust",
        package="faust-streaming",
        script="faust_app",
        store="kafka",
        mode="batch",
        committed=False,
        concurrency=500,
        per_s=(9_000, 8_000, 1_500, 3_000, 3_000, 8_000),
        configuration="a process per core, each an agent that takes 500 requests, or those of 20 ms; uvloop",
        durability=KAFKA + "At least once, by batches; results sent without waiting.",
    ),
    Peer(
        name="faststream",
        title="FastStream, one by one",
        guarantee="a task of a dead worker is lost",
        environment="faststream",
        package="faststream",
        script="faststream_app",
        store="kafka",
        mode="each",
        concurrency=100,
        per_s=(3_500, 3_500, 1_000, 2_000, 2_000, 3_500),
        configuration="a process per core (`--workers`), each confluent-kafka and 100 coroutines; uvloop",
        durability=KAFKA + "At most once: the consumer commits by itself, what was running in a crash is lost.",
    ),
    Peer(
        name="faststream-batch",
        title="FastStream, by batches",
        guarantee="a batch of a dead worker runs again; one handler for 500 requests",
        environment="faststream",
        package="faststream",
        script="faststream_app",
        store="kafka",
        mode="batch",
        concurrency=500,
        per_s=(12_000, 10_000, 1_500, 3_000, 4_000, 10_000),
        configuration="a process per core (`--workers`), each confluent-kafka and a handler for 500 requests at once; uvloop",
        durability=KAFKA + "At least once, by batches.",
    ),
    *(
        Peer(
            name=f"pyrallel-{engine}-{output}",
            title=f"Pyrallel-Consumer, {'coroutines' if engine == 'async' else 'processes'}, results {output}",
            guarantee=guarantee,
            environment="pyrallel",
            package="pyrallel-consumer",
            script="pyrallel_app",
            store="kafka",
            mode=f"{engine}-{output}",
            members=engine == "async",
            concurrency=2_000,  # in flight, as in its own benchmark
            per_s=per_s,
            configuration=(
                "a process per core, each 2,000 coroutines"
                if engine == "async"
                else "one process with a child per core, 2,000 in flight, batches of 64"
            )
            + ", unordered",
            durability=KAFKA + durability,
            python=(3, 12),
        )
        for engine, per_s in (
            ("async", (10_000, 8_000, 900, 3_000, 3_000, 8_000)),
            ("process", (3_500, 350, 900, 1_500, 450, 1_200)),
        )
        for output, guarantee, durability in (
            (
                "awaited",
                "a task of a dead worker runs again",
                "At least once; it has no output: the handler awaits its own.",
            ),
            (
                "forgotten",
                "results can be lost",
                "The request is committed before its result is known to be stored: results can be lost.",
            ),
        )
    ),
    Peer(
        name="celery-prefork",
        title="Celery on Redis, prefork",
        guarantee="a task of a dead worker runs again after an hour; Redis can lose its last second",
        environment="celery",
        package="celery",
        script="celery_app",
        store="redis",
        mode="prefork",
        per_s=(900, 300, 550, 700, 350, 700),
        configuration="prefork, a process per core, acks_late, prefetch 16 each",
        durability=REDIS + "At least once (acks_late): what was running returns after its visibility timeout.",
    ),
    Peer(
        name="celery-threads",
        title="Celery on Redis, threads",
        guarantee="a task of a dead worker runs again after an hour; Redis can lose its last second",
        environment="celery",
        package="celery",
        script="celery_app",
        store="redis",
        mode="threads",
        concurrency=50,
        per_s=(900, 900, 600, 700, 800, 900),
        configuration="a worker per core, each 50 threads, acks_late, prefetch 16 each",
        durability=REDIS + "At least once (acks_late): what was running returns after its visibility timeout.",
    ),
    Peer(
        name="dramatiq",
        title="Dramatiq on Redis",
        guarantee="a task of a dead worker runs again; Redis can lose its last second",
        environment="dramatiq",
        package="dramatiq",
        script="dramatiq_app",
        store="redis",
        concurrency=8,
        per_s=(3_000, 2_000, 1_000, 2_500, 1_500, 2_500),
        configuration="a process per core, each 8 threads",
        durability=REDIS + "At least once: acknowledged after the actor, requeued when its worker is missed.",
    ),
    Peer(
        name="taskiq",
        title="Taskiq on Redis",
        guarantee="a task of a dead worker runs again after ten minutes; Redis can lose its last second",
        environment="taskiq",
        package="taskiq",
        script="taskiq_app",
        store="redis",
        concurrency=100,
        per_s=(3_000, 3_000, 1_200, 2_400, 2_000, 3_000),
        configuration="a process per core, each 100 coroutines; uvloop; Redis stream, acknowledged when saved",
        durability=REDIS + "At least once: an idle entry of the stream is claimed again.",
    ),
    Peer(
        name="arq",
        title="arq on Redis",
        guarantee="a task of a dead worker runs again; Redis can lose its last second",
        environment="arq",
        package="arq",
        script="arq_app",
        store="redis",
        concurrency=100,
        per_s=(1_600, 1_600, 950, 1_300, 1_400, 1_600),
        configuration="a process per core, each 100 coroutines; poll_delay 10 ms",
        durability=REDIS + "At least once: a job leaves the queue when it is done.",
    ),
    Peer(
        name="rq",
        title="RQ on Redis",
        guarantee="a task of a dead worker fails, or runs again if it says so; Redis can lose its last second",
        environment="rq",
        package="rq",
        script="rq_app",
        store="redis",
        per_s=(450, 250, 450, 450, 280, 380),
        configuration="a SimpleWorker per core: a job runs in its worker, without a fork for each",
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
