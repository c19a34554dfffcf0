"""Suspects: requests under which two processes have died. In which group one stands its trial, and what a death says then.

Group testing: suspects run in quarantine children, many to a child. A child that dies has one that killed it among those
that ran in it, so the groups in which they run next are at most half as large. Who dies alone in its child did it. Who runs
for as long as its trial lasts is acquitted: its deaths are forgiven.

A handler may also kill its worker from inside its child (os.kill(getppid()), a container whose memory runs out). Then all
that were on trial in that worker are the group: they are narrowed as well, more steeply, because such a death stops
everything else that the worker does; down to one that is the only one on trial in its worker, and then alone in it.

What has to outlive the worker is one number per request, `trial` in its ledger entry: the stage that its next trial has,
plus STAGES for each time that it was acquitted before (at most ROUNDS_MAX; each makes its trials ROUND_FACTOR times longer,
so that one which kills late is met by a trial that is long enough).

    stage 0…7     at most 128, 64, 32, … 1 in its child; at most GROUPS_ON_TRIAL such groups are on trial at a time
    ONLY          it is the only one on trial in its worker process
    ALONE         nothing else starts in its worker process: a death of the worker is its own
"""

from __future__ import annotations

from typing import Final, Generic, Protocol, TypeVar

from streamtask.domain.model import HandlerKind

GROUP_MAX: Final = 128  # more would lose more work to one poison; fewer would start more children for a false alarm
SINGLE: Final = GROUP_MAX.bit_length() - 1  # the stage from which on a group has one member
ONLY: Final = SINGLE + 1
ALONE: Final = SINGLE + 2
STAGES: Final = ALONE + 1
ROUNDS_MAX: Final = 2  # the largest `trial` is then 29: it fits one digit of the ledger's text
ROUND_SHIFT: Final = 4  # trials of 10 s, of 160 s, then as long as any
GROUPS_ON_TRIAL: Final = 4  # in children of one worker process at a time: each takes about 50 MB
GROUPS_MAX: Final = 12  # those included whose members are all acquitted, and run on
NARROWED: Final = (
    32  # by which the death of a worker divides those that were on trial in it: a few groups are, at a time
)
ONLY_MAX: Final = 8  # so many stand their next trial one after the other, each for 10 s


def stage_of(trial: int) -> int:
    """How narrow the trial is that an entry with this number stands."""
    return trial % STAGES


def size_max(stage: int) -> int:
    """How many may stand trial in one child at this stage."""
    return GROUP_MAX >> stage if stage < SINGLE else 1


def parted(trial: int, size: int) -> int:
    """The number of one that was among `size` in a child that died: its next group is at most half as large, and always
    smaller than the bound of this one."""
    assert size > 1, "who was alone in it is charged"
    stage = stage_of(trial)
    return trial - stage + max(stage, min(max(stage + 1, _stage_for(size // 2)), SINGLE))


def narrowed(trial: int, tried: int) -> int:
    """The number of one whose worker died while it stood trial, as did `tried` of its shard, itself included."""
    stage = stage_of(trial)
    if stage >= ONLY:
        following = ALONE
    elif tried <= ONLY_MAX or stage == SINGLE:
        following = ONLY
    else:
        following = min(max(stage + 1, _stage_for(tried // NARROWED)), SINGLE)
    return trial - stage + following


def acquitted(trial: int) -> int:
    """The number of one that has outlived its trial."""
    return min(trial // STAGES + 1, ROUNDS_MAX) * STAGES


def never_convicted(trial: int) -> int:
    """The number of one of a type with lost_max=0: it never stands the trial in which a death of the worker is its own."""
    return trial - max(0, stage_of(trial) - SINGLE)


def _stage_for(size: int) -> int:
    """The first stage whose groups have at most `size` members."""
    stage = 0
    while size_max(stage) > max(size, 1):
        stage += 1
    return stage


def trial_ms(base: int, trial: int, cap: int, timeout_ms: int | None) -> int:
    """Length of a trial: `base`, longer for each acquittal before, up to the task's own timeout, or `cap`."""
    most = cap if timeout_ms is None else timeout_ms
    rounds = trial // STAGES
    return most if rounds >= ROUNDS_MAX else min(base << ROUND_SHIFT * rounds, most)


class Item(Protocol):
    """What is read of a claim; compared by identity."""

    @property
    def kind(self) -> HandlerKind: ...
    @property
    def trial(self) -> int: ...


T = TypeVar("T", bound=Item)


class _Group(Generic[T]):
    """number: names its child. members: who runs in it; tried: who of them is still on trial."""

    __slots__ = ("members", "number", "private", "stage", "tried")

    def __init__(self, number: int, stage: int, private: bool) -> None:
        self.number = number
        self.stage = stage
        self.private = private
        self.members: dict[T, None] = {}
        self.tried: dict[T, None] = {}


class Groups(Generic[T]):
    """The groups of one worker process: of suspects that were picked, until their end or wait is settled.

    on_trial  groups on trial at a time: GROUPS_ON_TRIAL, or 1 where there are no children: then the worker is the child

    A process handler has a child to itself as it is: a group of its own, which is bounded by its slots.

    Always true: at most size_max(stage) members in a group, all of its stage when they joined; nobody goes on trial while
    one of stage ONLY or ALONE is.
    """

    def __init__(self, on_trial: int) -> None:
        self._on_trial = on_trial
        self._max = GROUPS_MAX if on_trial > 1 else 1 << 30  # acquitted ones of the worker itself are like all others
        self._numbers = 0
        self._group_of: dict[T, _Group[T]] = {}
        self._groups: dict[int, _Group[T]] = {}
        self._tried: dict[T, None] = {}
        self._narrow: dict[T, int] = {}  # of these, who stands a trial beside which no other may begin: its stage
        self._tried_of = dict.fromkeys(HandlerKind, 0)

    @property
    def tried(self) -> int:
        """How many are on trial now."""
        return len(self._tried)

    @property
    def narrowest(self) -> int:
        """The stage of what is on trial, if that is ONLY or ALONE; else 0."""
        return max(self._narrow.values(), default=0)

    def number_of(self, item: T) -> int:
        """The number of its group; 0: it is in none."""
        group = self._group_of.get(item)
        return 0 if group is None else group.number

    def tried_of(self, kind: HandlerKind) -> int:
        """How many of this kind are on trial now."""
        return self._tried_of[kind]

    def has_room(self, stage: int, kind: HandlerKind) -> bool:
        """True when one of this stage may go on trial now."""
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
        """It is on trial from now on. Returns the number of its group. One that is ALONE may go beside others that have
        outstayed their time."""
        self.leave(item)  # its last attempt has ended, and this is committed together with that
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
        """It runs here no longer. False: it was in no group."""
        self.acquit(item)
        group = self._group_of.pop(item, None)
        if group is None:
            return False
        del group.members[item]
        if not group.members:
            del self._groups[group.number]
        return True
