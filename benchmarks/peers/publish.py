"""The tables of `throughput --peers` as Markdown, and their place in README.md and docs/performance.md.

Both pages keep them between two comments. `--write` puts the figures of its own run there, and nothing else is edited by hand
between those comments; who is ahead, and why, stands below them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.catalogue import OURS, RAW
from benchmarks.peers.report import (
    LIMITED,
    NOTHING,
    Median,
    Row,
    Spread,
    fastest,
    jobs_of,
    measured_by,
    median,
    order,
    times,
)
from benchmarks.stand import ROOT, Failed

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
TITLES = {
    "noop": "no-op",
    "sleep_5ms": "waits 5 ms",
    "cpu_1ms": "1 ms of CPU",
    "payload_20k": "20 KB",
    "mixed": "mixed",
    "sleep_1ms": "waits 1 ms",
}
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"


def page(found: Mapping[str, Any]) -> str:
    """For docs/performance.md: every system with its guarantee, streamtask beside the raw loop, who is ahead, who measured.

    found  what `drive.measure` returned, with machine, versions and commit
    """
    rows = [Row(**row) for row in found["rows"]]
    jobs = jobs_of(rows)
    by = {row.peer: row for row in rows}
    lines = [
        f"| × streamtask, tasks a second | guarantee | {' | '.join(TITLES[job] for job in jobs)} |",
        "|---" * (2 + len(jobs)) + "|",
    ]
    for peer in order(rows):
        title = f"**{by[peer].title}**" if peer == OURS else by[peer].title
        cells = [_cell(peer, median(rows, peer, job)) for job in jobs]
        lines.append(f"| {title} | {by[peer].guarantee} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", _beside_raw(rows, jobs), "", _ahead(rows, jobs), "", _said(found), measured_by(found)]
    )


def brief(found: Mapping[str, Any]) -> str:
    """For README.md: a line for each job."""
    rows = [Row(**row) for row in found["rows"]]
    lines = []
    for job in jobs_of(rows):
        ours = median(rows, OURS, job)
        if ours is None:
            continue
        beside = f", {_ratio(ours.raw)} of a raw loop" if ours.raw else ""
        others = [(name, one) for name, one in fastest(rows, job) if name not in (OURS, RAW)]
        titles = {row.peer: row.title for row in rows}
        best = f"; the fastest other, {titles[others[0][0]]}: {_ratio(others[0][1].streamtask)} ×" if others else ""
        lines.append(f"- {TITLES[job]}: **{_per_s(ours.spread)}** tasks a second{beside}{best}")
    return "\n".join(lines)


def write(found: Mapping[str, Any]) -> None:
    """Put the tables into both pages. Raises Failed when a page has no place for them."""
    texts = {README: brief(found), PERFORMANCE: page(found)}
    pages = {path: replaced(path, text) for path, text in texts.items()}  # both, before one of them is written
    for path, text in pages.items():
        path.write_text(text)


def replaced(path: Path, text: str) -> str:
    """The page with this text between its two comments. Raises Failed."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failed(f"{path} has no lines {BEGIN} and {END} for the figures.")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _cell(peer: str, found: Median | None) -> str:
    """The ratio with its range, then the median of tasks a second; of streamtask itself these with their range."""
    if found is None:
        return NOTHING
    if peer == OURS:
        return f"**{_per_s(found.spread)}**"
    return f"{_ratio(found.streamtask)}; {found.per_s:,}"


def _ratio(found: Spread | None) -> str:
    if found is None:
        return NOTHING
    low, high = times(found.low), times(found.high)
    return times(found.median) if low == high else f"{times(found.median)} ({low}–{high})"


def _per_s(found: Spread) -> str:
    middle = f"{round(found.median):,}"
    return middle if found.low == found.high else f"{middle} ({round(found.low):,}–{round(found.high):,})"


def _beside_raw(rows: Sequence[Row], jobs: Sequence[str]) -> str:
    held = [(job, one.raw) for job in jobs if job in LIMITED and (one := median(rows, OURS, job)) and one.raw]
    return f"streamtask ÷ raw loop: {', '.join(f'{TITLES[job]} {_ratio(ratio)}' for job, ratio in held) or NOTHING}."


def _ahead(rows: Sequence[Row], jobs: Sequence[str]) -> str:
    """Which other systems did more than streamtask, job by job."""
    titles = {row.peer: row.title for row in rows}
    lines = []
    for job in jobs:
        names = [
            f"{titles[name]} {times(one.ratio_streamtask)}"
            for name, one in fastest(rows, job)
            if name not in (OURS, RAW) and (one.ratio_streamtask or 0) > 1
        ]
        lines.append(f"- {TITLES[job]}: {', '.join(names) or 'none'}.")
    return "\n".join(["Ahead of streamtask:", "", *lines])


def _said(found: Mapping[str, Any]) -> str:
    rounds = found.get("rounds", 1)
    told = "Medians (and ranges) of" if rounds > 1 else "Of"
    return f"{told} {rounds} {'rounds' if rounds > 1 else 'round'}, each ratio within its round."
