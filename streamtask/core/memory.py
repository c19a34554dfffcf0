"""What a worker holds, in bytes: counted when it arrives, subtracted when it leaves, and kept within two shares of its budget.

    waiting  every record from its fetch until its end is committed: its bytes and what the worker keeps with them
    active   decoded parameters of running tasks; results and long texts that are not committed yet

A cell is paused when its band may hold no more (`Share.full`), and resumed once a quarter of that is free again. Two rules
guarantee progress. Each band has a part of a share that no other band can take: a flood of low requests leaves room for high
ones, and the other way round. And an empty holder may always have one: a cell that holds nothing is never left paused, and a
task is started when none runs, however heavy they are. So `waiting` may exceed its share by what one fetch brings plus one
request of each cell (in a shard that is taken over: by what comes before the requests that its earlier owner had open), and
`active` by the task of each band that was started last, and by the first results of a type.

Weights are bounds, not measurements: they are computed from the bytes of a record without decoding them, and are at least what
CPython takes for the same values. The size of a result is not known in advance: a task is expected to return as much as the
largest recent result of its type.

Always true: the totals are the sums of what is held; they are 0 when nothing is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from streamtask.domain.model import HandlerKind, RequestRecord

if TYPE_CHECKING:
    from streamtask.core.shard import Claim, Owed, Shard
    from streamtask.core.shard import LastEvent as End
    from streamtask.domain.ports import Cell

# One waiting request without its value: record, model, claim, ledger entry, schedule (2,600 bytes measured over 15,840 open
# requests), and texts up to TEXT_FREE.
OVERHEAD: Final = 3_072
TEXT_FREE: Final = 512
SMALL: Final = 256  # so few bytes decode to less than the slack in OVERHEAD
# CPython 3.11-3.14: an empty list takes 56 bytes and a slot in its parent, a dict with up to five entries 184, a number 24
# to 32 and a slot of 8, a short string 49 plus its characters. Rounded up to the sizes that the allocator hands out.
LIST_BYTES: Final = 72
DICT_BYTES: Final = 240
ITEM_BYTES: Final = 48
STRING_BYTES: Final = 64
# When the structure of a text is counted: how long it and its strings must be for skipping them to be worth a search, and
# how many quotes are examined (and another one for each QUOTE_EVERY bytes passed), and backslashes before one.
SKIP_MIN: Final = 2_048
LONG_STRING: Final = 512
QUOTES_MAX: Final = 40
QUOTE_EVERY: Final = 1_024
SLASHES_MAX: Final = 64
OBJECT, BACKSLASH = ord("{"), ord("\\")
DECAY: Final = 16  # a smaller result lowers the expectation of its type by a sixteenth
_ASTRAL: Final = re.compile(rb"[\xf0-\xf4]|\\u[dD]")


def record_weight(record: RequestRecord) -> int:
    """Bytes that this record takes from its fetch to its end, without decoded parameters. Also fills `opened`."""
    size = len(record.value)
    weight = OVERHEAD + size
    text = record.text
    if text is not None:
        record.opened = opened_weight(text)
        if text is not record.value:  # it came in a format other than JSON
            weight += len(text)
    elif size > SMALL and record.request is not None:
        weight += opened_weight(record.value)  # it stays decoded
    if record.headers:
        weight += sum(len(name) + len(held) + 2 * STRING_BYTES for name, held in record.headers)
    if record.key is not None and len(record.key) > STRING_BYTES:
        weight += len(record.key)
    if record.request is not None and record.request.labels:
        weight += sum(2 * (len(name) + len(held) + STRING_BYTES) for name, held in record.request.labels.items())
    record.weight = weight
    return weight


def opened_weight(text: bytes) -> int:
    """An upper bound of the memory that the values of this JSON text take (1 MB of `[[],[],…]`: 40 MB)."""
    if text.isascii() and (b"\\" not in text or rb"\u" not in text):  # one byte is found 100 times as fast as two
        width = 1
    else:  # one character beyond the BMP makes the whole string four bytes wide
        width = 4 if _ASTRAL.search(text) else 2
    count = _without_long_strings(text).count
    return (
        width * len(text)
        + DICT_BYTES * count(b"{")
        + LIST_BYTES * count(b"[")
        + ITEM_BYTES * count(b",")
        + STRING_BYTES * (count(b'"') >> 1)
    )


def _without_long_strings(text: bytes) -> bytes:
    """A JSON object without the characters of its long strings, which are no structure.

    Example: of `{"a":"<20,000 characters>","b":[1]}` remains `{"a":"","b":[1]}`. CPython takes 8 us to count one character in
    20 KB, and 0.2 us to find the end of a string of that length. Where quotes are frequent, it gives up and the rest remains:
    there the search would take longer than counting.
    """
    if len(text) < SKIP_MIN or text[0] != OBJECT:  # not an object: a binary format, whose quotes enclose nothing
        return text
    find, parts, start, opening, quotes = text.find, [], 0, -1, 0
    at = find(b'"')
    while at >= 0 and quotes < QUOTES_MAX + at // QUOTE_EVERY:
        if opening < 0:
            opening = at
        else:
            slashes = 0
            if text[at - 1] == BACKSLASH:
                before = text[max(at - SLASHES_MAX, opening + 1) : at]
                slashes = len(before) - len(before.rstrip(b"\\"))
                if slashes == SLASHES_MAX:
                    break
            if slashes % 2 == 0:  # the string ends here: the quote is not escaped
                if at - opening > LONG_STRING:
                    parts.append(text[start : opening + 1])
                    start = at
                opening = -1
        at = find(b'"', at + 1)
        quotes += 1
    return b"".join((*parts, text[start:])) if parts else text


def end_weight(final: End) -> int:
    """Bytes of an owed end beyond the slack in OVERHEAD."""
    size = len(final.result) if final.result is not None else 0
    if final.error is not None or final.traceback is not None:
        size += 2 * (len(final.error or "") + len(final.traceback or ""))
    return size if size > TEXT_FREE else 0


def text_weight(owed: Owed | None) -> int:
    """The same for a progress report or the wait for a retry."""
    message = owed.message if owed is not None else None
    return 2 * len(message) if message is not None and len(message) > TEXT_FREE // 2 else 0


class Share:
    """One share of the budget, divided among the bands.

    A quarter belongs to the first band alone, a quarter is divided among the others, and any band may use the other half.
    """

    __slots__ = ("_common", "limit", "own", "safe", "total", "used")

    def __init__(self, limit: int, bands: int) -> None:
        assert limit > 0, f"{limit} bytes"
        self.limit = limit
        quarter = limit // 4
        self.own = [quarter] + [quarter // (bands - 1)] * (bands - 1)
        self._common = limit - sum(self.own)
        self.safe = min(self.own)  #: below this total no band is full
        self.used = [0] * bands
        self.total = 0

    def add(self, band: int, weight: int) -> None:
        """Weight may be negative."""
        self.used[band] += weight
        self.total += weight
        assert self.used[band] >= 0, f"band {band} holds {self.used[band]} bytes"

    def full(self, band: int) -> bool:
        """True when this band may take no more: its own part and the common part are used up."""
        return self.used[band] >= self.own[band] and self._beyond() >= self._common

    def roomy(self, band: int) -> bool:
        """True when a quarter of what made it full is free again."""
        return 4 * self.used[band] < 3 * self.own[band] or 4 * self._beyond() < 3 * self._common

    def _beyond(self) -> int:
        """What all bands hold beyond their own parts."""
        return sum(used - own for used, own in zip(self.used, self.own, strict=True) if used > own)


class Memory:
    """The accounts of one engine. waiting_max, active_max: the two shares, in bytes."""

    __slots__ = ("active", "expected", "heavy", "parked", "pauses", "waiting")

    def __init__(self, waiting_max: int, active_max: int, bands: int) -> None:
        self.waiting = Share(waiting_max, bands)
        self.active = Share(active_max, bands)
        self.heavy: set[Cell] = set()  #: cells that are paused for what their band holds
        self.pauses = 0  #: how often a cell was paused for that
        self.parked = 0  #: weight of requests that wait for a time or for an unknown task type
        self.expected: dict[str, int] = {}  #: task type → expected bytes of a result, for types with large results

    @property
    def held(self) -> int:
        """Bytes held now, as counted here."""
        return self.waiting.total + self.active.total

    @property
    def budget(self) -> int:
        """Bytes that may be held."""
        return self.waiting.limit + self.active.limit

    @property
    def crowded(self) -> bool:
        """True when requests that only wait use half of their share: if more waited, they would block those that can run."""
        return self.parked >= self.waiting.limit // 2

    # --- Records ---

    def fetched(self, shard: Shard, record: RequestRecord) -> bool:
        """Count a fetched record as held. True: its band may take no more."""
        band, waiting = record.band, self.waiting
        weight = record.weight or record_weight(record)
        shard.held[band] += weight
        used = waiting.used
        used[band] += weight
        waiting.total += weight
        return used[band] >= waiting.own[band] and waiting.full(band)

    def released(self, shard: Shard, record: RequestRecord) -> None:
        """The record is no longer held: its end is committed, or it had ended before it was fetched."""
        shard.held[record.band] -= record.weight
        self.waiting.add(record.band, -record.weight)

    def forgotten(self, shard: Shard) -> None:
        """Stop counting what is held for this shard, except what its running executions hold until they end."""
        for band, weight in enumerate(shard.held):
            self.waiting.add(band, -weight)
            shard.held[band] = 0
            self.heavy.discard((band, shard.number))

    def may_have(self, shard: Shard, band: int) -> bool:
        """Whether a paused cell may fetch another request: its band has room again, the cell holds nothing, or what it holds
        can only leave after others come back that an earlier owner had open (Shard.unsettled_cells).
        """
        return not shard.held[band] or self.waiting.roomy(band) or bool(shard.known_to[band] and not shard.claims)

    # --- Claims ---

    def picked(self, claim: Claim) -> None:
        """Reserve memory for a task that will run: its parameters, and a result as large as is expected of its type."""
        record = claim.record
        # For a child the worker only packs the bytes; the decoded values exist in the child alone.
        opened = 2 * len(record.value) if claim.kind is HandlerKind.PROCESS and record.opened else record.opened
        self.hold(claim, opened + self.expected.get(claim.task_type, 0))

    def hold(self, claim: Claim, weight: int) -> None:
        """Set what the claim holds besides its record."""
        more = weight - claim.load
        if more:
            claim.load = weight
            self.active.add(claim.band, more)

    def ended(self, claim: Claim, result: bytes | None) -> None:
        """Its execution has ended: release its parameters and update the expected result size of its type."""
        if claim.load:
            self.hold(claim, 0)
        size, task_type = len(result) if result is not None else 0, claim.task_type
        if size <= TEXT_FREE and task_type not in self.expected:
            return
        known = self.expected.get(task_type, 0)
        expected = max(size, known - known // DECAY - 1)
        if expected > TEXT_FREE:
            self.expected[task_type] = expected
        else:
            self.expected.pop(task_type, None)

    def owes(self, claim: Claim, final: End) -> None:
        """The claim owes its end: hold the result, or the texts of a failure."""
        result = final.result
        if final.error is None and not claim.load and (result is None or len(result) <= TEXT_FREE):
            return
        weight = end_weight(final)
        if weight or claim.load:
            self.hold(claim, weight)

    def replaced(self, claim: Claim, before: Owed | None, after: Owed | None) -> None:
        """The text that the claim owes (progress, or why it runs again) was replaced."""
        more = text_weight(after) - text_weight(before)
        if more:
            self.hold(claim, max(0, claim.load + more))

    def gone(self, claim: Claim) -> None:
        """Its end is committed."""
        if claim.load:
            self.hold(claim, 0)
        # The same as `released`, inlined because it runs for every task.
        band, weight, waiting = claim.band, claim.record.weight, self.waiting
        claim.owner_shard.held[band] -= weight
        waiting.used[band] -= weight
        waiting.total -= weight

    def closed(self) -> tuple[int, ...]:
        """Bands in which no further task may start."""
        active = self.active
        if active.total < active.safe:
            return ()
        return tuple(band for band in range(len(active.used)) if active.full(band))
