"""Everything that a worker's engine knows: its shards, running tasks, debts, the batch in flight. Data without behaviour.

There is one object per worker process, used by one thread. Functions of the core take it as their first argument and change
it; `Engine` is the same object with methods for the facts that come from outside.
"""

from __future__ import annotations

import random

from streamtask.config import EngineConfig
from streamtask.core.batch import Batch, Refusal
from streamtask.core.batch_size import BatchSize
from streamtask.core.cancels import Cancels
from streamtask.core.deadlines import Deadlines
from streamtask.core.memory import Memory
from streamtask.core.refused_places import SetAside
from streamtask.core.schedule import Schedule
from streamtask.core.shard import Claim, Shard
from streamtask.core.suspects import GROUPS_ON_TRIAL, Groups
from streamtask.domain.model import HandlerKind
from streamtask.domain.ports import Cell, Effect


class State:
    """`owner` is the transactional id in use; `rng` draws the jitter of backoffs."""

    def __init__(self, config: EngineConfig, owner: str, rng: random.Random) -> None:
        self.config = config
        self.owner = owner
        self.own_ids = {owner}
        self.rng = rng
        self.shards: dict[int, Shard] = {}
        limits = {name: policy.concurrency for name, policy in config.policies.items()}
        self.children = config.slots.get(HandlerKind.PROCESS, 0) > 0  # otherwise suspects run beside the others
        groups: Groups[Claim] = Groups(GROUPS_ON_TRIAL if self.children else 1)
        times = (config.ageing_ms, config.alone_ms)
        self.schedule: Schedule[Claim] = Schedule(config.bands, config.slots, limits, *times, groups)
        self.wall: Deadlines[Claim] = Deadlines()
        self.mono: Deadlines[Claim] = Deadlines()
        self.running: dict[int, Claim] = {}  # by token; executions of shards that have gone stay until they really end
        self.urgent: dict[Claim, None] = {}  # claims that owe more than their CREATED
        self.fresh: dict[Claim, None] = {}  # claims that owe only their CREATED, in order of offset
        self.refusals: dict[Refusal, None] = {}
        self.throttled: dict[Claim, None] = {}  # progress reported too soon after the last event
        self.backlogged: set[Cell] = set()
        self.aside = SetAside()
        self.size = BatchSize(config.batch_bytes_max)
        self.cancels = Cancels(config.cancels_max)
        self.memory = Memory(config.waiting_bytes_max, config.active_bytes_max, len(config.bands))
        self.effects: list[Effect] = []
        self.sent: Batch | None = None  # in flight; facts may come in, no other batch is built
        self.fenced = False  # the transactional id is no longer usable: recover before the next commit
        self.doubt: Batch | None = None  # sent under an id that is no longer usable; unknown yet whether it landed
        self.draining = False
        self.held_until_ms = 0  # monotonic; see hold
        self.late_results = 0
        self.deaths = 0  # charged here: of earlier workers, and of children of this one
        self.epochs = 0
        self.refresh_mono_ms = 0
        self.settled_mono_ms = -(1 << 40)  # when the last batch was settled
        self.tokens = 0
        self.refused_batches = 0
        self.units_max = 0  # of the next batch, while searching for an offending record; 0 = no limit
