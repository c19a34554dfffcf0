"""The parts of CI hold every test, and a run of them fails when one was left out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import parts, skips
from tests.parts import PARTS, Collected, Part, Ran


def test_every_test_is_run_by_exactly_one_part(everything: list[Collected]) -> None:
    takers = {test.name: [part.name for part in PARTS if part.takes(test)] for test in everything}
    assert len(takers) > 3_000
    assert {name: found for name, found in takers.items() if len(found) != 1} == {}


def test_no_part_is_without_tests(everything: list[Collected]) -> None:
    empty = [part.name for part in PARTS if part.marks and not any(part.takes(test) for test in everything)]
    assert not empty


def test_all_parts_fit_into_the_time_that_there_is() -> None:
    assert sum(part.minutes for part in PARTS) <= parts.MINUTES


def test_what_is_asked_of_make_is_what_a_part_takes() -> None:
    """The paths and the marks reach pytest through a shell and make."""
    part = Part("some", 1, paths=("tests/a b", "tests/c"), without=("tests/c/d.py",))
    assert part.argv()[:2] == ["make", "slow"]
    assert shlex.split(part.argv()[2].removeprefix("PYTEST=")) == ["tests/a b", "tests/c", "--ignore=tests/c/d.py"]

    def takes(path: str, *marks: str) -> bool:
        return part.takes(Collected(f"{path}::test_it[1]", frozenset(marks)))

    assert takes("tests/a b/x.py", "slow")
    assert not takes("tests/a b/x.py")
    assert not takes("tests/a bc/x.py", "slow")
    assert not takes("tests/c/d.py", "slow")
    bare = next(part for part in PARTS if part.bare and part.marks)
    assert bare.argv()[2] == f"PYTEST=-m '{bare.marks}'"


# --- A run of them ----------------------------------------------------------------------------------------------------


class Played:
    """A run whose parts run nothing: they take their time, and say what they ran."""

    def __init__(self, tmp_path: Path, tests: Mapping[str, list[str]], **wrong: str) -> None:
        self.tests, self.wrong, self.seconds, self.began = tests, wrong, 0.0, list[str]()
        self.parts = [Part(name, 30, "") for name in tests]
        self.ran, self.found = parts.play(self.parts, {}, tmp_path, elapsed=lambda: self.seconds, runs=self._run)

    def _run(self, part: Part, environment: Mapping[str, str], _: float) -> Ran:
        self.began.append(part.name)
        self.seconds += 60 * 29
        with (Path(environment[parts.NOTES]) / "collected-1").open("a") as file:
            file.writelines(f"{name}\t\n" for names in self.tests.values() for name in names)
        with (Path(environment[parts.NOTES]) / "ran-1").open("a") as file:
            file.writelines(f"{name}\n" for name in self.tests[part.name])
        return Ran(part, 60 * 29, self.wrong.get(part.name, ""), "1 passed in 1.00s")


def test_a_run_in_which_every_test_had_its_part_is_right(tmp_path: Path) -> None:
    played = Played(tmp_path, {"a": ["x::one", "x::two"], "b": ["x::three"]})
    assert played.found == []
    assert [one.part.name for one in played.ran] == ["a", "b"]


def test_a_part_that_cannot_begin_in_time_fails_the_run(tmp_path: Path) -> None:
    played = Played(tmp_path, {"a": ["x::one"], "b": ["x::two"], "c": ["x::three"]})
    assert played.began == ["a", "b"]
    assert played.found == [
        "left out: c. It takes 30 minutes, and of 80 58 have gone.",
        "run by no part: x::three",
    ]


def test_a_test_that_was_collected_and_not_run_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "collected-7").write_text("x::one\tslow\nx::two\t\n")
    (tmp_path / "ran-7").write_text("x::one\n")
    (tmp_path / "ran-8").write_text("x::one\n")
    assert parts.accounts(tmp_path) == ["run by no part: x::two", "run by several parts: x::one"]


def test_a_run_that_collected_nothing_is_wrong(tmp_path: Path) -> None:
    assert parts.accounts(tmp_path)


def test_a_part_that_fails_holds_up_no_other_one_and_fails_the_run(tmp_path: Path) -> None:
    played = Played(tmp_path, {"a": ["x::one"], "b": ["x::two"]}, b="exit code 1")
    assert played.found == ["failed: b: exit code 1"]


def test_after_a_failed_check_nothing_else_is_run(tmp_path: Path) -> None:
    played = Played(tmp_path, {"a": ["x::one"], "b": ["x::two"]}, a="exit code 2")
    assert played.began == ["a"]
    assert played.found[0] == "failed: a: exit code 2"


def test_the_end_of_a_run_is_pytests_own_summaries(capsys: pytest.CaptureFixture[str]) -> None:
    ran = [Ran(PARTS[0], 151.2, "", "2826 passed, 3 skipped in 150.00s (0:02:30)"), Ran(PARTS[1], 9.0, "", "")]
    parts.tell(ran, ["failed: x: exit code 1"], 3_723)
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "CI took 62:03 of 80 minutes; it has FAILED:"
    assert "  2:31  check" in said
    assert said[-1] == "check: 2826 passed, 3 skipped in 150.00s (0:02:30)"


# --- One part ---------------------------------------------------------------------------------------------------------


def python(code: str) -> Part:
    return Part("some", 1, "", command=(sys.executable, "-c", code))


def test_what_a_failed_part_said_is_said_again_at_the_end(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    failure = "print('E   AssertionError: ' + 'x' * 5_000); print('FAILED tests/a.py::b'); raise SystemExit(1)"
    parts.tell([parts.run(python(failure), {}, 60)], ["failed: some: exit code 1"], 3_723)
    said = capfdbinary.readouterr().out.decode().partition("it has FAILED:\n")[2].splitlines()
    assert said[1] == "  some: " + ("E   AssertionError: " + "x" * 5_000)[: parts.SAID_CHARS]
    assert said[2] == "  some: FAILED tests/a.py::b"


def test_a_part_is_shown_and_its_summary_is_kept(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    line = "====== 2 failed, 1 passed, 3267 deselected in 61.20s (0:01:01) ======"
    ran = parts.run(python(f"print('...'); print({line!r}); raise SystemExit(1)"), {}, 60)
    assert (ran.wrong, ran.summary) == ("exit code 1", line)
    assert capfdbinary.readouterr().out.decode().splitlines() == ["...", line]


def test_a_part_that_does_not_end_is_ended() -> None:
    ran = parts.run(python("import signal; signal.pause()"), {}, 0.5)
    assert ran.wrong == "it was ended after 0 minutes"


@pytest.mark.parametrize(
    "line", ["2826 passed, 3 skipped in 150.00s (0:02:30)", "=== 1 passed, 2 warnings in 0.12s ===", "1 error in 3.00s"]
)
def test_a_summary_is_recognised(line: str) -> None:
    assert parts.SUMMARY.match(line)


@pytest.mark.parametrize("line", ["SKIPPED [1] x.py:3: 1 passed in 3.00s", "3 passed", "in 3.00s", ""])
def test_other_lines_are_no_summary(line: str) -> None:
    assert not parts.SUMMARY.match(line)


@pytest.mark.parametrize(
    ("lines", "right"),
    [
        (['{"violations": 0}', "%3|FAIL| Connection refused"], True),
        (['{"violations": 2}'], False),
        (["killed"], False),
        ([], False),
    ],
)
def test_the_demo_fails_on_violations_and_without_its_verdict(lines: list[str], right: bool) -> None:
    assert (parts.violations(lines) == "") is right


def test_what_is_hidden_cannot_be_found_and_its_neighbours_can(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, files in zip(folders, (("java", "sh"), ("ls",)), strict=True):
        folder.mkdir()
        for name in files:
            (folder / name).write_text("")
    one, two = parts.hide(f"{folders[0]}:{folders[1]}", ["java"], tmp_path / "shadow").split(":")
    assert [path.name for path in Path(one).iterdir()] == ["sh"]
    assert two == str(folders[1])


# --- Skips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "right"),
    [
        ("Skipped: kcat, jq: not on PATH. Debian: apt-get install kcat jq", True),
        ("Skipped: cargo is not installed: https://rustup.rs", False),
        ("Skipped: no memory cgroup can be made here: [Errno 30] Read-only file system", True),
        ("Skipped: needs the extra `failover`", False),
    ],
)
def test_a_skip_passes_only_when_its_need_cannot_be_met(reason: str, right: bool) -> None:
    assert skips.permitted(reason, ["kcat"]) is right


@pytest.mark.parametrize(("strict", "outcome"), [("1", "failed"), ("", "skipped")])
def test_a_skip_that_does_not_pass_is_a_failure_in_ci(strict: str, outcome: str) -> None:
    report = pytest.CollectReport("x.py", "skipped", ("x.py", 3, "Skipped: needs bash"), [])
    skips.refuse(report, {skips.STRICT: strict})
    assert report.outcome == outcome
    assert "needs bash" in str(report.longrepr)
