"""A whole prefix under simulation: broker, group, processes, clients, adversary and promises on one timeline.

Everything that happens is drawn from one seed. `note` keeps the last steps for the report of a broken promise.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from streamtask.config import EngineConfig
from streamtask.domain.model import BANDS
from streamtask.domain.ports import Cell, Fault, Place

from .adversary import Adversary
from .broker import ONGOING, Broker
from .clients import Wish
from .describe import describe
from .handlers import config as default_config
from .process import Process
from .promises import Promises
from .timeline import Timeline

SESSION_MS = 10_000
TRANSACTION_MS = 10_000
EPOCH_MS = 1_790_000_000_000
Trap = Callable[["Cluster", Process, Any, bool], bool]


def _asked(wish: Wish) -> str:
    request = wish.request
    if request is None:
        return f"{wish.task_id[:8]} {wish.problem}"
    fields = {k: v for k, v in (("key", request.ordering_key), ("timeout", request.timeout_seconds)) if v is not None}
    return f"{wish.task_id[:8]} {request.task_type} {(request.parameters or {}).get('script')} {fields or ''}"


class Cluster:
    """One run. `latency_ms`: what an ask takes on its way and back; `traps`: see scenarios.py."""

    def __init__(
        self,
        seed: int,
        *,
        shards: int = 1,
        slots: int = 2,
        adversary: Adversary | None = None,
        config: EngineConfig | None = None,
        latency_ms: tuple[int, int] = (0, 3),
        verbose: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.timeline = Timeline(self.rng)
        self.epoch_ms = EPOCH_MS
        self.config = config or default_config()
        self.adversary = adversary or Adversary(self.rng)
        self.latency_ms = latency_ms
        self.verbose = verbose
        self.steps: deque[tuple[int, str, object]] = deque(maxlen=80)
        self.moments = 0
        self.traps: list[Trap] = []
        self.promises = Promises([band.name for band in BANDS], lambda: self.timeline.now)
        self.broker = Broker(len(BANDS), shards, self.timeline, self.rng, self.promises)
        self.broker.delays.slow_marker_share = self.adversary.mix.slow_markers
        self.promises.broker = self.broker
        self.blocked_cells: set[Cell] = set()
        self.incarnations = [0] * slots
        self.processes: list[Process | None] = [None] * slots
        self.restarts = True
        self.supervised = self.rng.random() < 0.5  #: a dead process is removed from the group at once
        self.timeouts = True
        self.child_starts_ms: tuple[int, ...] = (0,)
        self.waits_for_others_ms: tuple[int, ...] = (0,)  #: of executions that share slots, before they begin
        self.link_bytes_ms = 1 << 30  #: of results that a flush takes in a millisecond

    # -- what happened -------------------------------------------------------------------------------------------------

    def note(self, who: str, what: object) -> None:
        self.steps.append((self.timeline.now, who, what))
        if self.verbose:
            print(self.line(self.steps[-1]))

    @staticmethod
    def line(step: tuple[int, str, object]) -> str:
        return f"{step[0]:>8} ms  {step[1]:8} {describe(step[2])}"

    def report(self) -> str:
        return "\n".join(self.line(step) for step in self.steps)

    def latency(self) -> int:
        low, high = self.latency_ms
        return self.rng.randint(low, high) if high else 0

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, slot: int) -> Process:
        assert self.processes[slot] is None, f"slot {slot} is taken"
        self.incarnations[slot] += 1
        process = self.processes[slot] = Process(self, slot, self.incarnations[slot])
        self.note(process.name, "starts")
        return process

    def start_all(self) -> None:
        for slot in range(len(self.processes)):
            self.timeline.after(self.rng.randint(0, 200), partial(self.start, slot))

    def crash(self, process: Process, *, restart: bool | None = None) -> None:
        """kill -9: its session ends later (or at once, under a supervisor), its open transaction stays."""
        if not process.alive:
            return
        self.note(process.name, f"CRASH ({process.doing})")
        process.die()
        self.processes[process.slot] = None
        self._watch_transaction(process.producer.id)
        member = process.member
        if member is not None:
            delay = (
                self.rng.randint(300, 1_000) if self.supervised else self.rng.randint(SESSION_MS - 1_000, SESSION_MS)
            )
            self.timeline.after(delay, lambda: self._end_session(member))
        if self.restarts if restart is None else restart:
            slot = process.slot
            self.timeline.after(self.rng.randint(50, 3_000), lambda: self.restart(slot))

    def left(self, process: Process) -> None:
        """It has drained: its handlers, its membership and its process are gone, cleanly."""
        self.note(process.name, "has drained and leaves")
        process.die()
        self.processes[process.slot] = None
        self.broker.group.remove(process.member or 0)
        self.stir_all()
        if self.restarts:
            slot = process.slot
            self.timeline.after(self.rng.randint(50, 3_000), lambda: self.restart(slot))

    def restart(self, slot: int) -> None:
        if self.processes[slot] is None:
            self.start(slot)

    def _end_session(self, member: int) -> None:
        if self.broker.group.member(member):
            self.note("group", f"the session of member {member} ends")
            self.broker.group.remove(member)
            self.stir_all()

    def freeze(self, process: Process, length_ms: int | None) -> None:
        """SIGSTOP. Its session ends if it is long enough; None: until somebody wakes it."""
        self.note(process.name, f"FREEZE for {length_ms} ms ({process.doing})")
        process.frozen = True
        self._watch_transaction(process.producer.id)
        member = process.member
        if member is not None:
            self.timeline.after(
                self.rng.randint(SESSION_MS - 1_000, SESSION_MS), lambda: self._frozen_out(process, member)
            )
        if length_ms is not None:
            self.timeline.after(length_ms, lambda: self.thaw(process))

    def _frozen_out(self, process: Process, member: int) -> None:
        if process.frozen and process.alive:
            self._end_session(member)

    def thaw(self, process: Process) -> None:
        if process.alive and process.frozen:
            self.note(process.name, "WAKES")
            process.wake()

    def expire(self, process: Process) -> bool:
        """The session of a live process ends: its heartbeats were lost."""
        if not self.broker.group.member(process.member):
            return False
        self.note(process.name, "its session EXPIRES")
        self.broker.group.remove(process.member or 0)
        self.stir_all()
        return True

    def time_out(self, id: str) -> bool:
        """The coordinator aborts an open transaction that has lasted too long."""
        found = self.broker.transactions.get(id)
        if found is None or found.state != ONGOING:
            return False
        self.note("broker", f"transaction TIMEOUT of {id}")
        self.broker.abort_from_outside(id)
        return True

    def _watch_transaction(self, id: str) -> None:
        def over() -> None:
            found = self.broker.transactions[id]
            if self.timeouts and found.state == ONGOING and self.timeline.now - found.since_ms >= TRANSACTION_MS:
                self.time_out(id)

        self.timeline.after(TRANSACTION_MS + self.rng.randint(0, TRANSACTION_MS), over)

    def stir_all(self) -> None:
        for process in self.processes:
            if process is not None:
                process.stir()

    # -- the adversary's moments ---------------------------------------------------------------------------------------

    def strikes(self, process: Process, ask: object, *, before: bool) -> bool:
        """A cut between two moments. True: the process goes no further here."""
        self.moments += 1
        for trap in list(self.traps):
            if trap(self, process, ask, before):
                self.traps.remove(trap)
        if before and not process.alive:
            return True
        if before and process.frozen:
            return True
        return self.adversary.strikes(self, process, ask, before=before)

    def twist(self, process: Process, ask: object) -> Fault | str:
        return self.adversary.twist(process, ask)

    # -- clients -------------------------------------------------------------------------------------------------------

    def submit(self, wish: Wish) -> int:
        """The record is acknowledged. Returns its offset; -1 when the cell takes none at the moment."""
        cell = (wish.band, wish.shard)
        if cell in self.blocked_cells or cell in self.broker.leaderless:
            return -1
        log = self.broker.logs[cell]
        record = wish.record(log.end, self.epoch_ms + self.timeline.now)
        log.append(record)
        self.promises.appended(record, wish.lost_max)
        self.note("client", f"{BANDS[wish.band].name}-{wish.shard}@{record.offset} {_asked(wish)}")
        self.stir_all()
        return record.offset

    def cancel(self, task_id: str) -> None:
        self.note("client", f"cancels {task_id[:8]}")
        self.broker.control.append(task_id)
        self.stir_all()

    # -- logs and offsets ----------------------------------------------------------------------------------------------

    def retain(self, cell: Cell, start: int) -> None:
        """Retention removes everything below `start`."""
        log = self.broker.logs[cell]
        before = log.start
        log.retain(start)
        self.note("broker", f"{cell} starts at {log.start} now")
        self.promises.removed(cell, range(before, log.start))

    def sicken(self, place: Place, length_ms: int | None) -> None:
        """This partition takes nothing for so long; None: until it is healed."""
        self.note("broker", f"{place} is SICK for {length_ms} ms")
        self.broker.sick.add(place)
        if length_ms is not None:
            self.timeline.after(length_ms, lambda: self.heal(place))

    def heal(self, place: Place) -> None:
        if place in self.broker.sick:
            self.note("broker", f"{place} is well again")
            self.broker.sick.discard(place)

    def behead(self, cell: Cell, length_ms: int | None) -> None:
        """This request partition has no leader for so long; None: until it has one again."""
        self.note("broker", f"{cell} has NO LEADER for {length_ms} ms")
        self.broker.leaderless.add(cell)
        if length_ms is not None:
            self.timeline.after(length_ms, lambda: self.lead(cell))

    def lead(self, cell: Cell) -> None:
        if cell in self.broker.leaderless:
            self.note("broker", f"{cell} has a leader again")
            self.broker.leaderless.discard(cell)
            self.stir_all()

    def gap(self, cell: Cell, length: int) -> None:
        """Offsets that hold no record: transaction markers, compaction."""
        self.broker.logs[cell].end += length

    def truncate(self, cell: Cell, end: int) -> None:
        """The log is shorter than it was: restored from a copy. Nothing is written before an owner has sought."""
        log = self.broker.logs[cell]
        before = log.end
        log.truncate(end)
        self.note("broker", f"{cell} ends at {log.end} now")
        self.promises.removed(cell, range(log.end, before))
        self.promises.truncated(cell, log.end)
        self.blocked_cells.add(cell)

    def compact(self, shard: int) -> None:
        """tasks.status keeps one event of each task_id."""
        self.broker.compact(shard)
        self.note("broker", f"tasks.status of shard {shard} is compacted")

    def forget_offsets(self, shard: int) -> None:
        """The group's offsets of this shard are gone."""
        for band in range(len(BANDS)):
            self.broker.committed.pop((band, shard), None)
        self.note("broker", f"the offsets of shard {shard} are lost")
        self.promises.forgotten(shard)

    def make_anew(self, cell: Cell) -> None:
        """Its topic is deleted and created again, and the group's offsets of it go with it. Clients write at once."""
        self.truncate(cell, 0)
        self.blocked_cells.discard(cell)
        self.broker.committed.pop(cell, None)

    def seated(self, cell: Cell) -> None:
        self.blocked_cells.discard(cell)

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], *, limit_ms: int, what: str = "") -> None:
        """Let things happen until `until` holds. Fails when the time is over."""
        timeline = self.timeline
        end = timeline.now + limit_ms
        while not until():
            alive = timeline.step()
            assert alive, f"nothing is left to happen, and still not: {what}"
            assert timeline.now <= end, f"after {limit_ms} ms still not: {what}"

    def run_for(self, length_ms: int) -> None:
        end = self.timeline.now + length_ms
        while self.timeline.now < end and self.timeline.step():
            pass
