"""How much of a slot an execution takes: a whole one, or a part where its type is known to be short.

A claim has its slot from the moment it is picked: over the transaction that commits its RUNNING, its run, and the next
turn of the owner. That is 5 to 10 ms, whatever the handler takes, so that a slot for one execution runs no more than 100
to 200 no-ops a second (measured: 400/s with two children, which run 5,000/s by themselves). Executions of a short type
therefore share a slot, as many as end within AHEAD_MS, or within three transactions where these take longer: until the next
ones are committed. In the executor they wait for each other, for about that time.

How long a type takes is learned from its runs: quickly when it gets slower, slowly when it gets faster, and a type that
has not run yet takes whole slots. Only of thread and process handlers; a coroutine waits for nobody.

Always true: parts are from 1 to WHOLE; a type whose runs take AHEAD_MS or more on the average takes whole slots; those that
share a slot are expected to end within AHEAD_MAX_MS.
"""

from __future__ import annotations

from math import ceil
from typing import Final

WHOLE: Final = 256  # parts of a slot: so many executions share one at most
AHEAD_MS: Final = 16.0  # what one that shares a slot may wait for the others: two or three transactions at rest,
AHEAD_MAX_MS: Final = 64.0  # at most this where they take longer
TRANSACTIONS: Final = 3
SLOWER: Final = 4  # a run that took longer counts a fourth,
FASTER: Final = 16  # a shorter one a sixteenth


class Pace:
    """What the runs so far say, by task type. As many types as the app has."""

    __slots__ = ("_ms", "_transaction_ms", "parts")

    def __init__(self) -> None:
        self._transaction_ms = 0.0
        self._ms: dict[str, float] = {}
        self.parts: dict[str, int] = {}  #: parts of a slot that one execution takes; absent: WHOLE

    def ran(self, task_type: str, ms: float) -> None:
        """An execution of this type took so long."""
        known = self._ms.get(task_type, ms)
        self._ms[task_type] = known = known + (ms - known) / (SLOWER if ms > known else FASTER)
        ahead_ms = min(max(AHEAD_MS, TRANSACTIONS * self._transaction_ms), AHEAD_MAX_MS)
        self.parts[task_type] = max(1, ceil(WHOLE * known / ahead_ms)) if known < AHEAD_MS else WHOLE

    def committed(self, ms: float) -> None:
        """A transaction took so long, from its making to its end."""
        self._transaction_ms += (min(ms, AHEAD_MAX_MS) - self._transaction_ms) / FASTER
