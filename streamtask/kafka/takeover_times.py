"""How long each step of a claim took, for the `shards_claimed` event: it shows where a take-over spends its time."""

from __future__ import annotations

from streamtask.domain.ports import Ask, CommitPlain, FenceIds, ListOffsets, Produce, ReadSettled, Seat
from streamtask.observability import event_log

_STEPS: dict[type, str] = {
    ListOffsets: "list_ms",
    FenceIds: "fence_ms",
    ReadSettled: "read_ms",
    CommitPlain: "commit_ms",
}


class ClaimTimes:
    """The times of one worker process. A claim that starts again sums up all its tries."""

    def __init__(self) -> None:
        self._took: dict[str, float] = {}
        self._fenced = 0

    def performed(self, ask: Ask, seconds: float) -> None:
        """Record a step; after the last step of a claim of new shards, log the times."""
        name = _STEPS.get(type(ask))
        if name is not None:
            self._took[name] = self._took.get(name, 0.0) + seconds * 1_000
            self._fenced += len(ask.ids) if isinstance(ask, FenceIds) else 0
        elif isinstance(ask, Seat):
            spent = {name: round(self._took.get(name, 0.0)) for name in _STEPS.values()}
            shards = sorted({shard for _, shard in ask.positions})
            event_log.emit("shards_claimed", {"shards": shards, **spent, "fenced": self._fenced})
            self._took, self._fenced = {}, 0
        elif isinstance(ask, Produce):
            self._took, self._fenced = {}, 0  # a claim of shards that it already had, which seats nothing
