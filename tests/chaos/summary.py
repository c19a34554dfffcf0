"""The end of a chaos run in words: a table of what was done and seen, and, when a promise was broken, which and where."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.chaos.checks import Overlap
from tests.chaos.outcome import Outcome

LISTED_MAX = 20


def summary(console: Console, outcome: Outcome, again: str) -> None:
    """Print it. again: the command that repeats the run."""
    console.print(_table(outcome))
    if not outcome.violations:
        console.print("[green]✓[/] every promise was kept")
        return
    console.print(f"[red]✗[/] {len(outcome.violations)} violations")
    for text in outcome.violations[:LISTED_MAX]:
        console.print(f"  {text}", markup=False)
    if len(outcome.violations) > LISTED_MAX:
        console.print(f"  … and {len(outcome.violations) - LISTED_MAX} more")
    console.print(f"logs, record and dumps: {outcome.evidence}", markup=False)
    console.print(f"again: {again}", markup=False)


def _table(outcome: Outcome) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    counts = outcome.counts
    rows = {
        "requests": f"{outcome.requests} acknowledged, {outcome.unacknowledged} not, {outcome.cancels} cancels",
        "ended": ", ".join(f"{number} {code}" for code, number in counts.ends.most_common()) or "none",
        "events": f"{outcome.events} status events, {outcome.letters} dead letters",
        "executions": f"{outcome.executions} of {counts.attempts} attempts; {counts.without_execution} attempts were taken "
        f"away before their first instruction; {counts.late_starts} old attempts began late",
        "deaths": f"{outcome.deaths} processes",
        "faults": ", ".join(f"{number} {name}" for name, number in outcome.struck.most_common()) or "none",
        "not begun": f"{outcome.skipped} faults, for want of time; {outcome.given_up} given up, for want of an answer",
        **_overlaps(outcome.overlaps),
        "finished": f"{outcome.finish_s:.1f} s after the last fault",
    }
    if counts.deleted:
        rows["deleted"] = f"{counts.deleted} requests whose records were deleted on purpose"
    if counts.letters_gone:
        rows["letters gone"] = f"{counts.letters_gone} requests whose dead letters may have been deleted on purpose"
    if outcome.ends_unknown:
        rows["not known"] = f"when {outcome.ends_unknown} executions ended whose child was killed"
    if outcome.witness:
        rows["witness"] = outcome.witness
    for name, text in rows.items():
        table.add_row(f"{name}  ", text)
    return table


def _overlaps(found: list[Overlap]) -> dict[str, str]:
    """By kind and by what the worker of the older execution had suffered."""
    groups: dict[tuple[str, str], list[Overlap]] = defaultdict(list)
    for one in found:
        kind = f"{one.kind}, deaf" if one.deaf else one.kind
        groups[kind, one.why or "no fault known"].append(one)
    return {
        f"overlap, {kind}, {why}": f"{len(group)}, at most {max(one.ms for one in group)} ms, half of them up to "
        f"{median(one.ms for one in group):.0f} ms; at most {max(one.beyond_ms for one in group)} ms after it was over"
        for (kind, why), group in sorted(groups.items())
    } or {"overlaps": "none"}
