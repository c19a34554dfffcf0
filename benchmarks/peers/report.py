"""Rows, ratios, medians, tables and chart of `throughput --peers`: pure, but for the chart that is drawn into a file.

A ratio is taken within its round, then the median of the rounds: the machine is not the same from one round to the next.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.peers.catalogue import JOBS, OURS, RAW
from benchmarks.peers.stores import Ends
from benchmarks.stand import Failed

BAR_WIDTH = 40  # characters of the longest bar
TEXT_WIDTH = 170
NOTHING = "·"
# The raw loop is a limit where tasks do not wait: it does them one after the other.
LIMITED = ("noop", "cpu_1ms", "payload_20k")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One peer and one job in one round."""

    peer: str
    title: str
    guarantee: str
    version: str
    job: str
    configuration: str
    durability: str
    tasks: int
    tasks_per_s: int | None  # None: left out, and `left_out` says why
    ratio_raw: float | None = None  # of the raw loop, for the jobs that are LIMITED
    ratio_streamtask: float | None = None  # of streamtask, the same job
    left_out: str | None = None
    round: int = 1


class Spread(NamedTuple):
    """Of all rounds."""

    median: float
    low: float
    high: float


class Median(NamedTuple):
    """What all rounds of a peer and a job say."""

    per_s: int
    spread: Spread  # of tasks a second
    raw: Spread | None
    streamtask: Spread | None

    @property
    def ratio_raw(self) -> float | None:
        return self.raw.median if self.raw else None

    @property
    def ratio_streamtask(self) -> float | None:
        return self.streamtask.median if self.streamtask else None


def median(rows: Iterable[Row], peer: str, job: str) -> Median | None:
    """Of all rounds in which it was measured; None if it never was."""
    held = [row for row in rows if (row.peer, row.job) == (peer, job) and row.tasks_per_s is not None]
    spread = _spread([row.tasks_per_s for row in held])
    if spread is None:
        return None
    raw, ours = ([getattr(row, name) for row in held] for name in ("ratio_raw", "ratio_streamtask"))
    return Median(round(spread.median), spread, _spread(raw), _spread(ours))


def _spread(values: Iterable[float | None]) -> Spread | None:
    held = [value for value in values if value is not None]
    return Spread(statistics.median(held), min(held), max(held)) if held else None


