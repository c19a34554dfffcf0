"""Suspects: requests under which two processes have died. This module decides the group of a trial and what a death proves.

This is group testing: suspects run in quarantine children, many to a child. If a child dies, one of the tasks in it killed
it, so the groups in which they run next are at most half as large. A task that is alone in its child when that dies is
guilty. A task that runs for as long as its trial lasts is acquitted: its deaths are forgiven.

A handler may also kill its worker from inside its child (os.kill(getppid()), a container that runs out of memory). Then all
tasks on trial in that worker form the group. Their next groups are narrowed more steeply, because such a death stops
everything else that the worker does: down to one that is the only one on trial in its worker, and then alone in it.

One number per request has to outlive the worker: `trial` in its ledger entry. It is the stage of its next trial, plus STAGES
for each earlier acquittal (at most ROUNDS_MAX; each makes its trials 16 times longer, so that a task that kills late
eventually gets a trial that is long enough).

    stage 0…7     at most 128, 64, 32, … 1 in its child; at most GROUPS_ON_TRIAL such groups are on trial at a time
    ONLY          it is the only one on trial in its worker process
    ALONE         nothing else starts in its worker process: it is charged with a death of the worker
"""

from __future__ import annotations

from typing import Final, Generic, Protocol, TypeVar

from streamtask.domain.model import HandlerKind

GROUP_MAX: Final = 128  # more would lose more work to one killer; fewer would start more children for a false alarm
SINGLE: Final = GROUP_MAX.bit_length() - 1  # from this stage on a group has one member
ONLY: Final = SINGLE + 1
ALONE: Final = SINGLE + 2
STAGES: Final = ALONE + 1
ROUNDS_MAX: Final = 2  # so `trial` is at most 29 and fits one digit of the ledger's text
ROUND_SHIFT: Final = 4  # trials of 10 s, of 160 s, then as long as any
GROUPS_ON_TRIAL: Final = 4  # in children of one worker process at a time: each takes about 50 MB
GROUPS_MAX: Final = 12  # including groups whose members are all acquitted and run on
NARROWED: Final = 32  # the death of a worker divides those on trial in it by this: a few groups are on trial at a time
ONLY_MAX: Final = 8  # this many stand their next trial one after the other, for 10 s each


def stage_of(trial: int) -> int:
    """How narrow the trial of an entry with this number is."""
    return trial % STAGES


def size_max(stage: int) -> int:
    """How many may stand trial in one child at this stage."""
    return GROUP_MAX >> stage if stage < SINGLE else 1


