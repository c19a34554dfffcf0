"""The examples' handlers, run here and now with Context.fake(): what a test of a handler looks like."""

from __future__ import annotations

import asyncio
import importlib.util
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from streamtask import Context, GiveUp, RetryLater

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(path: str) -> ModuleType:
    """An example as a module of its own: two of them are called app.py."""
    name = "example_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks annotations up there
    spec.loader.exec_module(module)
    return module


def test_the_countdown_reports_each_step_and_returns_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    app = load("quickstart/app.py")

    async def at_once(_seconds: float) -> None: ...

    monkeypatch.setattr(asyncio, "sleep", at_once)
    ctx = Context.fake()
    assert asyncio.run(app.countdown(ctx, steps=2)) == "lift-off"
    assert ctx.reports == [(0.0, "2 to go"), (0.5, "1 to go")]


def test_a_file_is_imported_and_again_without_a_difference(tmp_path: Path) -> None:
    people = load("retry_and_progress/app.py")
    params = people.Import(source=tmp_path / "people.csv", database=tmp_path / "people.db")
    params.source.write_text("name,age\nAda,36\nroot,0\nÉmilie,42\n", encoding="utf-8")
    for attempt in (1, 2):
        ctx = Context.fake(attempt=attempt, state=frozenset({"root"}))
        assert people.import_people(ctx, params) == people.Imported(rows=3, attempt=attempt)
        assert ctx.reports[-1] == (1.0, "3 of 3 rows")
    with closing(sqlite3.connect(params.database)) as database:
        assert database.execute("SELECT name, age FROM person ORDER BY name").fetchall() == [
            ("Ada", 36),
            ("Émilie", 42),
        ]


def test_a_late_file_is_waited_for_and_a_wrong_one_given_up(tmp_path: Path) -> None:
    people = load("retry_and_progress/app.py")
    params = people.Import(source=tmp_path / "people.csv", database=tmp_path / "people.db")
    with pytest.raises(RetryLater) as late:
        people.import_people(Context.fake(), params)
    assert late.value.after == 1.0
    params.source.write_text("name,age\nAda,old\n")
    with pytest.raises(GiveUp, match="row 1: ValueError"):
        people.import_people(Context.fake(state=frozenset()), params)


def test_an_import_that_is_told_to_stop_writes_nothing(tmp_path: Path) -> None:
    people = load("retry_and_progress/app.py")
    params = people.Import(source=tmp_path / "people.csv", database=tmp_path / "people.db")
    params.source.write_text("name,age\nAda,36\n")
    with pytest.raises(asyncio.CancelledError):
        people.import_people(Context.fake(state=frozenset(), cancelled=True), params)
    with closing(sqlite3.connect(params.database)) as database:
        assert database.execute("SELECT count(*) FROM person").fetchone() == (0,)
