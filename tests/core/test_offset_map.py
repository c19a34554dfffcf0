"""The text of a ledger: what it says, what it costs at worst, and what is not believed."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtask.core import offset_map
from streamtask.core.offset_map import (
    ATTEMPT_MAX,
    ENTRY_CHARS_MAX,
    FAILED_MAX,
    HEAD_MAX,
    LEAD_TEXT_MAX,
    LOST_MAX,
    OWNER_MAX,
    TEXT_MAX,
    TRIAL_MAX,
    Entry,
    Head,
    LedgerUnreadable,
    Mark,
    OffsetMap,
    UnknownVersion,
    caps,
    decode,
    encode,
    entry_of,
    head_of,
    number,
    tag_version,
    text_worst,
)

WORST = Entry(ATTEMPT_MAX, FAILED_MAX, LOST_MAX, Mark.TRIAL, TRIAL_MAX)
HEAD = Head("tasks.workers.0.k3v9", 412, 1_764_000_000_123, "open")
RECORD = Path(__file__).parents[2] / "docs" / "decisions" / "0002-ledger-text.md"


def map_of(position: int, text: str, entries: dict[int, Entry] | None = None, created: int = 0) -> OffsetMap:
    """`o` is open, `.` is done, from the position on."""
    state = OffsetMap(position)
    for offset, sign in enumerate(text, position):
        state.append(offset)
        if sign == ".":
            state.finish(offset)
    state.entries = dict(entries or {})
    state.created = max(created, position)
    return state


def example() -> OffsetMap:
    """The worked example of the decision record."""
    entries = {
        100: Entry(attempt=1, mark=Mark.RUNNING),
        107: Entry(attempt=2, failed=1),
        111: Entry(attempt=40, lost=2),
    }
    return map_of(100, "oo...o.ooooooo", entries, created=112)


def test_the_worked_example_of_the_decision_record_is_true() -> None:
    text = encode(example(), HEAD)
    assert text == "st1|M|FAA|RBxDCByFoBC|open|412|1764000000123|tasks.workers.0.k3v9"
    assert f"`{text}`" in RECORD.read_text(encoding="utf-8")
    read = decode(text, 100, log_start=0, log_end=200)
    assert read is not None
    state, head = read
    assert head == HEAD
    assert (state.position, state.created, state.entries) == (100, 112, example().entries)
    assert [offset for offset in range(100, 112) if not state.is_open(offset)] == [102, 103, 104, 106]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (OffsetMap(0), "st1|A||"),
        (OffsetMap(2**62), "st1|A||"),
        (map_of(5, "ooo", created=6), "st1|B||"),
        (map_of(5, "o."), "st1|A|A|"),
        (map_of(5, "oo.."), "st1|A|DA|"),
        (map_of(5, "ooo", {5: Entry(attempt=1, mark=1)}, created=8), "st1|D||RB"),
        (map_of(5, "ooo", {7: Entry(attempt=1, mark=1)}, created=8), "st1|D||xRB"),
        (map_of(5, "ooo", {5: Entry(attempt=3, lost=2, mark=2, trial=16 + 2)}, created=8), "st1|D||tDCS"),
    ],
)
def test_what_is_not_there_costs_nothing(state: OffsetMap, text: str) -> None:
    assert encode(state) == text


def test_a_thousand_requests_that_wait_for_their_first_start_cost_nothing() -> None:
    assert encode(map_of(7, "o" * 1_000, created=1_007)) == f"st1|{number(1_000)}||"


def entries_of() -> st.SearchStrategy[Entry]:
    return st.builds(
        Entry,
        st.sampled_from([1, 2, 31, 32, 1_023, 1_024, ATTEMPT_MAX]),
        st.sampled_from([0, 1, 32, FAILED_MAX]),
        st.sampled_from([0, 2, LOST_MAX]),
        st.sampled_from([Mark.NONE, Mark.RUNNING, Mark.TRIAL]),
        st.sampled_from([0, 1, TRIAL_MAX]),
    )


@st.composite
def maps(draw: st.DrawFn) -> OffsetMap:
    position = draw(st.one_of(st.integers(0, 5), st.integers(0, 2**62)))
    runs = draw(
        st.lists(
            st.tuples(st.integers(1, 40), st.one_of(st.integers(1, 40), st.integers(1, 2**50))), min_size=1, max_size=30
        )
    )
    state = OffsetMap(position)
    at = position
    for length, done in runs:
        for offset in range(at, at + length):
            state.append(offset)
        at += length + done
    if draw(st.booleans()):
        state.end = at  # done to the end
    state.created = draw(st.sampled_from([position, *state.offsets(0, 2**63), state.end]))
    for offset in draw(st.sets(st.sampled_from(state.offsets(0, 2**63)), max_size=60)):
        state.entries[offset] = draw(entries_of())
    return state


@given(maps(), st.booleans())
def test_a_text_says_all_that_was_known(state: OffsetMap, lead: bool) -> None:
    text = encode(state, HEAD if lead else None)
    assert text.isascii()
    read = decode(text, state.position, log_start=0, log_end=state.end)
    assert read is not None
    back, head = read
    assert head == (HEAD if lead else None)
    assert head_of(text) == head
    assert back.created == state.created
    assert back.entries == state.entries
    assert back.end <= state.end
    known = state.offsets(0, back.end)
    assert back.offsets(0, 2**63) == known  # and every open one beyond is a request that nothing was said about
    assert all(offset >= state.created and offset not in state.entries for offset in state.offsets(back.end, 2**63))
    assert back.count == len(known)
    assert encode(back, head) == text


@given(maps())
def test_whatever_ends_the_runs_stay_sorted_and_apart(state: OffsetMap) -> None:
    offsets = state.offsets(0, 2**63)
    for offset in sorted(offsets, key=lambda value: (value * 7_919) % 1_009):
        assert state.finish(offset)
        assert not state.finish(offset)
        edges = [edge for run in zip(state.starts, state.ends, strict=True) for edge in run]
        assert edges == sorted(set(edges))
        offsets.remove(offset)
        assert state.offsets(0, 2**63) == offsets
        assert state.count == len(offsets)
        assert state.position == min(offsets, default=state.end)


# --- The bound ---


def worst_map(count: int, span: int) -> OffsetMap:
    """`count` open requests with every counter at its largest, and as many digits in the runs as `span` pays for."""
    gaps = [1] * count
    left = span - 2 * count
    for digits in range(1, 13):
        need = 32**digits // 2 + 1
        for at in range(count):
            if left >= need - gaps[at]:
                left -= need - gaps[at]
                gaps[at] = need
    state = OffsetMap(0)
    at = 0
    for gap in gaps:
        state.append(at)
        state.entries[at] = WORST
        at += 1 + gap
    state.end = at
    state.created = at
    return state


@pytest.mark.parametrize("text_max", [TEXT_MAX, LEAD_TEXT_MAX, 400])
@pytest.mark.parametrize("bits", [10, 14, 17, 20, 24, 30, 40, 60])
def test_a_full_ledger_fits_at_its_worst(text_max: int, bits: int) -> None:
    count = caps(text_max)[bits]
    state = worst_map(count, (1 << bits) - 1)
    assert state.end <= max(1 << bits, 2 * count)
    assert len(encode(state)) <= text_max
    assert len(encode(state)) > text_max - 150 or text_max == 400, "the cap gives room away"


def test_between_320_and_400_requests_of_a_cell_may_be_open() -> None:
    assert caps(TEXT_MAX)[20] == 355
    assert caps(LEAD_TEXT_MAX)[20] == 336
    assert min(caps(TEXT_MAX)) > 190, "whatever the span, work goes on"


def test_the_bound_is_the_greatest_sum_of_digits() -> None:
    """Against every way to spread a small span over a few runs."""

    def spread(count: int, span: int) -> int:
        if count == 1:
            return len(number(2 * span + 1))
        return max(len(number(2 * first + 1)) + spread(count - 1, span - first) for first in range(span + 1))

    for count, span in [(1, 15), (1, 16), (1, 600), (2, 40), (3, 60), (2, 530), (4, 33)]:
        rest = 4 + 13 + 2 + 13 + count * ENTRY_CHARS_MAX
        assert text_worst(count, span) == rest + spread(count, span), (count, span)


@given(maps())
def test_no_text_is_longer_than_the_bound_says(state: OffsetMap) -> None:
    assert len(encode(state)) <= text_worst(state.count, state.end - state.position)


@given(maps(), st.data())
def test_the_bound_only_falls_as_requests_end(state: OffsetMap, data: st.DataObject) -> None:
    bound = text_worst(state.count, state.end - state.position)
    for offset in data.draw(st.permutations(state.offsets(0, 2**63)))[:40]:
        state.finish(offset)
        after = text_worst(state.count, state.end - state.position)
        assert len(encode(state)) <= after <= bound
        bound = after


def test_no_entry_is_longer_than_reserved() -> None:
    assert len(WORST.code) == ENTRY_CHARS_MAX
    assert entry_of(1, 10**9, 10**9, Mark.NONE, 10**9) == Entry(1, FAILED_MAX, LOST_MAX, Mark.NONE, TRIAL_MAX)


def test_the_longest_head_fits_beside_a_full_map() -> None:
    head = Head("x" * OWNER_MAX, 10**19 - 1, 10**19 - 1, "recovering")
    assert len(f"|{head}") == HEAD_MAX
    text = encode(worst_map(caps(LEAD_TEXT_MAX)[20], (1 << 20) - 1), head)
    assert len(text) <= TEXT_MAX
    assert head_of(text) == head


# --- What is not believed ---


@pytest.mark.parametrize(
    "text", [None, "", "hello", "st", "st1", "stx|A||", "ST1|A||", " st1|A||", "st1234567890|A||", "{}"]
)
def test_words_of_somebody_else_are_not_ours(text: str | None) -> None:
    assert tag_version(text) is None
    assert head_of(text) is None
    assert decode(text, 5, log_start=0, log_end=10) is None


@pytest.mark.parametrize("text", ["st0|A||", "st2|A||", "st2|", "st17|something else entirely"])
def test_a_version_of_another_release_is_told_apart(text: str) -> None:
    with pytest.raises(UnknownVersion, match=r"version \d+"):
        decode(text, 5, log_start=0, log_end=10)
    with pytest.raises(UnknownVersion):
        head_of(text)
    assert tag_version(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "st1|",
        "st1|A|",
        "st1|A|||",
        "st1|||",
        "st1|AA||",
        "st1|g||",  # a number that goes on
        "st1|gA||",  # not the shortest spelling
        "st1|L||",  # created 11 beyond 5, the log ends at 10
        "st1|A|K|",  # done up to 11
        "st1|A|DE|",  # a run of 6 open ones, then the log is over
        "st1|A|D|",
        "st1|A|!|",
        "st1|A||A",  # an entry without anything
        "st1|A||R",
        "st1|A||RA",  # an attempt of zero
        "st1|A||RBRBRBRBRBRB",  # six requests from 5 on; the log ends at 10
        "st1|A||5RB",
        "st1|A||w",  # unstarted ones at the end
        "st1|A||xxRB",
        "st1|A||Bgggggggggggggg",
        "st1|A||B____",  # attempt of four digits
        "st1|A||RB|open|1|2",
        "st1|A||RB|open|1|2|",
        "st1|A||RB|open|1|2|me|too",
        "st1|A||RB|shut|1|2|me",
        "st1|A||RB|open|-1|2|me",
        "st1|A||RB|open|01|2|me",
        "st1|A||RB|open|1|" + "9" * 20 + "|me",
        "st1|A||RB|open|1|٣|me",
        "st1|A||RB|open|1|2|" + "x" * (OWNER_MAX + 1),
        "st1|A||RB|open|1|2|é",
        "st1|A|" + "A" * TEXT_MAX + "|",
    ],
)
def test_an_implausible_text_never_skips_work(text: str) -> None:
    with pytest.raises(LedgerUnreadable):
        decode(text, 5, log_start=0, log_end=10)


def test_a_text_from_before_the_log_was_cut_is_not_believed() -> None:
    text = encode(map_of(5, "o.o..."))
    assert decode(text, 5, log_start=0, log_end=11) is not None
    for log_end in range(11):
        with pytest.raises(LedgerUnreadable):
            decode(text, 5, log_start=0, log_end=log_end)


@settings(max_examples=300)
@given(st.text(alphabet=offset_map._ALPHABET + "|!é", max_size=40), st.booleans())
def test_whatever_stands_behind_the_tag_is_read_or_refused(rest: str, lead: bool) -> None:
    try:
        read = decode(f"st1|{rest}" + ("|open|1|2|me" if lead else ""), 1_000, log_start=0, log_end=2_000)
    except LedgerUnreadable:
        return
    assert read is not None
    assert 1_000 <= read[0].end <= 2_000


def test_a_huge_run_is_refused_before_it_is_walked() -> None:
    started = time.thread_time()  # what it takes, not how long it waits for a busy machine
    for text in ("st1|A|" + "_" * 12 + "B|", "st1|A||" + "4" + "_" * 12 + "BRB", "st1|" + "_" * 12 + "B||"):
        with pytest.raises(LedgerUnreadable):
            decode(text, 0, log_start=0, log_end=10**9)
    assert time.thread_time() - started < 0.5


def test_the_decision_record_names_this_version() -> None:
    assert re.search(rf"^# 0002: .*text format {offset_map.VERSION}$", RECORD.read_text(encoding="utf-8"), re.MULTILINE)
