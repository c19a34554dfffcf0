"""Judges a chaos run: the audit and its second witness, the checks, what the logs say, against what was done on purpose."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from streamtask.audit import Report, run_audit
from streamtask.audit.report import Violation
from streamtask.codec.recalled import CLOCK_AHEAD_MAX_MS
from tests.acceptance.harness import Bench, Seen
from tests.chaos.checks import (
    WRITE_MS,
    Facts,
    check,
    end_of,
    may_end_in_a_letter,
    overlaps,
    place_of,
    too_long,
)
from tests.chaos.fleet import EXIT_CONFIG, WORKER_CODES, at_ms
from tests.chaos.outcome import Outcome
from tests.chaos.stage import Stage
from tests.witness import Unavailable, compare, witness

# docs/decisions/0007: after offsets were lost, letters without an event are written again, and a duplicate whose first task
# has ended meanwhile runs as a history of its own.
RECOVERY_TOLERATED = frozenset({"dead_twice", "duplicate_with_history"})


LETTERS = frozenset({"failed_not_dead", "invalid_not_dead"})


def judge(stage: Stage, outcome: Outcome) -> None:
    """Into outcome: what was broken, and what is counted."""
    bench, fleet, load = stage.bench, stage.fleet, stage.load
    fleet.read_logs()
    report = run_audit(bench.kafka, bench.names)
    outcome.witness, disagreements = _second(bench, report)
    outcome.violations += disagreements
    broken = _broken(stage, report)
    if broken or report.unread or report.pending_total:
        outcome.violations.append(f"{dict(broken)} {report.to_text()}")
    facts = facts_of(stage)
    violations, outcome.counts = check(facts)
    outcome.overlaps, outcome.ends_unknown = overlaps(facts)
    outcome.violations += [*violations, *too_long(outcome.overlaps), *_told(stage)]
    if outcome.violations:
        (stage.bench.directory / "facts.pickle").write_bytes(pickle.dumps(facts))
    outcome.requests, outcome.unacknowledged, outcome.cancels = len(load.acked), load.unacknowledged, load.cancels
    outcome.executions = sum(one.what == "start" for one in facts.executions)
    outcome.deaths = len(fleet.deaths)
    outcome.events, outcome.letters = report.events, report.letters


def facts_of(stage: Stage) -> Facts:
    bench, fleet, load = stage.bench, stage.fleet, stage.load
    bench.look()
    letters: dict[str, list[str]] = defaultdict(list)
    for letter in bench.letters():
        letters[letter.origin].append(letter.reason)
    return Facts(
        acked=load.acked,
        histories=by_origin(bench),
        letters=letters,
        executions=bench.executions(),
        cancelled=load.cancelled,
        heard=load.heard,
        repeated={task_id for task_id, times in load.sent.items() if times > 1},
        deaths=_joined(
            child_deaths(told for worker in bench.workers for told in worker.events("app_event")), fleet.deaths
        ),
        troubles=fleet.troubles,
        moves=fleet.moves,
        narrow=stage.narrow,
        deleted=stage.deleted,
        control_anew_ms=stage.control_anew_ms,
        letters_gone=stage.letters_gone,
    )


def deleted(stage: Stage, origin: str) -> bool:
    band, partition, offset = place_of(origin)
    return offset < stage.deleted.get((band, partition), 0)


def letter_gone(stage: Stage, origin: str) -> bool:
    """All that it may have ended in is a dead letter, which may have been in the topic that was deleted."""
    band, partition, offset = place_of(origin)
    repeated = {task_id for task_id, times in stage.load.sent.items() if times > 1}
    gone = offset < stage.letters_gone.get((band, partition), 0)
    expected = stage.load.acked.get(origin)
    return gone and expected is not None and may_end_in_a_letter(expected, repeated)


def by_origin(bench: Bench) -> dict[str, list[Seen]]:
    found: dict[str, list[Seen]] = defaultdict(list)
    for events in bench.histories().values():
        for seen in events:
            found[seen.event.origin or ""].append(seen)
    return found


def _second(bench: Bench, report: Report) -> tuple[str, list[str]]:
    """What the witness says, which shares no code with the audit, and where both disagree."""
    try:
        found = witness(bench.kafka.bootstrap, bench.names.status)
    except Unavailable as why:
        return f"not asked: {why}", []
    except RuntimeError as error:
        return "asked in vain", [f"witness: {error}"]
    lines = [f"witness: {line}" for line in compare(report, found)]
    return f"{found['records']} status events, {'agrees with the audit' if not lines else 'disagrees'}", lines


def _broken(stage: Stage, report: Report) -> Counter[str]:
    """The audit's violations by kind, without what follows from what was done on purpose."""
    recovered = _recovered(stage)
    histories = by_origin(stage.bench) if stage.letters_gone else {}
    kinds = Counter(report.violations_by_kind)
    for violation in report.violations:
        cell = violation.origin.partition("@")[0]
        passed_over = violation.kind == "committed_past_unfinished" and deleted(stage, violation.origin)
        # A refused duplicate has no event, and its letter is gone: nothing of it is left.
        duplicate = (
            violation.kind == "committed_past_unfinished"
            and violation.origin not in histories
            and bool(stage.letters_gone)
            and letter_gone(stage, violation.origin)
        )
        forgotten = violation.kind == "time_back" and _time_forgotten(stage, violation, recovered)
        without_letter = duplicate or (violation.kind in LETTERS and _letter_gone(stage, violation.origin, histories))
        if (violation.kind in RECOVERY_TOLERATED and cell in recovered) or passed_over or without_letter or forgotten:
            kinds[violation.kind] -= 1
    kinds["dead_twice"] += sum(one.origin.partition("@")[0] not in recovered for one in report.repeats)
    return +kinds


