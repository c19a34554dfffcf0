"""`python -m tests.sim`: many seeds, or one again."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from .seeds import Result, SeedFailed, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="play this one only")
    parser.add_argument("--verbose", action="store_true", help="print every step")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    options = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    began, results, failed = time.perf_counter(), list[Result](), list[int]()
    for seed in seeds:
        try:
            results.append(run(seed, verbose=options.verbose))
        except SeedFailed as why:
            failed.append(seed)
            print(str(why) if not options.keep_going else str(why).split("\nlast steps")[0], flush=True)
            if not options.keep_going:
                break
    print(summary(results, failed, time.perf_counter() - began))
    return 1 if failed else 0


def summary(results: list[Result], failed: list[int], wall_s: float) -> str:
    struck: Counter[str] = Counter()
    for result in results:
        struck.update(result.struck)
    count = len(results) + len(failed)
    sums = {
        name: sum(getattr(r, name) for r in results)
        for name in ("requests", "executions", "events", "deaths", "moments")
    }
    figures = ", ".join(f"{value} {name}" for name, value in sums.items())
    return (
        f"{len(results)} of {count} seeds hold ({wall_s:.1f} s, {1000 * wall_s / max(count, 1):.0f} ms each): {figures}\n"
        f"faults: {', '.join(f'{value} {name}' for name, value in struck.most_common()) or 'none'}"
        + (f"\nfailed: {failed}" if failed else "")
    )


if __name__ == "__main__":
    sys.exit(main())
