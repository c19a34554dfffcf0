"""What CI runs, in parts; `.ci/run` ends with it: `python -m tests.parts`.

Every test is collected by exactly one part: `check` and `on a bare machine` take what is not slow, each further part the
slow tests of its files, and the last one those of all other files, so that a new test is never without a part. Held
twice: tests/unit/test_parts.py evaluates the selections of everything that pytest collects, and a run of CI compares what
was collected with what was run (tests/conftest.py writes both down).

A run fails when a part fails, when a part cannot begin because it would not end within the time that there is, when a
test was run by no part, and when a test was skipped that should not have been (tests/skips.py). A part that fails does
not hold up the others, except `check`. What comes last are the times of the parts and the summaries that pytest gave.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.skips import STRICT

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 80.0  # a part begins only when it will likely have ended by then; CI itself has 90
HARD_MINUTES = 86.0  # what still runs then is ended
ENDING_S = 60.0  # for pytest to end what its tests have started
TAIL_BYTES = 500_000  # of the output of a part: more than its summary, and than what a failure says
SAID_MAX, SAID_CHARS = 12, 1_500  # lines of a failed part that are said again at the end, and characters of each
NOTES = "STREAMTASK_TEST_NOTES"  # a folder: tests/conftest.py writes down there what was collected and what was run
STARTED = "STREAMTASK_CI_STARTED"  # seconds since the epoch: installing counts as well
MARKS = frozenset({"acceptance", "broker", "docker", "slow"})
# Neither Docker nor Java is needed by what is not slow: it is tested where none can be found.
HIDDEN = ("docker", "docker-compose", "dockerd", "podman", "java", "javac", "javaw")
FORGOTTEN = ("JAVA_HOME", "DOCKER_HOST", "STREAMTASK_TEST_BOOTSTRAP_SERVERS", "STREAMTASK_BOOTSTRAP_SERVERS")
SUMMARY = re.compile(r"^=*\s*(?:\d+ [a-z]+,? ?)+in \d+\.\d+s.*$")
FAILURE = re.compile(r"^(?:E  |FAILED |ERROR )")  # pytest on why a test has failed


@dataclass(frozen=True)
class Part:
    """Some of the tests, and the command that runs them.

    minutes  that it takes on two cores, rounded up
    marks    which of the tests under `paths` it takes, as pytest's -m; "": it runs no tests
    command  instead of `make slow` with its paths
    bare     without Docker and Java on PATH
    judge    of the end of its output, line by line; says what is wrong, "" for nothing
    """

    name: str
    minutes: float
    marks: str = "slow"
    paths: tuple[str, ...] = ("tests",)
    without: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    bare: bool = False
    judge: Callable[[Sequence[str]], str] = field(default=lambda _: "")

    def takes(self, test: Collected) -> bool:
        """Whether it runs this test."""

        def under(folders: tuple[str, ...]) -> bool:
            return any(test.path == one or test.path.startswith(f"{one}/") for one in folders)

        chosen = self.marks and eval(self.marks, {"__builtins__": {}}, {name: name in test.marks for name in MARKS})
        return bool(chosen) and under(self.paths) and not under(self.without)

    def argv(self) -> list[str]:
        if self.command:
            return list(self.command)
        return ["make", "slow", f"PYTEST={shlex.join([*self.paths, *(f'--ignore={path}' for path in self.without)])}"]


def violations(lines: Sequence[str]) -> str:
    """What the demo's own audit found; the last line that it prints is JSON, warnings on stderr may follow."""
    last = next((line for line in reversed(lines) if line.startswith("{")), "")
    try:
        found = json.loads(last)["violations"]
    except (ValueError, LookupError, TypeError):
        return f"it does not say how many violations there are: {lines[-3:]}"
    return f"{found} violations" if found else ""


