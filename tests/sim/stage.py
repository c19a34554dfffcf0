"""A stage for named scenarios: a calm cluster, and cues that strike at one exact moment.

stage = Stage()
stage.on(EndTransaction, stage.crash, before=True)      # the next commit of anybody: dead just before it takes effect
stage.answer(EndTransaction, "applied")                 # the next commit takes effect, its answer is lost
stage.play()                                            # until every request is terminal
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from streamtask.domain.model import TaskStatus
from streamtask.domain.ports import Fault, Fetch, Poll

from .adversary import Adversary
from .clients import Wish, wish
from .cluster import Cluster
from .history import History
from .process import Process

Where = Callable[[Process, Any], bool]
LIMIT_MS = 90_000


class _Script(Adversary):
    """Does nothing of its own; answers as it was told."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.answers: list[tuple[type, Fault | str, Where]] = []

    def twist(self, process: Process, ask: object) -> Fault | str:
        if isinstance(ask, Poll | Fetch):
            return ""
        for cue in self.answers:
            if type(ask) is cue[0] and cue[2](process, ask):
                self.answers.remove(cue)
                return cue[1]
        return self._unanswered(ask) if process.cluster.timeline.now < self.away_until_ms else ""


def anywhere(process: Process, ask: object) -> bool:
    return True


def slot_of(slot: int) -> Callable[[Process, Any], bool]:
    """Asks of this slot's process."""
    return lambda process, ask: process.slot == slot


class Stage:
    """One calm cluster. Processes are named A1, B1, ...: slot and incarnation."""

    def __init__(self, *, slots: int = 2, shards: int = 1, seed: int = 0, **options: Any) -> None:
        self.script = _Script(random.Random(seed))
        options.setdefault("latency_ms", (1, 1))
        self.cluster = Cluster(seed, shards=shards, slots=slots, adversary=self.script, **options)
        self.cluster.supervised = False
        self.cluster.restarts = False
        self.broker = self.cluster.broker
        self.ids = random.Random(seed)
        self.struck = 0

    # -- what is there -------------------------------------------------------------------------------------------------

    def start(self, *slots: int) -> None:
        """Start these workers, one after the other, each one joined and at work before the next."""
        for slot in slots:
            process = self.cluster.start(slot)
            self.until(partial(self._settled, process), "it has joined and claimed")

    @staticmethod
    def _settled(process: Process) -> bool:
        if not process.alive or process.frozen:
            return True
        owned = process.engine.shards
        seated = {shard for _, shard in process.positions}
        return process.member is not None and all(
            s in seated or (s in owned and owned[s].refused) for s in process.held
        )

    def process(self, slot: int) -> Process:
        found = self.cluster.processes[slot]
        assert found is not None, f"nobody in slot {slot}"
        return found

    def submit(self, *script: str, **fields: Any) -> History:
        bits = f"{self.ids.getrandbits(128):032x}"
        task_id = fields.pop("task_id", f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}")
        return self.put(wish(task_id, *script, **fields))

    def put(self, asked: Wish) -> History:
        offset = self.cluster.submit(asked)
        assert offset >= 0, "the cell takes no records now"
        return self.cluster.promises.cells[asked.band, asked.shard][offset]

    # -- cues ----------------------------------------------------------------------------------------------------------

    def on(
        self,
        kind: type,
        act: Callable[[Process], object],
        *,
        before: bool = True,
        where: Where = anywhere,
        skip: int = 0,
    ) -> None:
        """At the next ask of this kind (after `skip` of them): act, before it takes effect or just after it has."""
        left = skip

        def trap(cluster: Cluster, process: Process, ask: Any, at_start: bool) -> bool:
            nonlocal left
            if type(ask) is not kind or at_start is not before or not where(process, ask):
                return False
            if left:
                left -= 1
                return False
            self.struck += 1
            act(process)
            return True

        self.cluster.traps.append(trap)

    def at_moment(self, number: int, act: Callable[[Process], object], *, of: Where) -> None:
        """At the n-th moment (two for every ask) of those that `of` picks."""
        left = number

        def trap(cluster: Cluster, process: Process, ask: Any, at_start: bool) -> bool:
            nonlocal left
            if not of(process, ask):
                return False
            if left:
                left -= 1
                return False
            self.struck += 1
            act(process)
            return True

        self.cluster.traps.append(trap)

    def answer(self, kind: type, answer: Fault | str, *, where: Where = anywhere) -> None:
        """What goes wrong with the next ask of this kind: a fault, or one of its performer's words."""
        self.script.answers.append((kind, answer, where))

    def away(self, for_ms: int) -> None:
        """No broker answers for so long."""
        self.script.away_until_ms = self.cluster.timeline.now + for_ms

    def crash(self, process: Process) -> None:
        self.cluster.crash(process)

    def freeze(self, process: Process) -> None:
        self.cluster.freeze(process, None)

    def hold_copies(self) -> None:
        """Late copies stay in the network until `deliver`."""
        self.broker.holds_copies = True

    def deliver(self, *_: object) -> None:
        copies, self.broker.copies = self.broker.copies, []
        assert copies, "no copy is in the network"
        for arrives in copies:
            arrives()

    def move(self, shard: int, slot: int) -> None:
        member = self.process(slot).member
        assert member is not None, f"slot {slot} has not joined"
        self.cluster.note("group", f"moves shard {shard} to {self.process(slot).name}")
        self.broker.group.move(shard, member)
        self.cluster.stir_all()

    # -- running -------------------------------------------------------------------------------------------------------

    def until(self, done: Callable[[], bool], what: str, limit_ms: int = LIMIT_MS) -> None:
        self.cluster.run(done, limit_ms=limit_ms, what=what)

    def until_running(self, history: History, attempt: int = 1) -> None:
        self.until(lambda: attempt in history.started, f"attempt {attempt} of {history.origin} runs")

    def until_ended(self, history: History, what: str) -> None:
        self.until(lambda: history.ended is not None, what)

    def until_struck(self, times: int = 1) -> None:
        self.until(lambda: self.struck >= times, "the cue has come")

    def play(self, limit_ms: int = LIMIT_MS) -> None:
        """Until everything is terminal, without any transaction timeout; then for a while longer."""
        self.cluster.timeouts = False
        self.until(lambda: not self.cluster.promises.open_count, "everything terminal", limit_ms)
        self.cluster.run_for(3_000)

    def expect(
        self, history: History, status: TaskStatus, *, attempt: int | None = None, lost: int | None = None
    ) -> None:
        assert history.ended is status, f"{history.ended}, not {status}: {history}"
        assert history.seen is status, f"{history.seen} is what readers see: {history}"
        if attempt is not None:
            assert history.attempt == attempt, f"attempt {history.attempt}, not {attempt}: {history}"
        if lost is not None:
            assert history.charges == lost, f"{history.charges} deaths, not {lost}: {history}"
