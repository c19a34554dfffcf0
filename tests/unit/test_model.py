"""The protocol model beside the code: docs/decisions/0012 names only what exists, and every rule and mutation stands in it.

The model itself is run by `make model`; here a few of its runs are made again where cargo is (slow), and its recorded
results are held to the list of runs.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.sim.filling import FILLING
from tests.sim.heavy import HEAVY
from tests.sim.mutations import MUTATIONS
from tests.sim.record_mutations import RECORD_MUTATIONS
from tests.sim.refusal_mutations import REFUSAL_MUTATIONS
from tests.sim.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "formal_model"
RECORD = ROOT / "docs" / "decisions" / "0012-protocol-model.md"
GROUPS = ("BUILT", "PARTS", "SCHEDULE", "MUTATIONS", "HOLES", "DEEP")

Run = tuple[str, str]  # switches flipped, faults


@cache
def switches() -> dict[str, bool]:
    """{switch of the model: is it on in what the code does}."""
    found = re.findall(r'^ {4}(\w+) = (true|false): ".+",$', (MODEL / "src" / "rules.rs").read_text("utf-8"), re.M)
    return {name: on == "true" for name, on in found}


@cache
def runs() -> dict[str, list[Run]]:
    """The runs of each group in runs.rs."""
    text = (MODEL / "src" / "runs.rs").read_text("utf-8")
    out = {}
    for group in GROUPS:
        body = re.search(rf"^const {group}: &\[Row\] = &\[(.*?)\];$", text, re.M | re.S)
        assert body is not None, group
        out[group] = [(flips, faults.strip()) for flips, faults in re.findall(r'\("([^"]*)", "([^"]*)", ', body[1])]
    return out


@cache
def results() -> dict[Run, str]:
    """{run: verdict} of RESULTS.txt: «holds», or the number of steps."""
    out = {}
    for line in (MODEL / "RESULTS.txt").read_text("utf-8").splitlines():
        if " | " in line:
            name, faults, _, verdict = (part.strip() for part in line.split(" | "))
            steps = re.match(r"VIOLATED in (\d+) steps", verdict)
            assert steps or verdict.startswith("holds"), line
            out[name.removeprefix("built").strip(), faults] = steps[1] if steps else "holds"
    return out


@cache
def table(heading: str) -> list[list[str]]:
    """The rows of the table below this heading of the record, without its head."""
    section = RECORD.read_text("utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line[2:-2].split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return rows[1:]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def named_runs(cell: str) -> list[tuple[Run, str]]:
    return [((flips, faults), told) for flips, faults, told in re.findall(r"`([^`]+)` / `([^`]+)`, (\w+)", cell)]


def resolve(path: str) -> object:
    """The thing at `streamtask.<path>`: a module's attribute, or a class's."""
    parts = f"streamtask.{path}".split(".")
    for end in range(len(parts) - 1, 1, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(path)


def test_every_switch_of_the_model_stands_in_the_record_once() -> None:
    rules = [names(row[0])[0] for row in table("The rules")]
    parts = [names(row[0])[0] for row in table("Parts and variants")]
    assert sorted(rules + parts) == sorted(switches())
    assert [name for name in rules if not switches()[name]] == [], "a rule is on in what the code does"


@pytest.mark.parametrize("row", table("The rules"), ids=lambda row: names(row[0])[0])
def test_what_a_rule_names_exists(row: list[str]) -> None:
    _, _, functions, scenarios, mutations, proof = row
    assert names(functions) or functions == "not built"
    for path in names(functions):
        resolve(path)
    assert [name for name in names(scenarios) if name not in SCENARIOS] == []
    assert [name for name in names(mutations) if name not in MUTATIONS] == []
    for name in names(mutations):
        assert set(MUTATIONS[name].scenarios) <= set(names(scenarios)), f"scenarios that fail without {name}"
    assert named_runs(proof), "no run shows what the rule is for"


def test_every_function_that_the_record_names_anywhere_exists() -> None:
    for path in re.findall(r"`((?:core|kafka|worker\.recovery)\.[\w.]+)`", RECORD.read_text("utf-8")):
        resolve(path)


def test_every_mutation_of_the_simulation_stands_beside_a_rule() -> None:
    # The model has no clock, no compaction, no weights, and one partition of tasks.status.
    beyond = {"time_from_the_beginning", *REFUSAL_MUTATIONS, *RECORD_MUTATIONS, *HEAVY, *FILLING}
    assert {name for row in table("The rules") for name in names(row[4])} == set(MUTATIONS) - beyond


def test_every_rule_is_taken_out_by_a_run_that_is_told_and_one_of_them_fails() -> None:
    for row in table("The rules"):
        switch = names(row[0])[0]
        told = named_runs(row[5])
        assert all(switch in flips.split() for (flips, _), _ in told), f"{switch}: a run that keeps the rule"
        if all(verdict == "holds" for _, verdict in told):
            why = "the record says what holds without them"
            assert switch in ("same_id", "revoke_waits", "claim_cells", "skip"), f"{switch}: nothing fails; {why}"


def test_the_counts_of_steps_in_the_record_are_those_of_the_results() -> None:
    cells = [row[5] for row in table("The rules")] + [row[0] for row in table("Holes")]
    told = [run for cell in cells for run in named_runs(cell)]
    assert len(told) > 40
    assert dict(told) == {run: results().get(run) for run, _ in told}


def test_the_results_are_of_the_runs_that_the_model_makes_now() -> None:
    wanted = [run for group in GROUPS for run in runs()[group]]
    assert len(wanted) == len(set(wanted)) > 100, "a run is made twice"
    assert set(wanted) == set(results())
    text = (MODEL / "RESULTS.txt").read_text("utf-8")
    assert "UNEXPECTED" not in text
    assert re.findall(r"^\d+ passed, (\d+) failed$", text, re.M) == ["0", "0"]


def test_what_is_built_holds_in_every_run_of_it() -> None:
    for group in ("BUILT", "PARTS", "SCHEDULE"):
        assert {run: results()[run] for run in runs()[group] if results()[run] != "holds"} == {}


@pytest.mark.parametrize(
    ("path", "there"),
    [("core.ledger.Ledger.skip_to", True), ("core.ledger.Ledger.skips", False), ("core.nowhere.x", False)],
)
def test_a_function_that_was_renamed_is_missed(path: str, there: bool) -> None:
    if there:
        assert callable(resolve(path))
    else:
        with pytest.raises(AttributeError):
            resolve(path)


def test_make_model_says_in_one_line_that_cargo_is_missing(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    told = subprocess.run(
        [make, "--no-print-directory", "model"],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in told.stderr.splitlines() if line.startswith("make model:")]
    assert told.returncode == 2
    assert len(lines) == 1
    assert "cargo" in lines[0]


@pytest.mark.slow
def test_the_model_gives_what_the_results_say(tmp_path: Path) -> None:
    """Some of the short ones; all of them are `make model`."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed: https://rustup.rs")
    command = ["cargo", "run", "--quiet", "--release", "--locked", "--manifest-path", str(MODEL / "Cargo.toml"), "--"]
    chosen = [
        ("fence", "1: crash"),
        ("read_back", "1: amb=2"),
        ("pos recall", "1: crash forget"),
        ("bands lead", "amb"),
    ]
    chosen += [("", "cancel amb"), ("pos by_id", "1: recreate")]
    for flips, faults in chosen:
        told = subprocess.run(
            [*command, flips or "built", faults],
            cwd=tmp_path,
            env=os.environ | {"CARGO_TARGET_DIR": str(tmp_path / "target")},
            capture_output=True,
            text=True,
            timeout=170,
            check=True,
        )
        verdict = results()[flips, faults]
        assert (f"VIOLATED in {verdict} steps" if verdict != "holds" else "| holds") in told.stdout, told.stdout
