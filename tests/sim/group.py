"""The consumer group of the lead topic: members, generations, cooperative moves.

A shard that moves is revoked by its owner first and given to the next one only when the owner has answered or its
session is over. Every change of members or of the assignment is a new generation: what was captured in an earlier one is
refused at TxnOffsetCommit. Fencing is by member, not by partition: any current member may commit any offset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Membership(NamedTuple):
    """Group metadata as a consumer captures it."""

    member: int
    generation: int


@dataclass(slots=True)
class Group:
    """owner: who holds a shard now (also a dead member until its session ends); target: who shall hold it."""

    shards: int
    generation: int = 0
    members: list[int] = field(default_factory=list)
    owner: dict[int, int] = field(default_factory=dict)
    target: dict[int, int] = field(default_factory=dict)
    _serial: int = 0

    def member(self, member: int | None) -> bool:
        return member in self.members

    def current(self, membership: Membership) -> bool:
        """True while nothing has changed in the group since this was captured."""
        return membership.generation == self.generation and membership.member in self.members

    def capture(self, member: int | None) -> Membership | None:
        """Group metadata after a poll; None: no member id, the adapter refuses to commit."""
        return Membership(member, self.generation) if member is not None and member in self.members else None

    def join(self) -> int:
        self._serial += 1
        self.members.append(self._serial)
        self.balance()
        return self._serial

    def remove(self, member: int) -> None:
        """A member leaves, is removed, or its session ends: what it held is free at once."""
        if member not in self.members:
            return
        self.members.remove(member)
        for shard, owner in list(self.owner.items()):
            if owner == member:
                del self.owner[shard]
        self.balance()

    def balance(self) -> None:
        """Sticky and even: nobody above the ceiling, nobody below the floor, as few moves as that takes."""
        self.target = {}
        if self.members:
            floor, rest = divmod(self.shards, len(self.members))
            counts = dict.fromkeys(self.members, 0)
            ceilings = rest
            for shard in range(self.shards):
                owner = self.owner.get(shard)
                if owner is None:
                    continue
                if counts[owner] < floor:
                    self.target[shard] = owner
                elif counts[owner] == floor and ceilings:
                    ceilings -= 1
                    self.target[shard] = owner
                else:
                    continue
                counts[owner] += 1
            for shard in range(self.shards):
                if shard not in self.target:
                    least = min(self.members, key=lambda m: counts[m])
                    counts[least] += 1
                    self.target[shard] = least
        self._give()

    def _give(self) -> None:
        """Free shards go to their targets. A new generation."""
        self.generation += 1
        for shard, member in self.target.items():
            if shard not in self.owner:
                self.owner[shard] = member

    def move(self, shard: int, member: int) -> None:
        """A rebalance moves the shard to `member` as soon as its owner has revoked it."""
        assert member in self.members, f"{member} is no member"
        self.target[shard] = member
        self._give()

    def revoking(self, member: int) -> list[int]:
        """Shards that this member has to give up."""
        return [s for s, owner in self.owner.items() if owner == member and self.target.get(s) != member]

    def held(self, member: int) -> list[int]:
        return [s for s, owner in self.owner.items() if owner == member]

    def release(self, member: int, shards: list[int]) -> None:
        """The owner's revoke callback has returned."""
        freed = [s for s in shards if self.owner.get(s) == member]
        for shard in freed:
            del self.owner[shard]
        if freed:
            self._give()
