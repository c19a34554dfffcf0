"""How much of a slot an execution takes: a whole one, or a part if its type is known to be short.

A claim holds its slot from the moment it is picked: during the transaction that commits its RUNNING, its run, and the next
turn of the owner. That is 5 to 10 ms, however short the handler is, so a slot for one execution runs no more than 100 to 200
no-ops a second (measured: 400/s with two children, which run 5,000/s by themselves). Executions of a short type therefore
share a slot: as many as end within AHEAD_MS, or within three transactions if these take longer, which is when the next
executions are committed. In the executor they wait for each other, for about that time.

How long a type takes is learned from its runs: quickly when it gets slower, slowly when it gets faster. A type that has not
run yet takes whole slots. This applies only to thread and process handlers; a coroutine waits for no other execution.

Always true: parts are from 1 to WHOLE; a type whose runs take AHEAD_MS or more on average takes whole slots; executions that
share a slot are expected to end within AHEAD_MAX_MS.
"""

from __future__ import annotations

from math import ceil
from typing import Final

WHOLE: Final = 256  # parts of a slot: at most this many executions share one
AHEAD_MS: Final = 16.0  # how long an execution may wait for others in its slot: two or three transactions at rest,
AHEAD_MAX_MS: Final = 64.0  # at most this if transactions take longer
TRANSACTIONS: Final = 3
SLOWER: Final = 4  # weight of a run that took longer: a fourth,
FASTER: Final = 16  # of a shorter one: a sixteenth


class Pace:
    """What the runs so far show, by task type. It holds as many types as the app has."""

    __slots__ = ("_ms", "_transaction_ms", "parts")

    def __init__(self) -> None:
        self._transaction_ms = 0.0
        self._ms: dict[str, float] = {}
        self.parts: dict[str, int] = {}  #: parts of a slot that one execution takes; absent: WHOLE

    def ran(self, task_type: str, ms: float) -> None:
        """An execution of this type took `ms`."""
        known = self._ms.get(task_type, ms)
        self._ms[task_type] = known = known + (ms - known) / (SLOWER if ms > known else FASTER)
        ahead_ms = min(max(AHEAD_MS, TRANSACTIONS * self._transaction_ms), AHEAD_MAX_MS)
        self.parts[task_type] = max(1, ceil(WHOLE * known / ahead_ms)) if known < AHEAD_MS else WHOLE

    def committed(self, ms: float) -> None:
        """A transaction took `ms`, from its building to its end."""
        self._transaction_ms += (min(ms, AHEAD_MAX_MS) - self._transaction_ms) / FASTER
