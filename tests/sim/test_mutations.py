"""Every rule is needed: taken out, the scenarios named with it fail. The decision record has the same table."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mutations import MUTATIONS
from .scenarios import SCENARIOS

RECORD = Path(__file__).parents[2] / "docs" / "decisions" / "0006-rules-and-mutations.md"
CASES = [(name, scenario) for name, mutation in MUTATIONS.items() for scenario in mutation.scenarios]


@pytest.mark.parametrize(("name", "scenario"), CASES, ids=[f"without {n}: {s}" for n, s in CASES])
def test_a_scenario_fails_without_its_rule(name: str, scenario: str) -> None:
    with MUTATIONS[name].active(), pytest.raises(AssertionError):
        SCENARIOS[scenario]()


def test_the_decision_record_names_every_rule_and_its_scenarios_and_no_other() -> None:
    rows = [line for line in RECORD.read_text("utf-8").splitlines() if line.startswith("| ")]
    table = {rule: (scenarios, breaks) for rule, scenarios, breaks in (row[2:-2].split(" | ") for row in rows[1:])}
    assert table == {
        mutation.rule: (", ".join(f"`{scenario}`" for scenario in mutation.scenarios), mutation.breaks)
        for mutation in MUTATIONS.values()
    }
