"""Every named scenario ends well, and a claim may be interrupted at every moment and in every way."""

from __future__ import annotations

import pytest

from .scenarios import SCENARIOS, claim_interrupted


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenario(name: str) -> None:
    SCENARIOS[name]()


@pytest.mark.parametrize("open_transaction", [True, False], ids=["inside a transaction", "between transactions"])
@pytest.mark.parametrize("act", ["crash", "freeze", "freeze and wake", "expire", "move"])
def test_a_claim_may_be_interrupted_between_any_two_of_its_moments(act: str, open_transaction: bool) -> None:
    moments = 0
    while claim_interrupted(moments, act, open_transaction=open_transaction):
        moments += 1
        assert moments < 60, "a claim that never ends"
    assert moments >= 8, f"a claim has two moments for each of its asks, not {moments} in all"
