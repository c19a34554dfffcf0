"""Detects cells that have gone silent: they deliver nothing although their logs grow. Pure: facts and times in, cells out.

librdkafka returns success for a pause, resume or seek and then drops it if another one has overtaken its version (its issues
#2190 and #5591). Such a cell is never fetched again, and no error is reported. Only a comparison with the log can distinguish
it from an idle cell.

A log that ends before our position is a different one: its topic was deleted and recreated. A client notices that by itself,
unless it stays with a leader of the old topic.

A cell is *quiet* when it should deliver (nothing blocks it) and has not moved for QUIET_S; the ends of quiet logs are queried
every ASK_S. It is *silent* when it has been seen behind its log end and has not moved for another SILENT_S: between 10 and
16 s after the record that it does not deliver. Always true:

- A cell that is blocked on purpose (paused, waiting for a schema or for a seek, astray, not claimed) is never silent.
- A query that no broker answered restarts every count: to assign again while a broker is away is pointless.
- So does a gap between two looks: an owner that was frozen, or waited in a transaction, could not have received anything.
- A cell that was seated again and still does not move is seated again after twice the time, up to AGAIN_MAX_S: a single batch
  may take longer than SILENT_S over a slow link, and a log may end in records that compaction has removed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from streamtask.domain.ports import Expected

C = TypeVar("C", bound=Hashable)  # a cell of requests, or a partition of another topic

QUIET_S = 5.0
ASK_S = 5.0
SILENT_S = 10.0
AGAIN_MAX_S = 320.0
STUBBORN = 2  # after this many seats in vain the client itself is at fault (tests/contract/test_topics_made_anew.py)
LOOK_MAX_S = 3.0  # after a longer time between two looks, no polls happened


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one seated cell at one moment.

    received  next offset that the engine expects from the log
    position  next offset that the client would deliver, past transaction markers; None: not known
    backlog   records that were received and not admitted yet
    held      why it delivers nothing on purpose; "" if it should deliver
    paused    this process paused it at the client: evidence only, `held` says whether that is intended
    """

    received: int
    position: int | None
    backlog: int = 0
    held: str = ""
    paused: bool = False

    @classmethod
    def of(cls, expected: Expected, position: int, held: str, *, paused: bool) -> Standing:
        """position: as reported by the client, negative before the first record of an assignment or after a seek."""
        known = position if position >= 0 else None
        return cls(expected.received, known, expected.backlog, expected.held or held, paused)


@dataclass(slots=True)
class _Watched:
    mark: tuple[int, int | None]
    since_s: float  # time of its last move
    behind_s: float | None = None  # when an answer first showed it behind
    end: int = 0
    patience_s: float = SILENT_S


class SilentCells(Generic[C]):
    """Receives the state of the cells about once a second, and from time to time the ends of their logs."""

    def __init__(self) -> None:
        self._cells: dict[C, _Watched] = {}
        self._looked_s: float | None = None
        self._asked_s = float("-inf")

    def look(self, standings: Mapping[C, Standing], now_s: float) -> None:
        """Take the present state of every seated cell."""
        if self._looked_s is None or now_s - self._looked_s > LOOK_MAX_S:
            self._start_again(now_s)
        self._looked_s = now_s
        for cell in [cell for cell in self._cells if cell not in standings or standings[cell].held]:
            del self._cells[cell]
        for cell, standing in standings.items():
            if standing.held:
                continue
            mark = (standing.received, standing.position)
            watched = self._cells.get(cell)
            if watched is None or watched.mark != mark:
                delivers = watched is None or standing.received > watched.mark[0]
                patience_s = SILENT_S if delivers or watched is None else watched.patience_s
                self._cells[cell] = _Watched(mark, now_s, patience_s=patience_s)

    def to_ask(self, now_s: float) -> tuple[C, ...]:
        """The cells whose log ends should be queried now; () if it is too early."""
        if now_s - self._asked_s < ASK_S:
            return ()
        quiet = tuple(cell for cell, watched in self._cells.items() if now_s - watched.since_s >= QUIET_S)
        if quiet:
            self._asked_s = now_s
        return quiet

    def answered(self, ends: Mapping[C, int], now_s: float) -> None:
        """Take the queried log ends; {} if no broker answered. A cell without an end got no answer."""
        if not ends:
            self._start_again(now_s)
            return
        for cell, watched in self._cells.items():
            end = ends.get(cell)
            if end is None or end == _reached(watched):
                watched.behind_s = None
            else:
                watched.end = end
                watched.behind_s = now_s if watched.behind_s is None else watched.behind_s

    def silent(self, now_s: float) -> dict[C, int]:
        """{cell: log end} of cells that have been behind and not moving for too long. Confirm each end before acting on it:
        it may count records of a transaction that is still open, which may not be read yet.
        """
        return {
            cell: watched.end
            for cell, watched in self._cells.items()
            if watched.behind_s is not None and now_s - watched.behind_s >= watched.patience_s
        }

    def confirmed(self, ends: Mapping[C, int], asked: Iterable[C], now_s: float) -> tuple[C, ...]:
        """Of the queried cells, those to seat again, judged by the ends of what may be read."""
        found = []
        for cell in asked:
            watched = self._cells.get(cell)
            if watched is None:
                continue
            watched.behind_s = None
            end = ends.get(cell)
            if end is not None and end != _reached(watched):
                watched.end, watched.since_s = end, now_s
                watched.patience_s = min(2 * watched.patience_s, AGAIN_MAX_S)
                found.append(cell)
        return tuple(found)

    def stubborn(self, cell: C) -> bool:
        """Whether seating it again is useless: that failed STUBBORN times, or its log ends before our position."""
        watched = self._cells[cell]
        return watched.patience_s > SILENT_S * 2**STUBBORN or watched.end < _reached(watched)

    def quiet_s(self, cell: C, now_s: float) -> float:
        watched = self._cells.get(cell)
        return now_s - watched.since_s if watched is not None else 0.0

    def _start_again(self, now_s: float) -> None:
        for watched in self._cells.values():
            watched.since_s, watched.behind_s = now_s, None


def _reached(watched: _Watched) -> int:
    received, position = watched.mark
    return received if position is None else max(received, position)
