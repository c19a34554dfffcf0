"""Who is told what the group does with a worker's shards, and what else its clients have to say.

Always true: every call comes inside poll(), on the thread that polls; what has to be performed for it is performed before it
returns.
"""

from __future__ import annotations

from typing import Protocol

Shards = tuple[int, ...]


class GroupListener(Protocol):
    """The worker behind a BrokerAdapter, as its consumer sees it."""

    def shards_assigned(self, shards: Shards) -> None:
        """The group gave us these: seat them now or later."""

    def shards_revoked(self, shards: Shards) -> None:
        """These go elsewhere: commit inside the call; they are still ours until it returns."""

    def shards_lost(self, shards: Shards) -> None:
        """These are gone already: commit nothing."""

    def position_lost(self, band: int, shard: int, offset: int) -> None:
        """The log did not hold the position of this cell (retention, truncation); reading goes on at `offset`."""

    def kafka_error(self, text: str) -> None:
        """An error that needs no step."""

    def member_changed(self, member_id: str) -> None:
        """Our member id is another one; "" while not a member."""