BARE = "(broker or acceptance) and not slow"
ACCEPTANCE = "tests/acceptance"
OF_FILES = (
    Part("a minute of chaos", 2, paths=("tests/chaos/test_short.py",)),
    Part("process handlers", 4, paths=(f"{ACCEPTANCE}/test_process_handlers.py",)),
    Part("other languages", 3, paths=(f"{ACCEPTANCE}/test_languages.py",)),
    Part("crash loops", 2, paths=(f"{ACCEPTANCE}/test_crash_loops.py",)),
    Part("refusals and stalls", 4, paths=(f"{ACCEPTANCE}/test_refusals.py", f"{ACCEPTANCE}/test_stalls.py")),
    Part("five minutes of chaos", 8, paths=("tests/chaos",), without=("tests/chaos/test_short.py",)),
    Part("recovery and failover", 4, paths=(f"{ACCEPTANCE}/test_recovery.py", f"{ACCEPTANCE}/test_failover.py")),
    Part("groups of suspects", 7, paths=(f"{ACCEPTANCE}/test_quarantine.py",)),
    Part("disasters and upgrades", 5, paths=(f"{ACCEPTANCE}/test_disasters.py", f"{ACCEPTANCE}/test_upgrades.py")),
    Part("the soak", 3, paths=(f"{ACCEPTANCE}/test_soak.py",)),
    Part("benchmarks, and the model", 4, paths=("tests/unit",)),
    Part("containers", 5, paths=("tests/containers",)),
)
PARTS = (
    Part("check", 5, "not broker and not acceptance and not slow", command=("make", "check")),
    Part("coverage of the core", 1, "", command=("make", "coverage")),
    Part("the demo", 1, "", command=("make", "demo", "DEMO=--exit"), bare=True, judge=violations),
    Part("on a bare machine", 8, BARE, command=("make", "test", f"PYTEST=-m {shlex.quote(BARE)}"), bare=True),
    *OF_FILES,
    Part("everything else", 13, without=tuple(path for part in OF_FILES for path in part.paths)),
)


# --- What there is to run ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """A test that pytest has found. name: its node id; marks: those of MARKS that it has."""

    name: str
    marks: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name}\t{','.join(sorted(self.marks))}"

    @classmethod
    def of(cls, line: str) -> Collected:
        name, _, marks = line.partition("\t")
        return cls(name, frozenset(filter(None, marks.split(","))))

    @property
    def path(self) -> str:
        return self.name.partition("::")[0]

    @property
    def function(self) -> str:
        return self.name.partition("::")[2].partition("[")[0].rpartition("::")[2]

    @property
    def case(self) -> str:
        """With its brackets; "" for a test without parameters."""
        return self.name[len(self.name.partition("[")[0]) :]


def note(kind: str, *lines: str) -> None:
    """Write lines down in the notes of this run of CI, if this is one. kind: collected or ran."""
    if folder := os.environ.get(NOTES):
        with (Path(folder) / f"{kind}-{os.getpid()}").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


def noted(notes: Path, kind: str) -> list[str]:
    return [line for file in sorted(notes.glob(f"{kind}-*")) for line in file.read_text().splitlines()]


