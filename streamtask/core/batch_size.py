"""How much one transaction carries, and how long its flush may take: learned from what the broker accepts in time.

The limit rises additively and falls multiplicatively, as in congestion control (Jacobson 1988). A full batch accepted within
half of TARGET_MS lets the next one be RISE_BYTES larger; one that took longer than TARGET_MS, or was not accepted at all,
makes the next one smaller. So the limit also estimates the link: that many bytes pass in TARGET_MS. A single unit is always
sent, however far it exceeds the limit, and gets the time that it needs: each failure halves the estimate and so doubles the
time that the same unit gets, up to PATIENCE_MAX_MS.
"""

from __future__ import annotations

from typing import Final

TARGET_MS: Final = 1_000
RISE_BYTES: Final = 256_000
FALL_MAX: Final = 16  # one failure divides the batch size by at most this
BYTES_MIN: Final = 16_000  # about thirty events; a link that takes less in a second gets more time instead
FLUSH_MS: Final = 5_000  # for a batch that needs no transfer time: what a healthy cluster takes in its worst moment
STALL_MS: Final = 1_500  # no further acknowledgement for this long, while other partitions did acknowledge
SILENT_MS: Final = 2_500  # no acknowledgement at all
PATIENCE_MAX_MS: Final = 30_000  # 900 KB at 30 kB/s; between two flushes the owner does nothing but poll the group
CLOSING_MS: Final = 8_000  # the rest of the group waits for it
SLOW_BYTES: Final = 1_000_000  # below it a single large record may need more than the usual transaction timeout


class BatchSize:
    """The limit of the next batch, never above bytes_max. Used by one thread, without a clock."""

    __slots__ = ("bytes_max", "limit", "silences")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.limit = bytes_max
        self.silences = 0  # consecutive flushes without any acknowledgement

    # -- results of a flush ----------------------------------------------------------------------------------------------

    def taken(self, size: int, took_ms: int) -> None:
        """The broker has acknowledged a batch of `size` bytes after `took_ms`."""
        self.silences = 0
        if took_ms > TARGET_MS:
            self._fall(size, size * TARGET_MS // took_ms)
        elif took_ms * 2 <= TARGET_MS and size * 2 >= self.limit:
            self.limit = min(self.bytes_max, self.limit + RISE_BYTES)

    def not_taken(self, size: int, acknowledged: float, waited_ms: int) -> None:
        """The broker did not acknowledge the whole batch in time. acknowledged: the share of its records that it did, 0..1."""
        self.silences = 0 if acknowledged else self.silences + 1
        if size > BYTES_MIN:  # a smaller one was not refused for its size
            self._fall(size, int(size * acknowledged * TARGET_MS / max(1, waited_ms)) if acknowledged else size)

    def _fall(self, size: int, passes: int) -> None:
        """Shrink after a batch of `size` bytes failed; `passes` is how many bytes pass in TARGET_MS, as far as it showed."""
        tried = min(self.limit, size)
        self.limit = max(min(self.bytes_max, BYTES_MIN), tried // FALL_MAX, min(tried // 2, passes))

    # -- how long the next flush may take --------------------------------------------------------------------------------

    def patience_ms(self, size: int) -> int:
        """How long a whole flush of this size may take."""
        return self._within(FLUSH_MS, size)

    def stall_ms(self, size: int) -> int:
        """How long to wait for the next acknowledgement once some partitions have acknowledged and others have not."""
        return self._within(STALL_MS, size)

    def silent_ms(self, size: int) -> int:
        """How long to wait for the first acknowledgement. It grows each time: a broker that is only slow must get through."""
        return self._within(min(SILENT_MS << min(self.silences, 4), FLUSH_MS), size)

    def _within(self, floor_ms: int, size: int) -> int:
        return min(floor_ms + 2 * size * TARGET_MS // self.limit, PATIENCE_MAX_MS)

    @property
    def closing_limit(self) -> int:
        """The limit of a hand-over, which is one batch: what passes in CLOSING_MS.

        Ends that do not fit are lost here, and the next owner runs their tasks again.
        """
        return self.limit * CLOSING_MS // TARGET_MS

    @property
    def slow(self) -> bool:
        """True while one large record may take longer than the usual transaction timeout."""
        return self.limit < min(SLOW_BYTES, self.bytes_max)