def rate(ends: Ends, tasks: int, places: int = 1) -> float:
    """Tasks a second behind the first round of all places, until the last stored result.

    places  tasks at once in all processes. A handler that has 500 requests stores 500 results at one moment, and the time in
            which it worked for the first of them is not between the first and the last result: they are not counted

    Raises Failed when it is not exactly one result for each task.
    """
    if (ends.results, len(ends.ends_ms)) != (tasks, tasks):
        raise Failed(
            f"{tasks} tasks should have left {tasks} results, but there are {ends.results}, of {len(ends.ends_ms)} tasks: "
            "nothing was measured." + (f" Its worker said: {ends.trouble}" if ends.trouble else "")
        )
    ordered = sorted(ends.ends_ms)
    began, ended = ordered[max(min(places, tasks // 2), 1) - 1], ordered[-1]
    return sum(end > began for end in ordered) / max(ended - began, 1) * 1_000


def with_ratios(rows: Iterable[Row]) -> list[Row]:
    """The same rows, of one round, with their ratios where there is something to divide by."""
    rows = list(rows)
    base = {(row.peer, row.job): row.tasks_per_s for row in rows}
    return [
        replace(
            row,
            ratio_raw=_ratio(row.tasks_per_s, base.get((RAW, row.job)) if row.job in LIMITED else None),
            ratio_streamtask=_ratio(row.tasks_per_s, base.get((OURS, row.job))),
        )
        for row in rows
    ]


def _ratio(value: int | None, base: int | None) -> float | None:
    return round(value / base, 3) if value is not None and base else None


# --- For people -------------------------------------------------------------------------------------------------------


def text(found: Mapping[str, Any], width: int = TEXT_WIDTH) -> str:
    """Tables, bars and who measured. found: what `drive.measure` returned, with machine, versions and commit."""
    rows = [Row(**row) for row in found["rows"]]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(figures(rows))
    console.print(terms(rows))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join([said, bars(rows), *_left_out(rows), "", measured_by(found)])


def figures(rows: Sequence[Row]) -> Table:
    """Ratios first: of the raw loop for the no-op, then of streamtask for each job, with tasks a second."""
    table = Table(title="× streamtask, and tasks a second: the medians", title_justify="left")
    table.add_column("peer", no_wrap=True)
    table.add_column("noop, × raw", justify="right")
    jobs = jobs_of(rows)
    for job in jobs:
        table.add_column(job, justify="right", no_wrap=True)
    for peer in order(rows):
        noop = median(rows, peer, JOBS[0])
        table.add_row(peer, times(noop and noop.ratio_raw), *(_cell(median(rows, peer, job)) for job in jobs))
    return table


def jobs_of(rows: Iterable[Row]) -> list[str]:
    """Those that were to be measured, in their order."""
    held = {row.job for row in rows}
    return [job for job in JOBS if job in held]


def terms(rows: Sequence[Row]) -> Table:
    """Who each of them is, how it was run, and what its word is worth."""
    by = {row.peer: row for row in rows}
    table = Table(title="How each was run, and what it promises", title_justify="left", show_lines=True)
    table.add_column("peer", no_wrap=True)
    for name in ("version", "configuration", "durability"):
        table.add_column(name)
    for peer in order(rows):
        row = by[peer]
        table.add_row(peer, row.version, row.configuration, row.durability)
    return table


def order(rows: Sequence[Row]) -> list[str]:
    """Peers by their no-ops a second (else by the first job that was measured), the fastest first; who has none last."""
    names = dict.fromkeys(row.peer for row in rows)
    first = next(iter(jobs_of(rows)), JOBS[0])
    return sorted(names, key=lambda name: -_per_s(rows, name, first))


def _per_s(rows: Iterable[Row], peer: str, job: str) -> int:
    found = median(rows, peer, job)
    return found.per_s if found else 0


def _cell(found: Median | None) -> str:
    return f"{times(found.ratio_streamtask)} {found.per_s:>7,}" if found else NOTHING


def times(ratio: float | None) -> str:
    """A ratio in two digits."""
    if ratio is None:
        return NOTHING
    return f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}"


def bars(rows: Sequence[Row], width: int = BAR_WIDTH) -> str:
    """For each job one bar a peer, the longest `width` characters; plain text."""
    lines: list[str] = []
    for job in JOBS:
        held = fastest(rows, job)
        if not held:
            continue
        most = max(found.per_s for _, found in held)
        names = max(len(name) for name, _ in held)
        lines += ["", f"{job}, tasks a second (× streamtask)"]
        for name, found in held:
            bar = "█" * max(round(found.per_s / max(most, 1) * width), 1)
            lines.append(f"  {name:{names}}  {bar:{width}} {found.per_s:>7,}  {times(found.ratio_streamtask):>5}")
    return "\n".join(lines[1:])


def fastest(rows: Sequence[Row], job: str) -> list[tuple[str, Median]]:
    """(peer, its figures) of all that were measured, the fastest first."""
    names = dict.fromkeys(row.peer for row in rows if row.job == job)
    held = [(name, found) for name in names if (found := median(rows, name, job))]
    return sorted(held, key=lambda one: -one[1].per_s)


def _left_out(rows: Sequence[Row]) -> list[str]:
    reasons = dict.fromkeys((row.peer, row.left_out) for row in rows if row.left_out)
    return ["", *(f"left out: {peer}: {reason}" for peer, reason in reasons)] if reasons else []


def measured_by(found: Mapping[str, Any]) -> str:
    """One line: machine, versions, commit."""
    machine, versions = found["machine"], found["versions"]
    held = ", ".join(f"{name} {version}" for name, version in versions.items())
    redis = f", redis {found['redis']}" if found.get("redis") else ""
    who = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, load {machine['load']}"
    return f"{who}; {held}{redis}; commit {found['commit'] or 'none'}"


# --- The drawing ------------------------------------------------------------------------------------------------------


def drawing() -> Any:
    """matplotlib, which draws without a screen. Raises Failed when it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise Failed(
            "--chart draws with matplotlib, which is not installed: pip install 'streamtask-kafka[bench]'."
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(found: Mapping[str, Any], file: Path) -> None:
    """One panel of bars for each job, as PNG. Raises Failed."""
    pyplot = drawing()
    rows = [Row(**row) for row in found["rows"]]
    jobs = [job for job in JOBS if fastest(rows, job)]
    tall = 0.8 + 0.24 * max(len(fastest(rows, job)) for job in jobs)
    figure, panels = pyplot.subplots(len(jobs), 1, figsize=(10, tall * len(jobs) + 0.6), squeeze=False)
    for panel, job in zip(panels[:, 0], jobs, strict=True):
        held = fastest(rows, job)[::-1]  # the first bar is the lowest
        colours = ["#d1495b" if name == OURS else "#9aa5b1" if name == RAW else "#30638e" for name, _ in held]
        drawn = panel.barh([name for name, _ in held], [one.per_s for _, one in held], color=colours)
        labels = [f"{one.per_s:,}  ({times(one.ratio_streamtask)} ×)" for _, one in held]
        panel.bar_label(drawn, labels, padding=3, fontsize=8)
        panel.set_title(f"{job}: tasks a second (× streamtask)", loc="left", fontsize=10)
        panel.margins(x=0.18)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, 0.003, measured_by(found), fontsize=6)
    figure.tight_layout(rect=(0, 0.01, 1, 1))
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise Failed(
            f"--chart {file}: not written ({error}). Name a file that ends in .png, in a folder that exists."
        ) from None
    finally:
        pyplot.close(figure)
