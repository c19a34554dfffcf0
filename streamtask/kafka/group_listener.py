"""The interface through which a worker learns what the group does with its shards, and of its clients' errors.

Always true: every call comes inside poll(), on the thread that polls; what it requires is done before it returns.
"""

from __future__ import annotations

from typing import Protocol

Shards = tuple[int, ...]


class GroupListener(Protocol):
    """The worker behind a BrokerAdapter, as its consumer sees it."""

    def shards_assigned(self, shards: Shards) -> None:
        """The group gave us these shards: seat them now or later."""

    def shards_revoked(self, shards: Shards) -> None:
        """These shards move elsewhere: commit inside the call; they are still ours until it returns."""

    def shards_lost(self, shards: Shards) -> None:
        """These shards are already gone: commit nothing."""

    def position_lost(self, band: int, shard: int, offset: int) -> None:
        """The log did not hold the position of this cell (retention, truncation); reading continues at `offset`."""

    def kafka_error(self, text: str) -> None:
        """An error that needs no action."""

    def member_changed(self, member_id: str) -> None:
        """Our member id has changed; "" while not a member."""