def parted(trial: int, size: int) -> int:
    """The number of a request that was among `size` in a child that died: its next group is at most half as large, and always
    smaller than the bound of this one.
    """
    assert size > 1, "who was alone in it is charged"
    stage = stage_of(trial)
    return trial - stage + max(stage, min(max(stage + 1, _stage_for(size // 2)), SINGLE))


def narrowed(trial: int, tried: int) -> int:
    """The number of a request on trial when its worker died, together with others of its shard (`tried`, including itself)."""
    stage = stage_of(trial)
    if stage >= ONLY:
        following = ALONE
    elif tried <= ONLY_MAX or stage == SINGLE:
        following = ONLY
    else:
        following = min(max(stage + 1, _stage_for(tried // NARROWED)), SINGLE)
    return trial - stage + following


def acquitted(trial: int) -> int:
    """The number of a request that has outlived its trial."""
    return min(trial // STAGES + 1, ROUNDS_MAX) * STAGES


def never_convicted(trial: int) -> int:
    """The number of a request whose type has lost_max=0: it never stands the trial that charges it with a worker's death."""
    return trial - max(0, stage_of(trial) - SINGLE)


def _stage_for(size: int) -> int:
    """The first stage whose groups have at most `size` members."""
    stage = 0
    while size_max(stage) > max(size, 1):
        stage += 1
    return stage


def trial_ms(base: int, trial: int, cap: int, timeout_ms: int | None) -> int:
    """Length of a trial: `base`, longer for each earlier acquittal, up to the task's own timeout, or `cap`."""
    most = cap if timeout_ms is None else timeout_ms
    rounds = trial // STAGES
    return most if rounds >= ROUNDS_MAX else min(base << ROUND_SHIFT * rounds, most)


class Item(Protocol):
    """What this module reads of a claim; compared by identity."""

    @property
    def kind(self) -> HandlerKind: ...
    @property
    def trial(self) -> int: ...


T = TypeVar("T", bound=Item)


class _Group(Generic[T]):
    """number: names its child. members: tasks that run in it; tried: those of them still on trial."""

    __slots__ = ("members", "number", "private", "stage", "tried")

    def __init__(self, number: int, stage: int, private: bool) -> None:
        self.number = number
        self.stage = stage
        self.private = private
        self.members: dict[T, None] = {}
        self.tried: dict[T, None] = {}


class Groups(Generic[T]):
    """The groups of one worker process: suspects that were picked, until their end or wait is settled.

    on_trial  groups on trial at a time: GROUPS_ON_TRIAL, or 1 if there are no children, because then the worker is the child

    A process handler has a child to itself anyway: it forms a group of its own, bounded by its slots.

    Always true: a group has at most size_max(stage) members, all of its stage when they joined; no task goes on trial while
    one of stage ONLY or ALONE is.
    """

    def __init__(self, on_trial: int) -> None:
        self._on_trial = on_trial
        self._max = GROUPS_MAX if on_trial > 1 else 1 << 30  # in the worker itself acquitted tasks are like all others
        self._numbers = 0
        self._group_of: dict[T, _Group[T]] = {}
        self._groups: dict[int, _Group[T]] = {}
        self._tried: dict[T, None] = {}
        self._narrow: dict[T, int] = {}  # of _tried, those beside which no other trial may begin → their stage
        self._tried_of = dict.fromkeys(HandlerKind, 0)

    @property
    def tried(self) -> int:
        """How many are on trial now."""
        return len(self._tried)

    @property
    def narrowest(self) -> int:
        """The stage of the task on trial, if that is ONLY or ALONE; else 0."""
        return max(self._narrow.values()) if self._narrow else 0

    def number_of(self, item: T) -> int:
        """The number of its group; 0 if it is in none."""
        group = self._group_of.get(item)
        return 0 if group is None else group.number

    def tried_of(self, kind: HandlerKind) -> int:
        """How many of this kind are on trial now."""
        return self._tried_of[kind]

    def has_room(self, stage: int, kind: HandlerKind) -> bool:
        """True when a task of this stage may go on trial now."""
        if self.narrowest:
            return False
        if stage >= ONLY:
            return not self._tried
        if kind is HandlerKind.PROCESS or self._joinable(stage) is not None:
            return True
        shared = [group for group in self._groups.values() if not group.private]
        return len(shared) < self._max and sum(bool(group.tried) for group in shared) < self._on_trial

    def _joinable(self, stage: int) -> _Group[T] | None:
        for group in self._groups.values():
            if group.stage == stage and group.tried and not group.private and len(group.members) < size_max(stage):
                return group
        return None

    def join(self, item: T) -> int:
        """Put it on trial. Returns the number of its group. A task that is ALONE may start beside others that have run past
        the time that it waited for them.
        """
        self.leave(item)  # its last attempt has ended, and that commits together with this start
        stage, private = stage_of(item.trial), item.kind is HandlerKind.PROCESS
        group = None if private or stage >= SINGLE else self._joinable(stage)
        if group is None:
            self._numbers += 1
            group = self._groups[self._numbers] = _Group(self._numbers, stage, private)
        self._group_of[item] = group
        group.members[item] = group.tried[item] = None
        self._tried[item] = None
        self._tried_of[item.kind] += 1
        if stage >= ONLY:
            self._narrow[item] = stage
        return group.number

    def acquit(self, item: T) -> bool:
        """Its trial is over and it runs on. False: it was not on trial."""
        group = self._group_of.get(item)
        if group is None or item not in group.tried:
            return False
        del group.tried[item], self._tried[item]
        self._narrow.pop(item, None)
        self._tried_of[item.kind] -= 1
        return True

    def leave(self, item: T) -> bool:
        """It no longer runs here. False: it was in no group."""
        if item not in self._group_of:
            return False
        self.acquit(item)
        group = self._group_of.pop(item)
        del group.members[item]
        if not group.members:
            del self._groups[group.number]
        return True