def _time_forgotten(stage: Stage, violation: Violation, recovered: Collection[str]) -> bool:
    """Somebody's clock was so far ahead that a worker which reads the shard's past does not believe its times."""
    troubles = (one for suffered in stage.fleet.troubles.values() for one in suffered)
    ahead = any(one.clock_ms > CLOCK_AHEAD_MAX_MS for one in troubles)
    return ahead and any(cell.endswith(f"-{violation.evidence['partition']}") for cell in recovered)


def _letter_gone(stage: Stage, origin: str, histories: Mapping[str, Sequence[Seen]]) -> bool:
    """Its letter may have been in the tasks.dead that was deleted: it had ended by then, as far as anybody can tell."""
    band, partition, offset = place_of(origin)
    end = end_of(histories.get(origin, ()))
    before = end is None or end.timestamp_ms <= (stage.dead_anew_ms or 0)
    return before and offset < stage.letters_gone.get((band, partition), 0)


def _joined(*found: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    pids = {pid for one in found for pid in one}
    return {pid: sorted(ms for one in found for ms in one.get(pid, ())) for pid in pids}


def child_deaths(told: Iterable[dict[str, Any]]) -> dict[int, list[int]]:
    """{pid: ms, one for each} of children that died under their worker, as it has logged. Coroutines and threads of suspects
    run in such children: they end long before their worker does."""
    found: dict[int, list[int]] = defaultdict(list)
    for one in told:
        if one["what"] == "child_died":
            found[one["pid"]].append(at_ms(one))
    return found


def _recovered(stage: Stage) -> set[str]:
    """Cells, as `high-3`, that read their past from tasks.status since the group's offsets were touched."""
    if stage.offsets_touched_ms is None:
        return set()
    bands = stage.bench.names.bands
    return {
        f"{bands[told['band']].name}-{told['shard']}"
        for _, told in stage.fleet.told
        if told["event"] in ("position_unknown", "position_recovered") and at_ms(told) >= stage.offsets_touched_ms
    }


def _told(stage: Stage) -> Iterator[str]:
    """Lines and exit codes that no worker should ever have, and those that need a reason."""
    for worker in stage.bench.workers:
        yield from (f"{worker.log.name}: {line[:500]}" for line in stage.bench.complaints(worker)[:3])
        if worker.process.returncode == EXIT_CONFIG and not stage.fleet.excused(worker):
            yield f"{worker.log.name}: exit code 2: {worker.text()[-500:]}"
    yield from stage.fleet.surprises
    for pid, code in stage.fleet.codes.items():
        if code not in WORKER_CODES and code != EXIT_CONFIG:
            yield f"worker {pid} ended with exit code {code}"
    bands = stage.bench.names.bands
    for log, told in stage.fleet.told:
        name = told["event"]
        if name == "records_lost":
            cell = (bands[told["band"]].name, told["shard"])
            reason = cell in stage.deleted
        elif name == "record_refused":
            reason = any(since <= at_ms(told) <= until + WRITE_MS for since, until in stage.narrow)
        elif name == "shard_refused":
            reason = stage.grown
        elif name == "position_recovered":
            reason = stage.offsets_touched_ms is not None
        else:
            reason = True
        if not reason:
            yield f"{log}: {told}"
