"""How much one transaction carries, and how long its flush may take: learned from what the broker takes in time.

Additive rise, multiplicative fall, as in congestion control (Jacobson 1988): a full batch that was taken within half of
TARGET_MS lets the next one be RISE_BYTES larger; one that took longer than TARGET_MS, or was not taken at all, makes the
next one smaller. The limit is at once the estimate of the link: so many bytes pass in TARGET_MS. One unit always passes
the limit, however large it is, and then gets the time that it needs: after a failure the estimate is halved, and so the
time that the same unit gets is doubled, up to PATIENCE_MAX_MS.
"""

from __future__ import annotations

from typing import Final

TARGET_MS: Final = 1_000
RISE_BYTES: Final = 256_000
FALL_MAX: Final = 16  # one failure makes a batch at most so many times smaller
BYTES_MIN: Final = 16_000  # some thirty events; a link that takes less in a second gets more time instead
FLUSH_MS: Final = 5_000  # for a batch that costs no time: what a healthy cluster needs for its worst moment
STALL_MS: Final = 1_500  # nothing was acknowledged for so long, but other partitions of the same batch were
SILENT_MS: Final = 2_500  # nothing at all was acknowledged
PATIENCE_MAX_MS: Final = 30_000  # 900 KB at 30 kB/s; the owner polls the group between two flushes only
CLOSING_MS: Final = 8_000  # the others of the group wait for it
SLOW_BYTES: Final = 1_000_000  # below it a single large record may need more than the usual transaction timeout


class BatchSize:
    """The limit of the next batch. bytes_max: what it never exceeds. Used by one thread, without a clock."""

    __slots__ = ("bytes_max", "limit", "silences")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.limit = bytes_max
        self.silences = 0  # flushes in a row of which nothing was acknowledged

    # -- what came of a flush ------------------------------------------------------------------------------------------

    def taken(self, size: int, took_ms: int) -> None:
        """The broker has acknowledged a batch of `size` bytes after `took_ms`."""
        self.silences = 0
        if took_ms > TARGET_MS:
            self._fall(size, size * TARGET_MS // took_ms)
        elif took_ms * 2 <= TARGET_MS and size * 2 >= self.limit:
            self.limit = min(self.bytes_max, self.limit + RISE_BYTES)

    def not_taken(self, size: int, acknowledged: float, waited_ms: int) -> None:
        """It has not, within its time. acknowledged: the share of the records that were, 0..1."""
        self.silences = 0 if acknowledged else self.silences + 1
        if size > BYTES_MIN:  # a smaller one was not refused for its size
            self._fall(size, int(size * acknowledged * TARGET_MS / max(1, waited_ms)) if acknowledged else size)

    def _fall(self, size: int, passes: int) -> None:
        """A batch of this size was too much; so many bytes pass in TARGET_MS, as far as it has shown."""
        tried = min(self.limit, size)
        self.limit = max(min(self.bytes_max, BYTES_MIN), tried // FALL_MAX, min(tried // 2, passes))

    # -- how long the next one may take --------------------------------------------------------------------------------

    def patience_ms(self, size: int) -> int:
        """For a whole flush of this size."""
        return self._within(FLUSH_MS, size)

    def stall_ms(self, size: int) -> int:
        """Without a further acknowledgement, where some partitions have acknowledged and others have not."""
        return self._within(STALL_MS, size)

    def silent_ms(self, size: int) -> int:
        """Without any acknowledgement. Longer each time: a broker that is only slow must get through."""
        return self._within(min(SILENT_MS << min(self.silences, 4), FLUSH_MS), size)

    def _within(self, floor_ms: int, size: int) -> int:
        return min(floor_ms + 2 * size * TARGET_MS // self.limit, PATIENCE_MAX_MS)

    @property
    def closing_limit(self) -> int:
        """Of a hand-over, which is one batch: what passes in CLOSING_MS. Ends beyond it are lost here, and their tasks run
        again at the next owner."""
        return self.limit * CLOSING_MS // TARGET_MS

    @property
    def slow(self) -> bool:
        """True while one large record may take longer than the usual transaction timeout."""
        return self.limit < min(SLOW_BYTES, self.bytes_max)