def collect() -> list[Collected]:
    """Ask a pytest of its own for every test that there is: 6 s, and 16 if it had to rewrite every assert."""
    with tempfile.TemporaryDirectory(prefix="streamtask-ci-") as folder:
        options = ("--collect-only", "-q", "--assert=plain", "-p", "no:cacheprovider")
        command = [sys.executable, "-m", "pytest", *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(
            command, cwd=ROOT, env={**environment, NOTES: folder}, capture_output=True, text=True, check=False
        )
        found = [Collected.of(line) for line in noted(Path(folder), "collected")]
    assert found, f"nothing was collected: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"
    return found


# --- A part's surroundings --------------------------------------------------------------------------------------------


def hide(path: str, names: Collection[str], shadow: Path) -> str:
    """The same PATH, except for these names: a directory that holds one is replaced by links to everything else in it."""
    shown = []
    for number, directory in enumerate(path.split(os.pathsep)):
        if directory and any((Path(directory) / name).exists() for name in names):
            place = shadow / str(number)
            place.mkdir(parents=True)
            for file in Path(directory).iterdir():
                if file.name not in names:
                    (place / file.name).symlink_to(file)
            directory = str(place)
        shown.append(directory)
    return os.pathsep.join(shown)


def surroundings(part: Part, environment: Mapping[str, str], shadow: Path) -> dict[str, str]:
    """The environment in which it runs."""
    found = dict(environment)
    if part.bare:
        for name in FORGOTTEN:
            found.pop(name, None)
        found["PATH"] = hide(found["PATH"], HIDDEN, shadow)
        for name in HIDDEN:
            seen = shutil.which(name, path=found["PATH"])
            assert seen is None, f"{seen} is still on PATH"
    return found


@dataclass(frozen=True)
class Ran:
    """How a part went. wrong: why it failed, "" when it did not; said: what pytest said of that."""

    part: Part
    seconds: float
    wrong: str
    summary: str
    said: tuple[str, ...] = ()


def run(part: Part, environment: Mapping[str, str], seconds_max: float) -> Ran:
    """Run it, showing what it says as it says it; it is ended after seconds_max."""
    began = time.monotonic()
    process = subprocess.Popen(
        part.argv(), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
    )
    assert process.stdout is not None
    timers = [
        threading.Timer(max(0.0, seconds_max) + spare, os.killpg, (process.pid, number))
        for spare, number in ((0.0, signal.SIGINT), (ENDING_S, signal.SIGKILL))
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    tail = b""
    with process:
        while chunk := os.read(process.stdout.fileno(), 65_536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            tail = (tail + chunk)[-TAIL_BYTES:]
    code = process.wait()
    for timer in timers:
        timer.cancel()
    seconds = time.monotonic() - began
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    summary = next((line for line in reversed(lines) if SUMMARY.match(line)), "")
    wrong = part.judge(lines) if code == 0 else f"exit code {code}"
    if seconds > seconds_max:
        wrong = f"it was ended after {seconds / 60:.0f} minutes"
    said = tuple(line[:SAID_CHARS] for line in lines if FAILURE.match(line))[:SAID_MAX] if wrong else ()
    return Ran(part, seconds, wrong, summary, said)


# --- A run of CI ------------------------------------------------------------------------------------------------------


def accounts(notes: Path) -> list[str]:
    """What is wrong with what was run, going by the notes that the test runs have written."""
    collected = {Collected.of(line).name for line in noted(notes, "collected")}
    ran = Counter(noted(notes, "ran"))
    if not collected:
        return ["no run has collected everything: what was left out is not known"]
    never = sorted(collected - set(ran))
    twice = sorted(test for test, count in ran.items() if count > 1)
    return [f"run by no part: {test}" for test in never] + [f"run by several parts: {test}" for test in twice]


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def play(
    parts: Sequence[Part],
    environment: Mapping[str, str],
    scratch: Path,
    *,
    elapsed: Callable[[], float],
    runs: Callable[[Part, Mapping[str, str], float], Ran] = run,
) -> tuple[list[Ran], list[str]]:
    """Run the parts in their order: how each one went, and what is wrong.

    elapsed  seconds since CI began
    """
    ran: list[Ran] = []
    wrong: list[str] = []
    notes = scratch / "notes"
    notes.mkdir()
    for number, part in enumerate(parts):
        gone = elapsed()
        if gone + part.minutes * 60 > MINUTES * 60:
            left = f"It takes {part.minutes:g} minutes, and of {MINUTES:g} {gone / 60:.0f} have gone."
            wrong.append(f"left out: {part.name}. {left}")
            continue
        print(f"\n--- {clock(gone)}: {part.name}: {shlex.join(part.argv())}", flush=True)
        around = surroundings(part, {**environment, NOTES: str(notes)}, scratch / f"shadow-{number}")
        ran.append(runs(part, around, HARD_MINUTES * 60 - gone))
        print(f"--- {part.name}: {clock(ran[-1].seconds)} {ran[-1].wrong}", flush=True)
        if ran[-1].wrong:
            wrong.append(f"failed: {part.name}: {ran[-1].wrong}")
            if number == 0:  # the format, the types or the core: nothing that follows says more
                return ran, [*wrong, "the other parts were not run"]
    return ran, wrong + accounts(notes)


def tell(ran: Sequence[Ran], wrong: Sequence[str], seconds: float) -> None:
    """What comes last; pytest's own summaries at the end of it."""
    print(f"\nCI took {clock(seconds)} of {MINUTES:g} minutes; " + ("it has FAILED:" if wrong else "it passed."))
    for line in (*wrong, *(f"{one.part.name}: {line}" for one in ran for line in one.said)):
        print(f"  {line}")
    for one in ran:
        print(f"{clock(one.seconds):>6}  {one.part.name}")
    for one in ran:
        if one.summary:
            print(f"{one.part.name}: {one.summary.strip('= ')}")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parts", description="Run what CI runs.")
    parser.add_argument("--list", action="store_true", help="show the parts and their commands, run nothing")
    if parser.parse_args(argv).list:
        for part in PARTS:
            print(f"{part.minutes:4g} min  {part.name}: {shlex.join(part.argv())}")
        return 0
    began = float(os.environ.get(STARTED) or time.time())
    with tempfile.TemporaryDirectory(prefix="streamtask-ci-") as scratch:
        environment = {**os.environ, STRICT: "1"}
        ran, wrong = play(PARTS, environment, Path(scratch), elapsed=lambda: time.time() - began)
    tell(ran, wrong, time.time() - began)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
