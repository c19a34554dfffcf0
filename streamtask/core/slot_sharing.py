"""How much of a slot an execution takes: a whole one, or a part if its type is known to be short.

A claim holds its slot from the moment it is picked: during the transaction that commits its RUNNING, its run, and the turn of
the owner that picks the next one. Only its run needs the slot. The rest, the cycle, is 5 to 50 ms, however short the handler
is, so with one execution a slot, 100 slots ran 4,000 no-ops a second, of 15,000 that the worker can do, and two children 400.

By Little's law, `slots` run at a time if slots * (run + cycle) / run are in flight. So an execution whose runs take `run` ms
takes run / (run + cycle) of a slot, and the others in its slot wait in the executor for about a cycle. For example, with a
cycle of 30 ms, 100 slots have 700 executions of 5 ms in flight. A type whose runs take AHEAD_MAX_MS or more takes whole slots,
because those behind it would wait for longer than that; so does a type that has not run yet.

How long a type takes is learned from its runs: quickly when it gets slower, slowly when it gets faster. The cycle is a
transaction and the time for which a batch may be filled (core/group_commit.py). Coroutines and threads share one interpreter,
so fewer of them can end than their slots allow: at most twice as many are in flight as end in a cycle, or MOST_MIN
(`Pace.most`), and those beyond that take whole slots.

One slot in eight of each kind (at least one; none where a kind has fewer than two) is kept for the first band. Of what is
kept, executions that share leave an eighth of all slots free, even if that is less than one: the next one ends within a cycle.

Always true: parts are from 1 to WHOLE; a type whose runs take AHEAD_MAX_MS or more on average takes whole slots; executions
with whole slots are at most as many as the slots of their kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final

CHILDREN: Final = 2  # the number of HandlerKind.PROCESS: each child has an interpreter of its own
KEPT_SHARE: Final = 8  # one slot in eight is kept for the first band
WHOLE: Final = 256  # parts of a slot: at most this many executions share one
FILL_MS: Final = 36  # how long a batch may be filled while a backlog waits (core/group_commit.py)
AHEAD_MAX_MS: Final = 50.0  # an execution waits for others in its slot for FILL_MS and a transaction, or at most this
LEFT: Final = 1.25  # a batch is built when the executor still has work for so many transactions,
LEFT_MS: Final = 2.0  # and so long: a transaction may take longer than usual, and then comes the way into the handler
RATE_MS: Final = 16  # a rate is measured over at least this time
MARGIN: Final = 2  # how many times those that end in a cycle may be in flight, so that a rate can grow
MOST_MIN: Final = 32  # in flight, however few have ended
RECENT_MS: Final = 1_000  # a rate that was measured earlier says nothing
SLOWER: Final = 4  # weight of a run that took longer: a fourth,
FASTER: Final = 20  # of a shorter one: a twentieth, so that a type with one run of a minute in a hundred never shares


class Pace:
    """What the runs so far show, by task type. It holds as many types as the app has.

    slots  by kind of handler, as core/schedule.py numbers them
    """

    __slots__ = ("_ms", "_rates", "_since_ms", "_slots", "_transaction_ms", "ahead_ms", "ended", "most", "parts")

    def __init__(self, slots: Sequence[int]) -> None:
        self._slots = tuple(slots)
        self._transaction_ms = 0.0
        self._ms: dict[str, float] = {}
        self._rates = [0.0] * len(slots)  # executions that end in a millisecond, by kind
        self._since_ms = 0
        self.ahead_ms = float(FILL_MS)  #: the cycle: how long an execution may wait for others in its slot
        self.ended = [0] * len(slots)  #: executions that have ended since the rates were last measured, by kind
        self.most = [max(total, MOST_MIN) for total in slots]  #: how many that share slots may be in flight, by kind
        self.parts: dict[str, int] = {}  #: parts of a slot that one execution takes; absent: WHOLE

    def ran(self, task_type: str, ms: float) -> None:
        """An execution of this type took `ms`."""
        known = self._ms.get(task_type, ms)
        self._ms[task_type] = known = known + (ms - known) / (SLOWER if ms > known else FASTER)
        self.parts[task_type] = max(1, ceil(WHOLE * known / (known + self.ahead_ms))) if known < AHEAD_MAX_MS else WHOLE

    def committed(self, ms: float, now_ms: int) -> None:
        """A transaction took `ms`, from its building to its end, which is `now_ms` of the monotonic clock."""
        self._transaction_ms += (min(ms, AHEAD_MAX_MS) - self._transaction_ms) / FASTER
        self.ahead_ms = min(FILL_MS + self._transaction_ms, AHEAD_MAX_MS)
        passed_ms = now_ms - self._since_ms
        if passed_ms < RATE_MS:
            return
        self._since_ms = now_ms
        for kind, count in enumerate(self.ended):
            known = self._rates[kind] if passed_ms < RECENT_MS else 0.0
            rate = self._rates[kind] = (known + count / passed_ms) / 2
            self.ended[kind] = 0
            self.most[kind] = max(self._slots[kind], MOST_MIN, ceil(MARGIN * rate * self.ahead_ms))

    def lasts_ms(self, kind: int, waiting: int) -> float:
        """How long so many executions that wait for others last, less the transaction that starts the next ones."""
        rate = self._rates[kind]
        return waiting / rate - LEFT * self._transaction_ms - LEFT_MS if rate else 0.0


class Slots:
    """What is taken, by kind of handler, in parts of a slot.

    total     all slots
    used      what all executions take
    shared    what those of all bands but the first may take together, if they take whole slots, and
    short     if they share
    others    what those of all bands but the first take
    sharing   executions that hold less than a slot
    open      whether a claim of the first band (0), or of another (1), could have been picked beyond those of the last batch
    left      executions that have ended since then, if they held less than a slot
    awaited   whether one has ended whose room only a claim can take that has not been picked
    """

    __slots__ = ("awaited", "left", "open", "others", "pace", "shared", "sharing", "short", "total", "used")

    def __init__(self, totals: Sequence[int]) -> None:
        self.pace = Pace(totals)
        self.total = [total * WHOLE for total in totals]
        self.shared = [(total - kept(total)) * WHOLE for total in totals]
        self.short = [total * WHOLE - (total * WHOLE // KEPT_SHARE if total >= 2 else 0) for total in totals]
        self.used = [0] * len(totals)
        self.others = [0] * len(totals)
        self.sharing = [0] * len(totals)
        self.picked()

    def picked(self) -> None:
        """A batch is built: whatever could be picked has been."""
        kinds = range(len(self.total))
        room = [self.used[kind] < self.total[kind] for kind in kinds]
        self.open = (room, [room[kind] and self.others[kind] < self.short[kind] for kind in kinds])
        self.left = [0] * len(self.total)
        self.awaited = False

    def lasts_ms(self) -> float:
        """How long the slots of what has ended since the last batch stay in use, because others wait in them, less the
        transaction that starts the next ones.
        """
        if self.awaited:
            return 0.0
        kinds = [kind for kind, ended in enumerate(self.left) if ended]
        waiting = [self.sharing[kind] - self.total[kind] // WHOLE for kind in kinds]
        return min((self.pace.lasts_ms(*one) for one in zip(kinds, waiting, strict=True)), default=0.0)

    def parts(self, kind: int, task_type: str) -> int:
        """What one execution takes if it is started now."""
        if self.sharing[kind] >= self.pace.most[kind] and kind != CHILDREN:
            return WHOLE
        return self.pace.parts.get(task_type, WHOLE)

    def take(self, kind: int, band: int, parts: int) -> None:
        self.used[kind] += parts
        if band:
            self.others[kind] += parts
        if parts < WHOLE:
            self.sharing[kind] += 1

    def release(self, kind: int, band: int, parts: int, *, awaited: bool = False) -> None:
        """awaited: claims wait for the end of this one, because of its key or its type."""
        self.used[kind] -= parts
        self.pace.ended[kind] += 1
        if band:
            self.others[kind] -= parts
        if parts < WHOLE:
            self.sharing[kind] -= 1
            self.left[kind] += 1
        self.awaited = self.awaited or awaited or parts == WHOLE


def kept(total: int) -> int:
    """How many of so many slots are kept for the first band."""
    return max(1, total // KEPT_SHARE) if total >= 2 else 0
