"""Property tests with new seeds, for as long as it is given: `make fuzz FUZZ=30` (minutes).

`make test` draws the same examples in every run (see conftest.py), so it cannot meet what nobody has met yet; this can.
Rounds of every property test follow each other, each under a seed of its own, until one finds something or the time is
over; the round that has begun by then is finished. A find ends it with exit code 1 and with what plays it again: the
seed of the round, and, in pytest's own output, the `@reproduce_failure(...)` line of each failing test.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Sequence

SEED_MAX = 2**32
TEST_S = 900  # the time limit of one test: three times as many examples as usual
FOUND = 1  # pytest's exit code when tests failed, and ours


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    until = time.monotonic() + options.minutes * 60
    rounds = 0
    while time.monotonic() < until or not rounds:
        seed = options.seed if options.seed is not None else random.randrange(SEED_MAX)
        command = [sys.executable, "-m", "pytest", *_pytest(options, seed)]
        print(f"fuzz: seed {seed}", flush=True)
        code = subprocess.run(command, check=False).returncode
        rounds += 1
        if code == FOUND:
            print(f"fuzz: found with seed {seed}. To play it again:\n  python -m tests.fuzz --seed {seed}", flush=True)
            print("or put the @reproduce_failure(...) line that stands above on the test that failed.", flush=True)
            return FOUND
        if code != 0:
            print(f"fuzz: pytest ended with exit code {code}", flush=True)
            return code
        if options.seed is not None:
            break
    print(f"fuzz: nothing found, rounds: {rounds}", flush=True)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="for how long rounds begin (10)")
    parser.add_argument("--seed", type=int, help="one round under this seed, as a find named it")
    parser.add_argument("--workers", type=int, default=2, help="of pytest-xdist")
    parser.add_argument("paths", nargs="*", default=["tests"], help="the property tests of these files only")
    return parser.parse_args(arguments)


def _pytest(options: argparse.Namespace, seed: int) -> list[str]:
    chosen = ["-m", "hypothesis and not slow", "--hypothesis-profile", "fuzz", "--hypothesis-seed", str(seed)]
    return ["-q", "-n", str(options.workers), "--timeout", str(TEST_S), *chosen, *options.paths]


if __name__ == "__main__":
    sys.exit(main())
