"""The result of an audit: violations with their evidence, pending requests, and what retention removed.

Clean means that there is no violation and that everything could be read. Pending requests are no violation (`finished`
requires that there are none); duplicates and gaps are counted separately.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

LISTED_MAX = 1_000  # violations and pending requests listed in full; all are counted


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken guarantee.

    kind      one of audit.judge.KINDS
    text      one line for people
    evidence  where to look: topic, partition, offset, and what that record says
    """

    kind: str
    text: str
    task_id: str
    origin: str
    evidence: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "text": self.text,
            "task_id": self.task_id,
            "origin": self.origin,
            "evidence": self.evidence,
        }

    def to_evidence(self) -> dict[str, Any]:
        """One line of `streamtask audit --evidence`: where to look. Its fields are part of the format (docs/audit.md)."""
        events = []
        for one in (self.evidence.get("before"), {n: held for n, held in self.evidence.items() if n != "before"}):
            if one:
                events.append({name: held for name, held in one.items() if held is not None and held != ""})
        place = (self.evidence.get("topic"), self.evidence.get("partition"))
        here = [one["offset"] for one in events if "offset" in one and (one["topic"], one.get("partition")) == place]
        return {
            "rule": self.kind,
            "text": self.text,
            "task_id": self.task_id or None,
            "origin": self.origin or None,
            "topic": place[0],
            "partition": place[1],
            "offsets": here,
            "events": events,
        }


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that has not ended and that no committed offset has passed: it is still to be run.

    status   its last event: "created", "running", or "" when it has none yet
    where    `at the committed offset`, `above it`, or `nothing is committed there`
    """

    task_id: str
    origin: str
    topic: str
    status: str
    attempt: int | None
    where: str

    def to_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "origin": self.origin,
            "topic": self.topic,
            "status": self.status,
            "attempt": self.attempt,
            "where": self.where,
        }


@dataclass(frozen=True, slots=True)
class Gap:
    """Request records start..end-1 that were not finished and that the topic no longer holds."""

    topic: str
    partition: int
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        return {"topic": self.topic, "partition": self.partition, "start": self.start, "end": self.end}


@dataclass(slots=True)
class Report:
    """The result of an audit.

    counts      histories by their last status
    requests    request records read; `invalid` of them are not valid, `duplicates` were refused as duplicates
    events      status events read; letters: dead letters read
    repeats     records that never became a task and were refused again, at most LISTED_MAX of `repeats_total`; no violation
    refreshed   CREATED events published again for a task that waits for days
    truncated   histories whose beginning was removed by compaction or retention
    unread      texts that say what could not be read to its end in time; a report with such an entry is not clean
    since       RFC 3339: only records from then on were read; None: all
    """

    counts: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    invalid: int = 0
    duplicates: int = 0
    events: int = 0
    letters: int = 0
    repeats_total: int = 0
    repeats: list[Violation] = field(default_factory=list)
    refreshed: int = 0
    truncated: int = 0
    violations_total: int = 0
    violations_by_kind: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    pending_total: int = 0
    pending: list[Pending] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    since: str | None = None

    @property
    def clean(self) -> bool:
        """There is no violation, and everything was read."""
        return self.violations_total == 0 and not self.unread

    @property
    def finished(self) -> bool:
        """Clean, and nothing is pending: every request ended."""
        return self.clean and self.pending_total == 0

    def add(self, violation: Violation) -> None:
        self.violations_total += 1
        self.violations_by_kind[violation.kind] += 1
        if len(self.violations) < LISTED_MAX:
            self.violations.append(violation)

    def repeat(self, letter: Violation) -> None:
        self.repeats_total += 1
        if len(self.repeats) < LISTED_MAX:
            self.repeats.append(letter)

    def wait(self, pending: Pending) -> None:
        self.pending_total += 1
        if len(self.pending) < LISTED_MAX:
            self.pending.append(pending)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for `--json`. Lists hold at most LISTED_MAX entries; the totals count all."""
        return {
            "clean": self.clean,
            "finished": self.finished,
            "counts": self.counts,
            "requests": self.requests,
            "invalid": self.invalid,
            "duplicates": self.duplicates,
            "events": self.events,
            "letters": self.letters,
            "letters_repeated": self.repeats_total,
            "refreshed": self.refreshed,
            "truncated": self.truncated,
            "violations": self.violations_total,
            "violations_by_kind": dict(self.violations_by_kind),
            "violation_list": [item.to_json() for item in self.violations],
            "pending": self.pending_total,
            "pending_list": [item.to_json() for item in self.pending],
            "gaps": [item.to_json() for item in self.gaps],
            "unread": self.unread,
            "since": self.since,
        }

    def to_text(self, *, lines_max: int = 20) -> str:
        """The report for a terminal: a verdict, the counts, then at most `lines_max` entries of each list."""
        verdict = "clean" if self.clean else f"NOT CLEAN: {self.violations_total} violations"
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items()) or "no history"
        lines = [
            f"audit: {verdict}" + (f" (since {self.since})" if self.since else ""),
            f"  {self.requests} requests, {self.events} status events, {self.letters} dead letters",
            f"  histories: {counts}",
            f"  pending {self.pending_total}, duplicates {self.duplicates}, invalid {self.invalid}, "
            f"gaps {len(self.gaps)}, truncated {self.truncated}",
        ]
        if self.repeats_total:
            lines.append(
                f"  {self.repeats_total} invalid requests were refused again, because the group's offsets were lost"
            )
        lines += [f"  not read: {text}" for text in self.unread]
        lines += _listed(
            [f"  {item.kind}: {item.text}" for item in self.violations], self.violations_total, lines_max, "violations"
        )
        lines += _listed(
            [
                f"  pending: {item.origin} {item.task_id} {item.status or 'no event yet'} ({item.where})"
                for item in self.pending
            ],
            self.pending_total,
            lines_max,
            "pending requests",
        )
        lines += _listed(
            [
                f"  gap: {item.topic} [{item.partition}] {item.start}..{item.end - 1} is no longer in the log"
                for item in self.gaps
            ],
            len(self.gaps),
            lines_max,
            "gaps",
        )
        return "\n".join(lines)


def _listed(lines: list[str], total: int, lines_max: int, what: str) -> list[str]:
    shown = lines[:lines_max]
    return shown if total <= len(shown) else [*shown, f"  … and {total - len(shown)} more {what}"]
