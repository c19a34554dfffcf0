"""expires_at: what has not been handed to its handler by then never is, however late that turns out."""

from __future__ import annotations

import pytest

from streamtask.domain.model import RequestRecord
from streamtask.domain.ports import Answer, Ask, EndTransaction, Fault, FaultKind, Flush, Produce

from .desk import Desk

LATER_MS = 600_000


def _picked() -> tuple[Desk, RequestRecord]:
    """A desk that is about to send the RUNNING of a request with a second to live."""
    desk = Desk()
    desk.ready()
    desk.turn()
    return desk, desk.submit(expires_ms=desk.now.wall_ms + 1_000)


@pytest.mark.parametrize(
    ("kind", "ask"),
    [(FaultKind.ABORT, Produce), (FaultKind.FENCED, Flush), (FaultKind.DOUBT, EndTransaction)],
    ids=["aborted", "fenced", "in doubt, not landed"],
)
def test_a_picked_request_that_expires_while_no_broker_answers_never_runs(kind: FaultKind, ask: type[Ask]) -> None:
    """Bug: expires_at was forgotten once a request was picked; it started 599 s late, when the outage had ended."""
    desk, record = _picked()
    desk.answers[ask] = [Fault(kind)] * 50 if kind is FaultKind.ABORT else [Fault(kind)]
    desk.turn()
    desk.later(LATER_MS)
    desk.turn()
    desk.answers.clear()
    desk.settle()
    assert desk.history(record) == ["created", "cancelled"]
    assert desk.last(record).error_code == "expired"
    assert not desk.running
    desk.submit()
    desk.settle()
    assert len(desk.running) == 1, "its slot is free"


def test_one_whose_running_has_landed_is_not_handed_over_when_that_is_known_too_late() -> None:
    desk, record = _picked()
    _land_in_doubt(desk)
    desk.later(LATER_MS)
    desk.settle()
    assert desk.history(record) == ["created", "running 1", "cancelled"]
    assert desk.last(record).error_code == "expired"
    assert not desk.running


def test_one_that_has_started_in_time_may_run_again_after_its_expiry() -> None:
    desk, record = _picked()
    desk.settle()
    assert len(desk.running) == 1
    desk.later(LATER_MS)
    heir = desk.successor()
    heir.feed(record)
    heir.settle()
    assert desk.history(record) == ["created", "running 1", "running 2"]


def _land_in_doubt(desk: Desk) -> None:
    """The next transaction takes effect, and its answer is lost."""
    perform, landed = desk.perform, list[Ask]()

    def once(ask: Ask) -> Answer:
        answer = perform(ask)
        if isinstance(ask, EndTransaction) and not landed:
            landed.append(ask)
            return Fault(FaultKind.DOUBT)
        return answer

    desk.perform = once  # type: ignore[method-assign]
    desk.turn()
