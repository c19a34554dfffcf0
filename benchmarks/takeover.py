"""How long a partition is silent when a worker process, or a whole host, dies under steady load, and where the time goes.

    process  one of a supervisor's two worker processes gets SIGKILL; the supervisor takes it out of the group and restarts it
    host     one of two supervisors with one worker process each gets SIGKILL, and its worker dies with it: nobody tells Kafka

Every partition is sent RATE_PER_S no-ops a second (--rate). Silence is the longest time between two terminal events of one
partition, as a reader of committed events sees them, from the death until all is quiet again: the rebalance that the
restarted process causes is part of it. The parts are from the events that the processes log, medians in seconds since the
step before.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from benchmarks.app import parameters
from benchmarks.latency import quantile
from benchmarks.soak.plant import children
from benchmarks.stand import Failed, OtherProcess, kafka, supervisor, topics
from benchmarks.warm import warm
from streamtask.client import Client
from streamtask.codec import peek_status
from streamtask.config import TopicNames
from streamtask.devbroker.cluster import DevBroker
from streamtask.domain.identity import new_task_id
from streamtask.domain.partitioner import partition_of
from streamtask.kafka.admin import group_members
from streamtask.kafka.tail import Tail

RATE_PER_S = 20  # of each partition: two terminal events 50 ms apart
WARM_TASKS = 60_000
# At first the brokers compile their own code: under this load three new ones kept 0.84 of two cores busy with that for 15 s,
# and 0.15 to 0.3 after a minute. A flush took 0.25 s meanwhile.
WARM_LOAD_S = 75.0
HOST_SHARE = 0.5  # a host's death takes ten times as long: so many of the kills
SETTLED_S, SETTLE_MAX_S = 4.0, 120.0
QUIET_S = 2.0  # no partition has been silent for longer
ENDED = ("completed", "failed", "cancelled", "expired")
PARTS = ("noticed_s", "removed_s", "rebalanced_s", "list_s", "fence_s", "read_s", "commit_s", "first_event_s")


def measure(
    bootstrap: str,
    *,
    tasks: int,
    concurrency: int,
    partitions: int,
    brokers: Sequence[int] = (1, 3),
    rate: float = RATE_PER_S,
) -> dict[str, Any]:
    """tasks: how many processes are killed; half as many hosts. Raises Failed."""
    figures: dict[str, Any] = {"kills": tasks}
    for count in brokers:
        with DevBroker(count) as broker:
            warm(broker.bootstrap, WARM_TASKS)
            for name, kills in (("process", tasks), ("host", max(1, round(tasks * HOST_SHARE)))):
                with topics(broker.bootstrap, f"takeover.{name}", partitions) as names:
                    found = _strike(broker.bootstrap, names, name, kills, concurrency, partitions, rate)
                figures |= {f"{name}_{count}_{key}": value for key, value in found.items()}
    return {**figures, "partitions": partitions}


def _strike(
    bootstrap: str, names: TopicNames, what: str, kills: int, concurrency: int, partitions: int, rate: float
) -> dict[str, Any]:
    silences: list[float] = []
    parts: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        two = 2 if what == "process" else 1

        def start() -> OtherProcess:
            return stack.enter_context(supervisor(bootstrap, names.prefix, concurrency, two))

        hosts = [start()] if what == "process" else [start(), start()]
        watch = stack.enter_context(_watching(bootstrap, names))
        stack.enter_context(_loading(bootstrap, names, partitions, rate))
        _settle(bootstrap, names, hosts, watch, partitions, 0.0)
        time.sleep(WARM_LOAD_S)
        for _ in range(kills):
            _settle(bootstrap, names, hosts, watch, partitions, 0.0)
            dead = hosts[0]
            victim = children(dead.pid)[0]
            killed_s = time.time()
            os.kill(victim if what == "process" else dead.pid, 9)
            if what == "host":
                dead.process.wait()
                hosts = [hosts[1], start()]
            _settle(bootstrap, names, hosts, watch, partitions, killed_s)
            silences.append(watch.silence(killed_s))
            for name, seconds in _parts(hosts[:1], watch, killed_s).items():
                parts[name].append(seconds)
        for host in hosts:
            host.check()
    return {
        "p50_s": round(statistics.median(silences), 2),
        "p90_s": round(quantile(silences, 0.9), 2),
        "max_s": round(max(silences), 2),
        "parts": {name: round(statistics.median(parts[name]), 3) for name in PARTS if parts[name]},
    }


# --- Load and what became of it ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _loading(bootstrap: str, names: TopicNames, partitions: int, rate: float) -> Iterator[None]:
    """So many requests a second for each partition, in a thread."""
    stopping = threading.Event()
    thread = threading.Thread(target=_load, args=(bootstrap, names, partitions, rate, stopping), name="load")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _load(bootstrap: str, names: TopicNames, partitions: int, rate: float, stopping: threading.Event) -> None:
    due_s, number = time.monotonic(), 0
    with contextlib.closing(Client(bootstrap, prefix=names.prefix)) as client:
        while not stopping.wait(max(due_s - time.monotonic(), 0)):
            requests = []
            for partition in range(partitions):
                while partition_of((task_id := new_task_id()).encode(), partitions) != partition:
                    pass
                number += 1
                requests.append({"task_type": "noop", "task_id": task_id, "parameters": parameters(number)})
            client.submit_many(requests)
            due_s += 1 / rate


class Watch:
    """When the terminal events of each partition came: {partition: wall-clock seconds}."""

    def __init__(self, bootstrap: str, names: TopicNames) -> None:
        self.ended_s: dict[int, list[float]] = defaultdict(list)
        self._tail = Tail(kafka(bootstrap), [names.status])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            records = self._tail.poll(1_000, 0.05)
            now_s = time.time()
            for record in records:
                if peek_status(record.value or b"")["status"] in ENDED:
                    self.ended_s[record.partition].append(now_s)

    def silence(self, since_s: float) -> float:
        """The longest time between two events of one partition that ended after this moment."""
        return max(
            later - earlier
            for times in self.ended_s.values()
            for earlier, later in itertools.pairwise(times)
            if later > since_s
        )

    def resumed_s(self, since_s: float) -> float:
        """When the longest silence that had begun by this moment was over."""
        return max(next((at for at in times if at > since_s + 0.05), since_s) for times in self.ended_s.values())

    def quiet(self, partitions: int, for_s: float) -> bool:
        """Every partition has ended tasks all the while."""
        now_s = time.time()
        return len(self.ended_s) == partitions and all(
            now_s - times[-1] < QUIET_S and times[0] < now_s - for_s for times in list(self.ended_s.values())
        )

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._tail.close()


@contextlib.contextmanager
def _watching(bootstrap: str, names: TopicNames) -> Iterator[Watch]:
    watch = Watch(bootstrap, names)
    try:
        yield watch
    finally:
        watch.close()


# --- Where the time goes ----------------------------------------------------------------------------------------------


def _told(process: OtherProcess) -> list[tuple[float, dict[str, Any]]]:
    """(wall-clock seconds, event) of its log, in order."""
    events = [json.loads(line) for line in process.said().splitlines() if line.startswith("{") and line.endswith("}")]
    return [(datetime.fromisoformat(one["timestamp"]).timestamp(), one) for one in events]


def _settle(
    bootstrap: str, names: TopicNames, hosts: Sequence[OtherProcess], watch: Watch, partitions: int, since_s: float
) -> None:
    """Until shards have moved after `since_s`, none for a while, both processes own half of them (the later ones of many
    deaths are restarted after a wait of seconds), and every partition goes on. Raises Failed."""
    deadline = time.monotonic() + SETTLE_MAX_S
    while True:
        for host in hosts:
            host.check()
        moves = [[at for at, one in _told(host) if one["event"].startswith("shards_")] for host in hosts]
        last_s = max((at for moved in moves for at in moved), default=0.0)
        at_rest = all(moves) and since_s < last_s < time.time() - SETTLED_S
        if at_rest and watch.quiet(partitions, SETTLED_S):
            _, members = group_members(kafka(bootstrap), names)
            if [len(member.shards) for member in members] == [partitions // 2] * 2:
                return
        if time.monotonic() > deadline:
            raise Failed(f"The workers did not come to rest within {SETTLE_MAX_S:g} s.")
        time.sleep(0.2)


def _parts(hosts: Sequence[OtherProcess], watch: Watch, killed_s: float) -> dict[str, float]:
    """Seconds of each step of the first take-over after the death, as far as the survivors' log tells."""
    after = [(at, one) for host in hosts for at, one in _told(host) if at >= killed_s]
    found: dict[str, float] = {}
    last_s = killed_s
    marks: dict[str, Callable[[dict[str, Any]], bool]] = {
        "noticed_s": lambda one: one.get("what") == "child_ended",
        "removed_s": lambda one: one["event"] == "member_removed",
        "rebalanced_s": lambda one: one["event"] == "shards_assigned" and bool(one["shards"]),
    }
    for name, wanted in marks.items():
        at_s = next((at for at, one in after if wanted(one)), None)
        if at_s is not None:
            found[name], last_s = max(at_s - last_s, 0.0), max(at_s, last_s)
    claim = next(((at, one) for at, one in after if one["event"] == "shards_claimed"), None)
    if claim is not None:
        for name in ("list", "fence", "read", "commit"):
            found[f"{name}_s"] = claim[1][f"{name}_ms"] / 1_000
        found["first_event_s"] = max(watch.resumed_s(killed_s) - claim[0], 0.0)
    return found
