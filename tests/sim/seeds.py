"""One seed: a drawn cluster, drawn clients, a drawn adversary; then calm, and everything must become terminal.

In the calm no transaction ever times out and nobody is woken, as long as one process is not frozen: what a dead or a
frozen owner left behind has to be cleared by the protocol alone. After the end the frozen wake, and the promises are
held to for a while longer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

from streamtask.domain.ports import DEAD, LETTERS, STATUS

from . import weights
from .adversary import Adversary, Mix
from .clients import Clients
from .cluster import EPOCH_MS, Cluster

CALM_LIMIT_MS = 600_000
CHILD_STARTS_MS = (0, 0, 50, 400, 4_000)  # the last is more than `begin_ms`
WAITS_FOR_OTHERS_MS = (0, 5, 5, 50, 50, 900, 4_000)  # behind one that takes longer than its type ever did: the last two
AFTERMATH_MS = 15_000


@dataclass(slots=True)
class Result:
    """What a run met, for the summary."""

    seed: int
    requests: int
    executions: int
    events: int
    deaths: int
    moments: int
    simulated_ms: int
    struck: dict[str, int]


class SeedFailed(AssertionError):
    """A run that broke a promise: its seed, what broke, its last steps."""


def run(seed: int, *, verbose: bool = False) -> Result:
    """Play one seed to its end. Raises SeedFailed."""
    story = Story(seed, verbose)
    try:
        return story.play()
    except Exception as why:  # whatever it is, the seed and the last steps are what one needs
        left = "\n  ".join(map(str, story.cluster.promises.unfinished()[:5]))
        text = f"seed {seed}: {type(why).__name__}: {why}\nunfinished:\n  {left}\nlast steps:\n{story.cluster.report()}"
        raise SeedFailed(text) from why


class Story:
    """The course of one seed."""

    def __init__(self, seed: int, verbose: bool) -> None:
        rng = random.Random(seed ^ 0x5EED)
        self.seed = seed
        self.rng = rng
        self.weights = random.Random(seed ^ 0x3E167)
        shards = rng.choice((1, 1, 2, 3))
        mix = Mix.drawn(rng)
        self.cluster = Cluster(
            seed,
            shards=shards,
            slots=rng.choice((1, 2, 2, 3, 4)),
            adversary=Adversary(random.Random(seed ^ 0xFA017), mix),
            latency_ms=rng.choice(((0, 1), (0, 3), (0, 30))),
            config=weights.drawn(self.weights),
            verbose=verbose,
        )
        self.cluster.child_starts_ms = CHILD_STARTS_MS
        self.cluster.waits_for_others_ms = WAITS_FOR_OTHERS_MS
        self.clients = Clients(rng, self.cluster.broker.bands, shards, EPOCH_MS)
        self.requests = rng.choice((4, 8, 16, 30))
        self.busy_ms = rng.choice((200, 2_000, 15_000, 30_000))
        self.submitted = 0

    def play(self) -> Result:
        cluster = self.cluster
        cluster.start_all()
        self._schedule()
        cluster.timeline.after(self.busy_ms, lambda: None)
        cluster.run(lambda: cluster.timeline.now >= self.busy_ms, limit_ms=self.busy_ms + 60_000, what="the busy phase")
        self._calm()
        cluster.run(lambda: not cluster.promises.open_count, limit_ms=CALM_LIMIT_MS, what="everything terminal")
        assert not cluster.promises.unfinished(), f"miscounted: {cluster.promises.unfinished()}"
        for process in cluster.processes:
            if process is not None and process.frozen:
                cluster.thaw(process)
        cluster.run_for(AFTERMATH_MS)
        self._all_read()
        promises = cluster.promises
        return Result(
            self.seed,
            len(promises.histories),
            promises.executions,
            promises.events,
            promises.deaths,
            cluster.moments,
            cluster.timeline.now,
            cluster.adversary.struck,
        )

    def _schedule(self) -> None:
        cluster, rng, shares = self.cluster, self.rng, self.cluster.adversary.mix.shares
        for _ in range(self.requests):
            cluster.timeline.after(rng.randint(0, self.busy_ms * 3 // 4), self._submit)
        for _ in range(rng.choice((0, 1, 4))):
            cluster.timeline.after(rng.randint(0, self.busy_ms), self._cancel)
        places = {
            "retention": self._retention,
            "gap": self._gap,
            "outage": self._outage,
            "sick": self._sick,
            "slow": self._slow,
            "leaderless": self._leaderless,
            "away": self._away,
        }
        for kind, strike in places.items():
            if kind in shares and rng.random() < 0.5:
                cluster.timeline.after(rng.randint(0, self.busy_ms), strike)

    def _submit(self) -> None:
        self.cluster.submit(weights.load(self.clients.next(self.cluster.timeline.now), self.weights))

    def _cancel(self) -> None:
        known = self.clients.known
        stranger = not known or self.rng.random() < 0.2
        self.cluster.cancel(self.clients.task_id() if stranger else self.rng.choice(known)[0])

    def _cell(self) -> tuple[int, int]:
        return self.rng.randrange(self.cluster.broker.bands), self.rng.randrange(self.cluster.broker.shards)

    def _retention(self) -> None:
        cell = self._cell()
        log = self.cluster.broker.logs[cell]
        if log.end > log.start:
            self.cluster.retain(cell, self.rng.randint(log.start, log.end))

    def _gap(self) -> None:
        cell = self._cell()
        if cell not in self.cluster.blocked_cells:
            self.cluster.gap(cell, self.rng.choice((1, 1, 7, 70)))

    def _sick(self) -> None:
        """A partition of tasks.status or tasks.dead takes nothing for a while, or tasks.dead is gone."""
        rng, broker = self.rng, self.cluster.broker
        shard = (STATUS, rng.randrange(broker.shards))
        place = rng.choice((shard, shard, (LETTERS, rng.randrange(broker.letter_partitions)), DEAD))
        self.cluster.sicken(place, rng.choice((100, 2_000, 10_000, 30_000)))
        self.struck("sick")

    def _leaderless(self) -> None:
        """A request partition has no leader for a while."""
        self.cluster.behead(self._cell(), self.rng.choice((100, 2_000, 10_000, 30_000)))
        self.struck("leaderless")

    def _slow(self) -> None:
        """A quota or a narrow link: results take their time."""
        cluster = self.cluster
        cluster.link_bytes_ms = self.rng.choice((50, 100, 1_000))
        cluster.note("broker", "the link is SLOW")
        cluster.timeline.after(self.rng.choice((500, 5_000, 20_000)), self._fast)
        self.struck("slow")

    def _fast(self) -> None:
        self.cluster.link_bytes_ms = 1 << 30

    def struck(self, kind: str) -> None:
        struck = self.cluster.adversary.struck
        struck[kind] = struck.get(kind, 0) + 1

    def _outage(self) -> None:
        """Everybody dies; when the group is empty, offsets or log ends are lost; then they come back."""
        cluster = self.cluster
        cluster.note("outage", "begins")
        for process in list(cluster.processes):
            if process is not None:
                cluster.crash(process, restart=False)
        cluster.timeline.after(25_000, self._outage_over)

    def _away(self) -> None:
        """No broker answers for a while."""
        adversary, length_ms = self.cluster.adversary, self.rng.choice((300, 2_000, 12_000))
        if not adversary.calm:
            self.cluster.note("brokers", f"are away for {length_ms} ms")
            adversary.away_until_ms = self.cluster.timeline.now + length_ms

    def _outage_over(self) -> None:
        cluster, rng = self.cluster, self.rng
        for id in list(cluster.broker.transactions):
            cluster.time_out(id)  # it has lasted longer than any transaction may
        if not any(cluster.processes) and not cluster.broker.group.members and not cluster.broker.pending:
            for shard in range(cluster.broker.shards):
                loss = rng.random()
                if loss < 0.3 and rng.random() < 0.6:
                    cluster.compact(shard)
                if loss < 0.3:
                    cluster.forget_offsets(shard)
                elif loss < 0.5:
                    cell = (rng.randrange(cluster.broker.bands), shard)
                    cluster.truncate(cell, rng.randint(0, cluster.broker.logs[cell].end))
        cluster.note("outage", "ends")
        for slot, process in enumerate(cluster.processes):
            if process is None:
                cluster.timeline.after(rng.randint(0, 200), partial(cluster.restart, slot))

    def _calm(self) -> None:
        cluster = self.cluster
        cluster.note("adversary", "rests")
        cluster.adversary.calm, cluster.adversary.away_until_ms = True, 0
        self._fast()
        for place in list(cluster.broker.sick):
            cluster.heal(place)
        processes = [p for p in cluster.processes if p is not None]
        cluster.timeouts = bool(processes) and all(p.frozen for p in processes)
        if cluster.timeouts:
            cluster.thaw(self.rng.choice(processes))
            cluster.timeouts = False

    def _all_read(self) -> None:
        """Whatever was decided has become visible: no transaction is left open, no reader is stuck."""
        for history in self.cluster.promises.histories.values():
            if history.ended is not None:
                assert history.seen is history.ended, f"{history.seen} is read of {history}"
