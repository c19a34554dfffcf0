"""Watches the cells of one member and assigns those again that have gone silent (silent_cells.py decides).

If that has failed twice, the member leaves the group and rejoins with a new client: an old one may stay with the leaders that
a topic had before it was deleted and recreated.

The owner thread looks once a second, which queries no broker. A thread that lives for one query asks where logs end, with the
reader of the claims, so an idle owner waits for nothing. Only a cell that is about to be assigned again is queried once more
here, for at most CONFIRM_S, by the member itself: it reads committed, so its answer leaves out records of a transaction that
is still open. A claim that begins meanwhile waits for the reader for ASK_TIMEOUT_S at most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streamtask.config import TopicNames
from streamtask.domain.ports import Cell, Expected
from streamtask.kafka.background_close import in_background
from streamtask.kafka.consumer import ShardConsumer
from streamtask.kafka.silent_cells import SilentCells, Standing
from streamtask.observability import event_log

LOOK_S = 1.0
ASK_TIMEOUT_S = 1.0
CONFIRM_S = 0.5
_LATEST = -1  # the protocol's special timestamp for the end of the log


class Reseating:
    """look() belongs to the owner thread."""

    def __init__(self, consumer: ShardConsumer, reader: Callable[[], Consumer], names: TopicNames) -> None:
        self.due_s = 0.0  # when the next look is due
        self._consumer, self._reader, self._names = consumer, reader, names
        self._cells: SilentCells[Cell] = SilentCells()
        self._asking: threading.Thread | None = None
        self._ends: Mapping[Cell, int] = {}  # the result of the last query; {}: no broker answered

    def look(self, expected: Mapping[Cell, Expected], now_s: float) -> None:
        """expected: what the engine knows of the cells that it owns."""
        self.due_s = now_s + LOOK_S
        standings = self._consumer.standings(expected)
        self._cells.look(standings, now_s)
        if self._asking is not None:
            if self._asking.is_alive():
                return
            self._asking = None
            self._cells.answered(self._ends, now_s)
        if cells := self._cells.silent(now_s):
            self._assign_anew(tuple(cells), standings, now_s)
        if quiet := self._cells.to_ask(now_s):
            self._asking = in_background("log-ends", lambda: self._ask(quiet))

    def _ask(self, cells: tuple[Cell, ...]) -> None:
        self._ends = {}
        self._ends = self._ends_of(self._reader(), cells, ASK_TIMEOUT_S)

    def _ends_of(self, client: Consumer, cells: Iterable[Cell], timeout_s: float) -> dict[Cell, int]:
        """The ends that a broker returned in time."""
        cells = tuple(cells)
        topics = self._names.requests
        try:
            asked = [TopicPartition(topics[band], shard, _LATEST) for band, shard in cells]
            found = client.offsets_for_times(asked, timeout=timeout_s)
        except (KafkaException, RuntimeError):  # RuntimeError: the client was closed meanwhile
            return {}
        return {c: part.offset for c, part in zip(cells, found, strict=True) if part.error is None and part.offset >= 0}

    def _assign_anew(self, cells: tuple[Cell, ...], standings: Mapping[Cell, Standing], now_s: float) -> None:
        quiet_s = {cell: self._cells.quiet_s(cell, now_s) for cell in cells}
        ends = self._ends_of(self._consumer.handle, cells, CONFIRM_S)
        anew = self._cells.confirmed(ends, cells, now_s)
        if not anew:
            return
        stubborn = [cell for cell in anew if self._cells.stubborn(cell)]
        if stubborn:
            reported = {f"{band}-{shard}": standings[band, shard].received for band, shard in stubborn}
            event_log.emit("member_renewed", {"cells": reported})
            self._consumer.rejoin()
            return
        self._consumer.reseat({cell: standings[cell].received for cell in anew})
        held = {f"{band}-{shard}": standing.held for (band, shard), standing in standings.items() if standing.held}
        for cell in anew:
            standing = standings[cell]
            event_log.emit(
                "cell_reseated",
                {
                    "band": cell[0],
                    "shard": cell[1],
                    "received": standing.received,
                    "position": standing.position,
                    "log_end": ends[cell],
                    "backlog": standing.backlog,
                    "paused": standing.paused,
                    "quiet_s": round(quiet_s[cell], 1),
                    "held": held,
                },
            )
