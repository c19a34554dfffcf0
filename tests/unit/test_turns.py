"""What runs beside what, and in which order."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import turns


class Item:
    """As much of a pytest.Item as turns looks at."""

    def __init__(self, name: str, *marks: str, config: Any = None) -> None:
        self.name, self.marks, self.config = name, marks, config

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None


@pytest.fixture
def distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")


UNIT, CONTRACT = Item("unit"), Item("contract", "broker")
ACCEPTANCE, SLOW = Item("acceptance", "broker", "acceptance"), Item("slow", "broker", "acceptance", "slow")


def ordered(*items: Any) -> list[str]:
    found = list(items)
    turns.order(found)
    return [item.name for item in found]


def test_side_by_side_what_waits_comes_first_and_what_is_alone_last(distributed: None) -> None:
    assert ordered(UNIT, SLOW, CONTRACT, ACCEPTANCE) == ["acceptance", "contract", "unit", "slow"]


def test_in_one_process_what_fails_fast_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert ordered(SLOW, ACCEPTANCE, CONTRACT, UNIT) == ["contract", "unit", "slow", "acceptance"]


def test_tests_of_one_file_stay_in_their_order(distributed: None) -> None:
    assert ordered(*(Item(name) for name in "cab")) == ["c", "a", "b"]


@contextmanager
def held(folder: Path, how: int) -> Iterator[None]:
    """Another worker has its turn."""
    with (folder / "turn").open("a") as file:
        fcntl.flock(file, how | fcntl.LOCK_NB)
        yield


def may_run(folder: Path, how: int) -> bool:
    """Whether another worker could take its turn now."""
    try:
        with held(folder, how):
            return True
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("marks", "beside"),
    [((), True), (("acceptance",), True), (("slow",), True), (("acceptance", "slow"), False)],
    ids=["unit", "acceptance", "slow", "slow acceptance"],
)
def test_only_slow_acceptance_tests_have_the_machine_to_themselves(
    distributed: None, tmp_path: Path, marks: tuple[str, ...], beside: bool
) -> None:
    item: Any = Item("x", *marks, config=SimpleNamespace(cache=SimpleNamespace(mkdir=lambda _: tmp_path)))
    with turns.turn(item):
        assert may_run(tmp_path, fcntl.LOCK_SH) is beside
        assert not may_run(tmp_path, fcntl.LOCK_EX)
    assert may_run(tmp_path, fcntl.LOCK_EX)


def test_acceptance_tests_are_handed_out_one_by_one_and_others_by_their_file() -> None:
    scope = turns.Scheduling._split_scope
    one, two = "tests/acceptance/test_x.py::test_a[1]", "tests/acceptance/test_x.py::test_a[2]"
    assert scope(None, one) != scope(None, two)  # type: ignore[arg-type]
    one, two = "tests/unit/test_x.py::TestA::test_a", "tests/unit/test_x.py::test_b[a::b]"
    assert scope(None, one) == scope(None, two) == "tests/unit/test_x.py"  # type: ignore[arg-type]
