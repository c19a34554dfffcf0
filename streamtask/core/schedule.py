"""Which request starts next: bands, priorities, slots, ordering keys, limits per task type, trials.

A claim enters by `add`, is handed out by `pick` (it holds a slot from then on), gives back its slot and its place in the type
limit by `release` when its handler has really ended, and its ordering key by `finish` when its end is settled. In between it
may return (`add` again: a retry), still holding its key.

Order between bands: weighted deficit round robin. In each round a band has as many turns as its weight (16:4:1), and
one more for every ageing_ms that its oldest runnable claim has waited (at most AGED_TURNS_MAX more). A pick takes the
first band, from high to low, that has a turn left and a claim that may run; when no band with such a claim has a turn
left, a new round begins. Inside a band: priority, then the order of queueing.

Bound: while slots are free to it, the best runnable claim of a band is picked after at most twice the turns that all
other bands have in a round: for low 2 * (16 + 4) = 40 picks, 2 * (16 + 16 + 4 + 16) = 104 when all of them have aged
(the rest of the round in which low has used its turn, then a whole one). While all bands have work, one pick in 21 is low's.

Slots (core/slot_sharing.py): one in eight of each kind is kept for the first band. Short executions share slots: a claim is
picked while any part of a slot is free.
Suspects start in groups (core/suspects.py), and those on trial hold at most half of the slots of their kind, so that others
can run. A suspect that must be the only one on trial goes first: for at most alone_ms no other suspect goes on trial while it
waits for those that are. A suspect that must be *alone* also keeps everything else from starting while it waits, and later
while it stands its trial. Claims of the same (shard, band, ordering_key) run one at a time, in the order in which they first
reached the schedule, which is the order of their offsets. A claim whose type is at its limit, or a suspect for which no group
has room, is put aside, and returns to its place when what it lacks is given back.

Always true: slots in use = claims picked and not released, each with the parts it took; claims with a whole slot are at most
as many as the slots; stale heap entries left by `remove` are at most as many as the queued claims, plus a constant.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar

from streamtask.core.slot_sharing import WHOLE, Slots
from streamtask.core.suspects import ALONE, ONLY, Groups, stage_of
from streamtask.domain.model import Band, HandlerKind

AGED_TURNS_MAX: Final = 16
KINDS: Final = tuple(HandlerKind)
_GARBAGE_MIN: Final = 64


class Item(Protocol):
    """What the schedule reads of a claim. Compared by identity; only the last three ever change."""

    @property
    def band(self) -> int: ...
    @property
    def shard(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def kind(self) -> HandlerKind: ...
    @property
    def task_type(self) -> str: ...
    @property
    def ordering_key(self) -> str | None: ...
    @property
    def offset(self) -> int: ...
    @property
    def queued_ms(self) -> int: ...
    @property
    def suspect(self) -> bool: ...
    @property
    def trial(self) -> int: ...


T = TypeVar("T", bound=Item)
ASYNC, THREAD = HandlerKind.ASYNC, HandlerKind.THREAD
assert KINDS == (ASYNC, THREAD, HandlerKind.PROCESS), "see _index, which is spelled out where it runs for every task"


class _Lane(Generic[T]):
    """Claims of one band that need more than a slot of their kind: a limited type, a group of this stage, or both.

    Only the best of them is in the band's heap, and only while the lane may run: `shown` is its key there, 0 = none.
    """

    __slots__ = ("heap", "home", "kind", "shown", "stage", "task_type")

    def __init__(self, home: list[tuple[int, T]], kind: HandlerKind, task_type: str | None, stage: int | None) -> None:
        self.home = home
        self.heap: list[tuple[int, T]] = []
        self.kind = kind
        self.task_type = task_type
        self.stage = stage
        self.shown = 0


class Schedule(Generic[T]):
    """See the module docstring. slots: parallel executions per kind; limits: per task type, None or absent = no limit."""

    def __init__(
        self,
        bands: Sequence[Band],
        slots: Mapping[HandlerKind, int],
        limits: Mapping[str, int | None],
        ageing_ms: int,
        alone_ms: int,
        groups: Groups[T],
    ) -> None:
        assert ageing_ms > 0, f"ageing_ms {ageing_ms}"
        self._weights = [band.weight for band in bands]
        self._ageing_ms = ageing_ms
        self._alone_ms = alone_ms
        self.slots = Slots([slots.get(kind, 0) for kind in KINDS])  # its lists are indexed by _index(kind)
        self.pace = self.slots.pace
        self._limits = {task_type: limit for task_type, limit in limits.items() if limit is not None}
        self._types = dict.fromkeys(self._limits, 0)  # executions of limited types
        self._turns = list(self._weights)
        self._sequence = 0
        self._keys: dict[T, int] = {}  # queued claims → their place: (10 - priority, sequence) in one number
        self._held: dict[T, int] = {}  # claims that hold a slot → the parts of it that they took
        self._heaps: list[list[list[tuple[int, T]]]] = [[[] for _ in KINDS] for _ in bands]  # by band and kind
        self._since: list[deque[tuple[int, T]]] = [deque() for _ in bands]  # runnable claims, longest runnable first
        self._queued = [0] * len(bands)
        self._lanes: dict[tuple[int, HandlerKind, str | None, int | None], _Lane[T]] = {}
        self._lanes_of_type: dict[str, list[_Lane[T]]] = {}
        self._lane_of: dict[T, _Lane[T]] = {}  # for claims that are shown or aside in a lane
        self._lines: dict[tuple[int, int, str], dict[T, bool]] = {}  # the first claim holds the key; True: it is queued
        self._groups = groups
        self._narrow: dict[T, int] = {}  # queued, of stage ONLY or ALONE → until when others wait; 0: not yet
        self._spared = False  # suspects wait for one of these
        self._garbage = 0
        self.closed: tuple[int, ...] = ()  #: bands from which nothing is picked for now (no memory for it)

    # --- Queries ---

    @property
    def busy(self) -> bool:
        """Whether any claim holds a slot."""
        return bool(self._held)

    @property
    def on_trial(self) -> int:
        """Suspects that were picked and are neither acquitted nor gone."""
        return self._groups.tried

    def group_of(self, item: T) -> int:
        """The number of the group that it was picked into; 0 if it is not a suspect."""
        return self._groups.number_of(item)

    def free(self, kind: HandlerKind) -> int:
        """Slots of this kind of which no part is held (including the kept one)."""
        return max(0, self.slots.total[_index(kind)] - self.slots.used[_index(kind)]) // WHOLE

    def parts_of(self, item: T) -> int:
        """How many of the WHOLE parts of a slot it holds; 0 if none."""
        return self._held.get(item, 0)

    def may_wait(self, item: T) -> bool:
        """Whether one that holds a slot may find all threads, children or places for coroutines busy, because of those that
        share slots.
        """
        return self._held[item] < WHOLE or (not item.suspect and self.pace.parts.get(item.task_type, WHOLE) < WHOLE)

    @property
    def waiting(self) -> int:
        """Claims of all bands that were added and not picked yet."""
        return len(self._keys)

    def arrived(self) -> bool:
        """Whether a claim has come that could have been picked for the last batch."""
        of_bands = ((homes, self.slots.open[band > 0]) for band, homes in enumerate(self._heaps))
        return any(home and is_open for homes, opened in of_bands for home, is_open in zip(homes, opened, strict=True))

    def queued(self, band: int) -> int:
        """Claims that were added and not picked yet, including those that wait for their key or their type."""
        return self._queued[band]

    def oldest(self, band: int) -> T | None:
        """The claim that has been runnable longest, or None."""
        since, keys = self._since[band], self._keys
        while since:
            key, item = since[0]
            if keys.get(item) == key:
                return item
            since.popleft()
        return None

    def oldest_ms(self, band: int) -> int | None:
        """The queued_ms of the oldest runnable claim."""
        found = self.oldest(band)
        return None if found is None else found.queued_ms

    # --- In ---

    def hold(self, item: T) -> None:
        """The claim waits without being queued, and keeps its place in the line of its key (a retry that was waiting under an
        earlier owner). Claims without a key need no call.
        """
        if item.ordering_key is not None:
            self._lines.setdefault((item.shard, item.band, item.ordering_key), {}).setdefault(item, False)

    def add(self, item: T, now_ms: int) -> None:
        """Queue the claim: nothing of its own keeps it from running. A retry returns to the front of the line of its key."""
        assert item not in self._keys, f"{item} is queued already"
        assert item not in self._held, f"{item} holds a slot"
        assert item.queued_ms <= now_ms, f"{item} was queued in the future"
        self._sequence += 1
        key = self._keys[item] = (10 - item.priority) << 56 | self._sequence
        self._queued[item.band] += 1
        if item.ordering_key is not None:
            line = self._lines.setdefault((item.shard, item.band, item.ordering_key), {})
            line[item] = True
            if next(iter(line)) is not item:
                return
        self._show(item, key)

    def _show(self, item: T, key: int) -> None:
        """The claim is runnable by itself: put it into the heap of its kind, or into its lane."""
        band, task_type = item.band, item.task_type
        since = self._since[band]
        since.append((key, item))
        if len(since) > 2 * self._queued[band] + _GARBAGE_MIN:
            keys = self._keys
            self._since[band] = deque(entry for entry in since if keys.get(entry[1]) == entry[0])
        kind = item.kind
        home = self._heaps[band][0 if kind is ASYNC else 1 if kind is THREAD else 2]
        limited = task_type in self._limits
        if not limited and not item.suspect:
            heapq.heappush(home, (key, item))
            return
        stage = stage_of(item.trial) if item.suspect else None
        if stage is not None and stage >= ONLY and self.slots.total[_index(kind)]:
            self._narrow[item] = 0
            return
        name = (band, kind, task_type if limited else None, stage)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(home, kind, name[2], stage)
            if limited:
                self._lanes_of_type.setdefault(task_type, []).append(lane)
        self._lane_of[item] = lane
        heapq.heappush(lane.heap, (key, item))
        if not lane.shown:
            self._show_lane(lane)
        elif key < lane.shown:
            self._garbage += 1
            lane.shown = key
            heapq.heappush(home, (key, item))

    def _may_go(self, lane: _Lane[T]) -> bool:
        if lane.stage is not None and not self._may_be_tried(lane.stage, lane.kind):
            return False
        return lane.task_type is None or self._types[lane.task_type] < self._limits[lane.task_type]

    def _may_be_tried(self, stage: int, kind: HandlerKind) -> bool:
        half = (self.slots.total[_index(kind)] // WHOLE + 1) // 2
        return not self._spared and self._groups.tried_of(kind) < half and self._groups.has_room(stage, kind)

    def _show_suspects(self) -> None:
        for lane in self._lanes.values():
            if lane.stage is not None:
                self._show_lane(lane)

    def _show_lane(self, lane: _Lane[T]) -> None:
        if lane.shown or not self._may_go(lane):
            return
        heap, keys = lane.heap, self._keys
        while heap:
            key, item = heap[0]
            if keys.get(item) == key:
                lane.shown = key
                heapq.heappush(lane.home, (key, item))
                return
            heapq.heappop(heap)

    # --- Out ---

    def pick(self, now_ms: int) -> T | None:
        """The next claim to start. From now on it holds a slot (and is in a group, if it is a suspect)."""
        if not self._keys:
            return None
        (async_, thread, process), slots = self.slots.used, self.slots.total
        if async_ >= slots[0] and thread >= slots[1] and process >= slots[2]:
            return None
        if self._groups.narrowest == ALONE:
            return None
        if self._narrow:
            item, waited_for = self._next_narrow(now_ms)
            if item is not None or waited_for:
                return None if item is None else self._take(item)
        elif self._spared:  # the one they waited for is gone
            self._spared = False
            self._show_suspects()
        turns, closed = self._turns, self.closed
        idle: tuple[int, list[tuple[int, T]]] | None = None  # first band with something to run, but no turn left
        for band, left in enumerate(turns):
            if self._queued[band] and (left > 0 or idle is None) and band not in closed:
                home = self._best(band)
                if home is not None:
                    if left > 0:
                        return self._take(heapq.heappop(home)[1])
                    idle = (band, home)
        if idle is None:
            return None
        self._new_round(now_ms)
        return self._take(heapq.heappop(idle[1])[1])

    def _next_narrow(self, now_ms: int) -> tuple[T | None, bool]:
        """The first suspect that no other may be on trial beside, if it starts now; and whether everything else waits for it.
        The end of that wait needs no wake-up, because something runs meanwhile.
        """
        item = next(iter(self._narrow))
        until = self._narrow[item] = self._narrow[item] or now_ms + self._alone_ms
        alone = stage_of(item.trial) == ALONE
        waits = now_ms < until
        kind, limit = _index(item.kind), self._limits.get(item.task_type)
        full = limit is not None and self._types[item.task_type] >= limit
        full = full or self.slots.used[kind] >= self.slots.total[kind]
        busy = (bool(self._held) and (waits or full)) if alone else (self._groups.tried > 0 or full)
        if self._spared and not (busy and waits):
            self._spared = False
            self._show_suspects()
        if busy:
            self._spared = waits
            return None, alone and waits
        del self._narrow[item]
        return item, False

    def pick_many(self, limit: int, now_ms: int) -> list[T]:
        """Up to `limit` picks."""
        out: list[T] = []
        while len(out) < limit and (item := self.pick(now_ms)) is not None:
            out.append(item)
        return out

    def _new_round(self, now_ms: int) -> None:
        for band, weight in enumerate(self._weights):
            oldest = self.oldest_ms(band)
            aged = 0 if oldest is None else max(0, now_ms - oldest) // self._ageing_ms
            self._turns[band] = weight + min(aged, AGED_TURNS_MAX)

    def _best(self, band: int) -> list[tuple[int, T]] | None:
        """The heap of this band whose first claim is the best of the band among those with a free slot."""
        best: list[tuple[int, T]] | None = None
        keys, lanes, slots = self._keys, self._lane_of, self.slots
        for kind, home in enumerate(self._heaps[band]):
            if home and slots.used[kind] < slots.total[kind] and (not band or slots.others[kind] < slots.short[kind]):
                key, item = home[0]
                if lanes or keys.get(item) != key:
                    self._clean(home)
                    if not home:
                        continue
                if band and slots.others[kind] >= slots.shared[kind] and self._parts(home[0][1], kind) == WHOLE:
                    continue
                if best is None or home[0][0] < best[0][0]:
                    best = home
        return best

    def _clean(self, home: list[tuple[int, T]]) -> None:
        """Drop entries until the first claim of this heap may run now."""
        keys, lanes = self._keys, self._lane_of
        while home:
            key, item = home[0]
            if keys.get(item) == key:
                lane = lanes.get(item) if lanes else None
                if lane is None:
                    return
                if lane.shown == key:
                    if self._may_go(lane):
                        return
                    lane.shown = 0  # aside, until what it lacks is given back
            heapq.heappop(home)

    def _parts(self, item: T, kind: int) -> int:
        return WHOLE if item.suspect else self.slots.parts(kind, item.task_type)

    def _take(self, item: T) -> T:
        band = item.band
        self._turns[band] -= 1
        del self._keys[item]
        self._queued[band] -= 1
        named = item.kind
        kind = 0 if named is ASYNC else 1 if named is THREAD else 2
        parts = self._held[item] = WHOLE if item.suspect else self.slots.parts(kind, item.task_type)
        self.slots.take(kind, band, parts)
        if item.task_type in self._limits:
            self._types[item.task_type] += 1
        if item.suspect:
            self._groups.join(item)
        lane = self._lane_of.pop(item, None) if self._lane_of else None
        if lane is not None:
            lane.shown = 0
            first = heapq.heappop(lane.heap)
            assert first[1] is item, f"{item} was shown, but {first} is the first of its lane"
            self._show_lane(lane)
        if item.ordering_key is not None:
            line = self._lines.get((item.shard, item.band, item.ordering_key))
            assert line is not None, f"{item} does not hold its key"
            assert next(iter(line)) is item, f"{item} does not hold its key"
            line[item] = False
        return item

    # --- Back ---

    def release(self, item: T) -> None:
        """Its handler has ended, or will not start: free its slot and its place in the type limit. It still holds its key."""
        assert item in self._held, f"{item} holds no slot"
        parts = self._held.pop(item)
        named = item.kind
        kind = 0 if named is ASYNC else 1 if named is THREAD else 2
        awaited = item.ordering_key is not None or item.task_type in self._limits
        self.slots.release(kind, item.band, parts, awaited=awaited)
        if item.task_type in self._limits:
            self._types[item.task_type] -= 1
            for lane in self._lanes_of_type.get(item.task_type, ()):
                self._show_lane(lane)

    def acquit(self, item: T) -> None:
        """It has outlived its trial, so others may go on trial. Does nothing if it was not on trial."""
        if self._groups.acquit(item):
            self._show_suspects()

    def leave(self, item: T) -> None:
        """A suspect no longer runs here, and the ledger says so. Does nothing if it was not a suspect."""
        if self._groups.leave(item):
            self._show_suspects()

    def remove(self, item: T) -> None:
        """Take it out of the queue (cancelled, expired). It keeps its key until `finish`, so that the next one in line starts
        after its end is published.
        """
        key = self._keys.pop(item, None)
        if key is None:
            return
        self._queued[item.band] -= 1
        self._narrow.pop(item, None)
        lane = self._lane_of.pop(item, None) if self._lane_of else None
        if lane is not None and lane.shown == key:
            lane.shown = 0
            self._show_lane(lane)
        if item.ordering_key is not None:
            line = self._lines.get((item.shard, item.band, item.ordering_key))
            if line is not None and item in line:
                line[item] = False
        self._garbage += 1
        if self._garbage > len(self._keys) + _GARBAGE_MIN:
            self._sweep()

    def finish(self, item: T) -> None:
        """Its end is settled: release its key, trial and place in the queue; the next in line may run."""
        if item in self._keys:
            self.remove(item)
        if self._groups.leave(item):
            self._show_suspects()
        if item.ordering_key is None:
            return
        name = (item.shard, item.band, item.ordering_key)
        line = self._lines.get(name)
        if line is None or item not in line:
            return
        first = next(iter(line)) is item
        del line[item]
        if not line:
            del self._lines[name]
        elif first:
            following = next(iter(line))
            if line[following]:
                self._show(following, self._keys[following])

    def forget_shard(self, shard: int) -> None:
        """Drop what is queued or in line for this shard. Claims that hold a slot keep it until `release`."""
        for item in [item for item in self._keys if item.shard == shard]:
            del self._keys[item]
            self._queued[item.band] -= 1
        for name in [name for name in self._lines if name[0] == shard]:
            del self._lines[name]
        self._sweep()

    def _sweep(self) -> None:
        """Rebuild the heaps without claims that are no longer queued."""
        keys = self._keys
        self._garbage = 0
        self._narrow = {item: until for item, until in self._narrow.items() if item in keys}
        self._lane_of = {item: lane for item, lane in self._lane_of.items() if item in keys}
        for lane in self._lanes.values():
            lane.heap[:] = [entry for entry in lane.heap if keys.get(entry[1]) == entry[0]]
            heapq.heapify(lane.heap)
            lane.shown = 0
        lanes = self._lane_of
        for heaps in self._heaps:
            for home in heaps:
                home[:] = [(key, item) for key, item in home if keys.get(item) == key and item not in lanes]
                heapq.heapify(home)
        for band, since in enumerate(self._since):
            self._since[band] = deque(entry for entry in since if keys.get(entry[1]) == entry[0])
        for lane in self._lanes.values():
            self._show_lane(lane)


def _index(kind: HandlerKind) -> int:
    # Not a dict: hashing an enum member is a Python call, and this runs several times per task.
    return 0 if kind is ASYNC else 1 if kind is THREAD else 2
