"""`python -m tests.chaos --seed N --minutes M [--faults a,b] [--brokers 1|3]`: exit code 1 when a promise was broken."""

from __future__ import annotations

import argparse
import random
import shlex
import sys

from rich.console import Console

from tests.chaos.faults import table
from tests.chaos.run import run
from tests.chaos.schedule import possible
from tests.chaos.summary import summary

SEED_MAX = 1_000_000
WIDTH = 140  # of a log


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Break things on purpose. docs/chaos.md")
    parser.add_argument("--seed", type=int, help="the same faults again; none: a random one, which is printed")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="of faults; starting and finishing come on top (20)"
    )
    parser.add_argument("--faults", default="", help="only these, separated by commas")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=3)
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--list", action="store_true", help="list the faults, and exit")
    options = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)
    if options.list:
        for fault in table().values():
            console.print(f"{fault.name:<20} {fault.does}; undone by: {fault.undone}", markup=False)
        return 0
    only = tuple(filter(None, options.faults.split(",")))
    try:
        possible(options.brokers, only)
    except ValueError as error:
        parser.error(str(error))
    seed = random.randrange(SEED_MAX) if options.seed is None else options.seed
    again = ["python", "-m", "tests.chaos", "--seed", str(seed), "--minutes", f"{options.minutes:g}"]
    again += ["--brokers", str(options.brokers), *(["--faults", options.faults] if only else [])]
    again += ["--rate", f"{options.rate:g}"] if options.rate is not None else []
    console.print(f"seed {seed}  ({shlex.join(again)})", markup=False)

    def tell(line: str) -> None:
        console.print(line, markup=False)

    outcome = run(seed, options.minutes, options.brokers, only, rate=options.rate, tell=tell)
    summary(console, outcome, shlex.join(again))
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
