"""Which status may follow which, over every pair, and that the drawing in docs/states.md is the table's."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from streamtask.core.lifecycle import NEXT, IllegalStep, advance, drawing, may_follow, table
from streamtask.domain.model import ENDED, TaskStatus

STATES = Path(__file__).parents[2] / "docs" / "states.md"
LEGAL = {
    (None, "CREATED"),
    ("CREATED", "RUNNING"),
    ("CREATED", "CANCELLED"),
    ("RUNNING", "RUNNING"),
    ("RUNNING", "COMPLETED"),
    ("RUNNING", "FAILED"),
    ("RUNNING", "CANCELLED"),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product([None, *TaskStatus], TaskStatus)))
def test_exactly_the_legal_steps_are_taken(before: TaskStatus | None, after: TaskStatus) -> None:
    legal = (before and before.name, after.name) in LEGAL
    assert may_follow(before, after) == legal
    if legal:
        assert advance(before, after) is after
    else:
        with pytest.raises(IllegalStep, match=f"{after.name} may not follow"):
            advance(before, after)


def test_a_terminal_status_is_never_left_and_every_other_leads_to_one() -> None:
    for status in TaskStatus:
        assert (not NEXT[status]) == (status in ENDED)
        reached, more = set(), {status}
        while more:
            reached |= more
            more = {after for before in more for after in NEXT[before]} - reached
        assert reached & ENDED


def test_the_states_page_shows_the_table() -> None:
    page = STATES.read_text(encoding="utf-8")
    assert f"```mermaid\n{drawing()}\n```" in page
    assert table() in page
