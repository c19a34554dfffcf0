"""What one request partition remembers, and its text in the offset metadata (text format 1).

The map records which offsets from the position on are open, which are done, how far CREATED is published, and the counters
of every started request. The position is the lowest open offset, and it is the offset that is committed; the text is
committed with it and means nothing without it.

    st1|<created>|<runs>|<entries>                                             every cell
    st1|<created>|<runs>|<entries>|<state>|<sequence>|<clock_ms>|<owner>       the lead cell, which carries the head

number    base-32 digits, lowest first, in the base64url alphabet A-Z a-z 0-9 - _; +32 on every digit but the last
created   number: (highest offset whose CREATED is published) + 1 - position
runs      the position is open; from there open and done runs alternate up to the last done offset. Each pair of an
          open run of length o and the done run of length d after it is number((d - 1) * 2 + (o > 1)), then
          number(o - 2) if o > 1. Everything after the last pair is open.
entries   over the open requests in order of offset. A started one: one flag character, mark * 16 + 1 if attempt
          follows + 2 if failed + 4 if lost + 8 if trial, and these as numbers (zeroes cost nothing). n > 0 requests
          that are not started: the character 48 + (n - 1) % 8, + 8 if number((n - 1) // 8) follows. Requests after
          the last entry are not started.
state     open | clean | recovering; sequence and clock_ms decimal; owner the transactional id

Always true: starts and ends are sorted, disjoint and never touch (two runs that touch are one); every entry is open;
encoding a text that was read gives the same characters, otherwise the text is unreadable. An unreadable text never
skips work: the caller recovers from tasks.status. Decision record: docs/decisions/0002-ledger-text.md.
Idea: parallel-consumer, OffsetEncoding; the bound over every order of completion (`cap`) is ours.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Literal

from streamtask.errors import StreamtaskError

VERSION: Final = 1
TEXT_MAX: Final = 4_000  # the broker accepts 4,095 characters; one more aborts every later transaction
OWNER_MAX: Final = 160  # prefix 60, ".workers", slot, random
HEAD_MAX: Final = 1 + len("recovering") + 1 + 19 + 1 + 19 + 1 + OWNER_MAX
LEAD_TEXT_MAX: Final = TEXT_MAX - HEAD_MAX  # budget for the map of the lead cell

ATTEMPT_MAX: Final = 32_767  # 3 digits
FAILED_MAX: Final = 1_023  # 2 digits; saturates
LOST_MAX: Final = 31  # 1 digit; saturates
TRIAL_MAX: Final = 31  # 1 digit; saturates
ENTRY_CHARS_MAX: Final = 1 + 3 + 2 + 1 + 1
OFFSET_CHARS_MAX: Final = 13  # an offset has 63 bits

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_VALUES: Final = {character: value for value, character in enumerate(_ALPHABET)}
_TAG: Final = re.compile(r"st(\d{1,9})\|")
_UNSTARTED: Final = 48  # flag characters from here on count requests that have not started
_ENTRIES_KEPT: Final = 4_096


class LedgerUnreadable(StreamtaskError):
    """A text with our tag that cannot be correct: the caller recovers from tasks.status."""


class UnknownVersion(StreamtaskError):
    """A text written by another release. Its shard is not claimed, so the text is neither misread nor overwritten."""

    def __init__(self, version: int) -> None:
        super().__init__(f"ledger text version {version}; this release reads {sorted(_READERS)}")
        self.version = version


class Mark:
    """What an execution in progress means if its worker dies."""

    NONE: Final = 0
    RUNNING: Final = 1
    TRIAL: Final = 2


HeadState = Literal["open", "clean", "recovering"]
_HEAD_STATES: Final[dict[str, HeadState]] = {"open": "open", "clean": "clean", "recovering": "recovering"}


@dataclass(frozen=True, slots=True)
class Head:
    """The owner of the shard. Written on the lead cell only.

    owner     transactional id
    sequence  rises by one with every claim and every batch of this owner
    clock_ms  highest updated_at written for the shard
    state     open: its marks are charged if the owner is gone; clean: handed over; recovering: open, and tasks.status
              has not been read to its end yet
    """

    owner: str
    sequence: int
    clock_ms: int
    state: HeadState

    def __str__(self) -> str:
        return f"{self.state}|{self.sequence}|{self.clock_ms}|{self.owner}"


@dataclass(frozen=True, slots=True)
class Entry:
    """Counters of a started request. A value: a change makes another one (`entry_of`).

    attempt  executions granted
    failed   how many of them ended with a handler error or a timeout
    lost     deaths of a process charged to it
    mark     see Mark
    trial    how narrow its next or present trial is, and how long (core/suspects.py)
    """

    attempt: int = 0
    failed: int = 0
    lost: int = 0
    mark: int = Mark.NONE
    trial: int = 0
    code: str = field(init=False, compare=False, repr=False, default="")

    def __post_init__(self) -> None:
        assert 0 <= self.attempt <= ATTEMPT_MAX, f"attempt {self.attempt} does not fit the ledger"
        assert 0 <= self.failed <= FAILED_MAX, f"failed {self.failed} does not fit the ledger"
        assert 0 <= self.lost <= LOST_MAX, f"lost {self.lost} does not fit the ledger"
        assert 0 <= self.trial <= TRIAL_MAX, f"trial {self.trial} does not fit the ledger"
        counters = (self.attempt, self.failed, self.lost, self.trial)
        flag = self.mark * 16 + sum(1 << bit for bit, value in enumerate(counters) if value)
        assert flag < _UNSTARTED, f"mark {self.mark}"
        object.__setattr__(self, "code", _ALPHABET[flag] + "".join(number(value) for value in counters if value))


NOTHING: Final = Entry()
_entries: dict[tuple[int, int, int, int, int], Entry] = {}


def entry_of(attempt: int, failed: int, lost: int, mark: int, trial: int) -> Entry:
    """The entry with these counters. Entries are shared: most requests of a busy worker are (1, 0, 0, RUNNING, 0)."""
    key = (attempt, failed, lost, mark, trial)
    entry = _entries.get(key)
    if entry is None:
        if len(_entries) >= _ENTRIES_KEPT:
            _entries.clear()
        entry = _entries[key] = Entry(
            attempt, min(failed, FAILED_MAX), min(lost, LOST_MAX), mark, min(trial, TRIAL_MAX)
        )
    return entry


def _digits(value: int) -> str:
    assert value >= 0, f"{value} is no length"
    out = ""
    while value > 31:
        out += _ALPHABET[32 | value & 31]
        value >>= 5
    return out + _ALPHABET[value]


_SMALL: Final = tuple(map(_digits, range(1_024)))


def number(value: int) -> str:
    """Encode `value` >= 0 in base 32, lowest digit first."""
    return _SMALL[value] if 0 <= value < 1_024 else _digits(value)


def _skip(count: int) -> str:
    more, rest = divmod(count - 1, 8)
    return _ALPHABET[_UNSTARTED + 8 + rest] + number(more) if more else _ALPHABET[_UNSTARTED + rest]


class OffsetMap:
    """Open runs [starts[i], ends[i]) below `end`; everything else below `end` is done.

    created  offsets below it have their CREATED published
    entries  {open offset: Entry} of those that were started
    count    open offsets
    """

    __slots__ = ("count", "created", "end", "ends", "entries", "starts")

    def __init__(self, position: int) -> None:
        assert position >= 0, f"position {position}"
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.end = position
        self.created = position
        self.entries: dict[int, Entry] = {}
        self.count = 0

    def __repr__(self) -> str:
        runs = list(zip(self.starts, self.ends, strict=True))
        return f"OffsetMap(open={runs}, end={self.end}, created={self.created}, entries={self.entries})"

    @property
    def position(self) -> int:
        """The lowest open offset; all below are done."""
        return self.starts[0] if self.starts else self.end

    def copy(self) -> OffsetMap:
        twin = OffsetMap.__new__(OffsetMap)
        twin.starts = self.starts.copy()
        twin.ends = self.ends.copy()
        twin.end = self.end
        twin.created = self.created
        twin.entries = self.entries.copy()
        twin.count = self.count
        return twin

    def is_open(self, offset: int) -> bool:
        at = bisect_right(self.starts, offset) - 1
        return at >= 0 and offset < self.ends[at]

    def append(self, offset: int) -> None:
        """Open `offset` >= end; offsets between are done."""
        assert offset >= self.end, f"{offset} is below the end {self.end}"
        ends = self.ends
        if ends and ends[-1] == offset:
            ends[-1] = offset + 1
        else:
            self.starts.append(offset)
            ends.append(offset + 1)
        self.end = offset + 1
        self.count += 1

    def finish(self, offset: int) -> bool:
        """Make an open offset done. False when it is not open."""
        starts, ends = self.starts, self.ends
        at = bisect_right(starts, offset) - 1
        if at < 0 or offset >= ends[at]:
            return False
        if offset == starts[at]:
            if offset + 1 == ends[at]:
                del starts[at], ends[at]
            else:
                starts[at] = offset + 1
        elif offset + 1 == ends[at]:
            ends[at] = offset
        else:
            starts.insert(at + 1, offset + 1)
            ends.insert(at, offset)
        self.count -= 1
        self.entries.pop(offset, None)
        return True

    def offsets(self, start: int, end: int) -> list[int]:
        """The open offsets in [start, end), ascending."""
        out: list[int] = []
        for low, high in zip(self.starts, self.ends, strict=True):
            out.extend(range(max(low, start), min(high, end)))
        return out


# --- Write ------------------------------------------------------------------------------------------------------------


def encode(state: OffsetMap, head: Head | None = None) -> str:
    """The text of `state`. It fits as long as the caller respected cap(); a longer text is a broken invariant."""
    text = f"st{VERSION}|{number(max(state.created - state.position, 0))}|{_runs(state)}|{_codes(state)}"
    assert len(text) <= TEXT_MAX, f"a ledger of {len(text)} characters for {state.count} open requests"
    return text if head is None else with_head(text, head)


def with_head(text: str, head: Head) -> str:
    """The text of a lead cell: the text of its map, followed by the head."""
    assert _is_owner(head.owner), f"{head.owner!r} cannot be written as an owner"
    text = f"{text}|{head}"
    assert len(text) <= TEXT_MAX, f"{len(text)} characters: the map left no room for the head"
    return text


def _is_owner(text: str) -> bool:
    return 0 < len(text) <= OWNER_MAX and text.isascii() and "|" not in text


def _runs(state: OffsetMap) -> str:
    starts, ends = state.starts, state.ends
    if not starts:
        return ""
    out: list[str] = []
    small = _SMALL  # number() inlined: this is the inner loop of every commit
    for low, high, following in zip(starts, ends, [*starts[1:], state.end], strict=True):
        done = following - high
        if not done:  # only the last run can end where the map ends
            break
        if high - low == 1:
            out.append(small[done * 2 - 2] if done <= 512 else _digits(done * 2 - 2))
        else:
            out.append(number(done * 2 - 1))
            out.append(number(high - low - 2))
    return "".join(out)


def _codes(state: OffsetMap) -> str:
    entries = state.entries
    if not entries:
        return ""
    starts, ends = state.starts, state.ends
    offsets = sorted(entries)
    assert offsets[-1] < ends[-1], f"entry of {offsets[-1]}, which is not open"
    run = bisect_right(starts, offsets[-1]) - 1
    if sum(ends[:run]) - sum(starts[:run]) + offsets[-1] - starts[run] == len(offsets) - 1:
        return "".join([entries[offset].code for offset in offsets])  # every request up to the last entry has started
    out: list[str] = []
    run = index = 0  # index: the open request to describe next
    high, shift = ends[0], -starts[0]  # of this run: its end, and offset + shift = index of the open request
    for offset in offsets:
        while offset >= high:
            run += 1
            shift -= starts[run] - high
            high = ends[run]
        at = offset + shift
        if at != index:
            out.append(_skip(at - index))
        out.append(entries[offset].code)
        index = at + 1
    return "".join(out)


# --- The bound --------------------------------------------------------------------------------------------------------


def text_worst(count: int, span: int) -> int:
    """Longest text without head that `count` open requests can ever have, whatever is done among the `span` offsets
    from the position on and whatever their counters become, plus room for one offset beyond any span.

    Every request may be a run of its own (an open run of o > 1 costs at most o - 1 characters more than a single
    one: never more than o runs), with a done run of d after it. A digit more for a run costs 16, then 496, then 15,872
    done offsets, ...: ever more, so the worst case buys the cheapest digits first.
    """
    total = len("st1|") + OFFSET_CHARS_MAX + len("||") + OFFSET_CHARS_MAX + count * (1 + ENTRY_CHARS_MAX)
    have = 0
    for digits in range(1, OFFSET_CHARS_MAX):
        need = 32**digits // 2
        bought = min(count, span // (need - have))
        total += bought
        span -= bought * (need - have)
        have = need
        if bought < count:
            break
    return total


@cache
def caps(text_max: int) -> tuple[int, ...]:
    """caps[b] = how many requests may be open while the span is below 2**b: 355 for 4,000 characters and b = 20."""
    table = []
    count = max(1, text_max // (1 + ENTRY_CHARS_MAX))
    for bits in range(65):  # downwards: a longer span never leaves room for more (upwards: 0.2 s of a worker's start)
        while count > 1 and text_worst(count, (1 << bits) - 1) > text_max:
            count -= 1
        table.append(count)
    return tuple(table)


# --- Read -------------------------------------------------------------------------------------------------------------


def tag_version(text: str | None) -> int | None:
    """The version in our tag, whatever follows. None: the text is not ours (nothing committed, or another program's)."""
    found = _TAG.match(text) if text else None
    return int(found[1]) if found else None


def head_of(text: str | None) -> Head | None:
    """The head in the text of a lead cell, or None if it has none. Raises UnknownVersion, LedgerUnreadable."""
    parts = _parts(text)
    return None if parts is None else _head(parts)


def decode(text: str | None, offset: int, *, log_start: int, log_end: int) -> tuple[OffsetMap, Head | None] | None:
    """Read the text that was committed with `offset`. None: the text is not ours.

    log_start, log_end  bounds of the log, read after the offset was. A position below log_start is left to the caller
                        (Ledger.skip_to). Nothing may stand at or beyond log_end: new records will stand there, and
                        taking one of them as done would lose it.

    An offset beyond log_end is unreadable too, so check that first. Raises UnknownVersion, LedgerUnreadable.
    """
    assert 0 <= log_start <= log_end, f"log {log_start}..{log_end}"
    parts = _parts(text)
    if parts is None or text is None:
        return None
    head = _head(parts)
    state = _READERS[int(parts[0][2:])](parts, offset, log_end)
    if state.position != offset or state.end > log_end:
        raise LedgerUnreadable(f"{text!r} at {offset} reaches {state.end}; the log ends at {log_end}")
    if encode(state, head) != text:
        raise LedgerUnreadable(f"{text!r} at {offset} is no text that this release writes")
    return state, head


def _parts(text: str | None) -> list[str] | None:
    version = tag_version(text)
    if version is None or text is None:
        return None
    if version not in _READERS:
        raise UnknownVersion(version)
    parts = text.split("|")
    if len(parts) not in (4, 8) or len(text) > TEXT_MAX:
        raise LedgerUnreadable(f"{text!r} has {len(parts)} fields")
    return parts


def _head(parts: list[str]) -> Head | None:
    if len(parts) == 4:
        return None
    state, sequence, clock_ms, owner = parts[4:]
    if state not in _HEAD_STATES or not (_is_decimal(sequence) and _is_decimal(clock_ms) and _is_owner(owner)):
        raise LedgerUnreadable(f"head {parts[4:]}")
    return Head(owner, int(sequence), int(clock_ms), _HEAD_STATES[state])


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19


class _Reader:
    """Takes numbers off the front of one field."""

    __slots__ = ("at", "values")

    def __init__(self, text: str) -> None:
        try:
            self.values = [_VALUES[character] for character in text]
        except KeyError as unknown:
            raise LedgerUnreadable(f"{unknown} is no digit") from None
        self.at = 0

    def more(self) -> bool:
        return self.at < len(self.values)

    def character(self) -> int:
        if self.at >= len(self.values):
            raise LedgerUnreadable("a field ends in the middle of a number")
        self.at += 1
        return self.values[self.at - 1]

    def number(self) -> int:
        value = shift = 0
        while True:
            digit = self.character()
            value |= (digit & 31) << shift
            if digit < 32:
                return value
            shift += 5
            if shift >= 5 * OFFSET_CHARS_MAX:
                raise LedgerUnreadable("a number has more digits than an offset")


def _read_1(parts: list[str], offset: int, log_end: int) -> OffsetMap:
    state = OffsetMap(offset)
    created = _Reader(parts[1])
    state.created = offset + created.number()
    runs = _Reader(parts[2])
    at = offset
    while runs.more():
        pair = runs.number()
        high = at + (runs.number() + 2 if pair & 1 else 1)
        state.starts.append(at)
        state.ends.append(high)
        state.count += high - at
        at = high + (pair >> 1) + 1
        if at > log_end:  # checked at every step, so an implausible run is never walked
            raise LedgerUnreadable(f"a run reaches {at}; the log ends at {log_end}")
    counters, last = _read_entries(_Reader(parts[3]), state, at)
    state.end = max(at, state.created, last + 1)
    if created.more() or state.end > log_end:
        raise LedgerUnreadable(f"{parts} at {offset} reaches {state.end}; the log ends at {log_end}")
    if state.end > at:
        state.starts.append(at)
        state.ends.append(state.end)
        state.count += state.end - at
    state.entries = counters
    return state


def _read_entries(codes: _Reader, state: OffsetMap, tail: int) -> tuple[dict[int, Entry], int]:
    """Return the entries, and the offset of the last one. The open requests are those of the runs, then all from `tail` on."""
    entries: dict[int, Entry] = {}
    index = run = before = 0
    offset = -1
    while codes.more():
        flag = codes.character()
        if flag >= _UNSTARTED:
            index += (flag & 7) + 1 + (8 * codes.number() if flag & 8 else 0)
            continue
        if not flag:
            raise LedgerUnreadable("an entry without anything in it")
        values = [codes.number() if flag & bit else 0 for bit in (1, 2, 4, 8)]
        attempt, failed, lost, trial = values
        if attempt > ATTEMPT_MAX or failed > FAILED_MAX or lost > LOST_MAX or trial > TRIAL_MAX:
            raise LedgerUnreadable(f"counters {values}")
        while run < len(state.starts) and index - before >= state.ends[run] - state.starts[run]:
            before += state.ends[run] - state.starts[run]
            run += 1
        offset = (state.starts[run] if run < len(state.starts) else tail) + index - before
        entries[offset] = entry_of(attempt, failed, lost, flag >> 4, trial)
        index += 1
    return entries, offset


_READERS: Final = {VERSION: _read_1}  # this version and the one before; version 1 has none before it
