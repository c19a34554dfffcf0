"""Steps of a run in one line each, for people."""

from __future__ import annotations

from typing import Any

from streamtask.domain.model import DeadLetter, StatusEvent
from streamtask.domain.ports import (
    CommitPlain,
    Committed,
    EndTransaction,
    Fault,
    FenceIds,
    ListOffsets,
    Note,
    OffsetCommit,
    Produce,
    ReadSettled,
    SendOffsets,
    Settled,
)

from .handlers import Execution


def describe(what: object) -> str:
    """`what` as `Cluster.note` was given it: text, an ask, an ask with its answer, an execution, an effect."""
    if isinstance(what, str):
        return what
    if isinstance(what, tuple) and len(what) == 2:
        return f"{_ask(what[0])} => {_answer(what[1])}"
    return _ask(what)


def event(event: StatusEvent) -> str:
    attempt = f" {event.attempt}" if event.attempt else ""
    more = f" {event.progress}" if event.progress is not None else f" {event.error_code}" if event.error_code else ""
    return f"{event.origin} {event.status.upper()}{attempt}{more}"


def _letter(letter: DeadLetter) -> str:
    return f"{letter.origin} dead: {letter.reason}"


def _offset(offset: OffsetCommit) -> str:
    return f"{offset.band}-{offset.shard}@{offset.offset} {offset.text}"


def _ask(ask: Any) -> str:
    if isinstance(ask, Produce):
        said = [event(e) for e in ask.plan.events] + [_letter(d) for d in ask.plan.dead]
        return f"produces {', '.join(said) or 'nothing'}"
    if isinstance(ask, SendOffsets):
        return f"sends offsets {', '.join(map(_offset, ask.plan.offsets))}"
    if isinstance(ask, CommitPlain):
        return f"commits plainly {', '.join(map(_offset, ask.offsets))}"
    if isinstance(ask, EndTransaction):
        return "EndTxn(commit)"
    if isinstance(ask, ListOffsets):
        return f"claim 1 of {ask.shards}"
    if isinstance(ask, FenceIds):
        return f"fences {', '.join(ask.ids)}"
    if isinstance(ask, ReadSettled):
        return f"reads settled {ask.shards}"
    if isinstance(ask, Execution):
        parameters = ask.record.request.parameters if ask.record.request is not None else None
        script = (parameters or {}).get("script")
        return f"handler of {ask.record.band}-{ask.record.partition}@{ask.record.offset} attempt {ask.attempt} {script}"
    if isinstance(ask, Note):
        return f"note {ask.name} {dict(ask.fields)}"
    return repr(ask)


def _answer(answer: object) -> str:
    if isinstance(answer, Fault):
        return f"{answer.kind.name} {answer.text}"
    if isinstance(answer, dict):
        return ", ".join(f"{c[0]}-{c[1]}@{_place(p)}" for c, p in answer.items())
    return repr(answer)


def _place(place: Committed | Settled) -> str:
    bounds = f" [{place.log_start}, {place.log_end})" if isinstance(place, Settled) else ""
    return f"{place.offset} {place.text}{bounds}"
