"""`make bench-check`: are the ratios still what they were? `python -m benchmarks.check [NAME…] [--rounds N] [--record]`.

Each ratio stands beside its own limit in one run (raw loop, bare server, reader that keeps nothing), so that the machine
cancels out; what is left is noise. Every benchmark runs some rounds. A ratio has fallen when its median is 15 % below the
recorded one *and* no round reached the lowest recorded one. `--record` writes what was found to recorded.json, with the
machine, the versions and the commit. Exit code 1: one has fallen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.__main__ import parse, positive, run
from benchmarks.stand import broker, circumstances
from streamtask.errors import ConfigError, StreamtaskError

RECORDED = Path(__file__).with_name("recorded.json")
# What each name runs.
RUNS = {
    "throughput": ("throughput",),
    "defaults": ("throughput", "--defaults"),
    **{job: ("throughput", "--defaults", "--jobs", job) for job in ("cpu_1ms", "payload_20k", "mixed")},
    "submit": ("submit",),
    "restore": ("restore",),
    "lookup": ("lookup",),
}
NAMES = tuple(RUNS)
ROUNDS = 3
FALL = 0.15


def fallen(recorded: Mapping[str, Sequence[float]], found: Mapping[str, Sequence[float]]) -> list[str]:
    """A line for each benchmark whose ratio has fallen; see the module. What was never recorded has not."""
    lines = []
    for name, ratios in found.items():
        before = recorded.get(name)
        if not before:
            continue
        was, now = statistics.median(before), statistics.median(ratios)
        if now < (1 - FALL) * was and max(ratios) < min(before):
            lines.append(f"{name}: {now:.3f} of its limit; it was {was:.3f} ({now / was - 1:+.0%})")
    return lines


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description="Compare ratios to recorded ones.")
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
    parser.add_argument("--record", action="store_true", help="keep what is found as what it is to be")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: there is {', '.join(NAMES)}")
    try:
        recorded = _recorded() if not options.record else {}
        found = _measure(options.names, options.rounds)
    except StreamtaskError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    if options.record:
        RECORDED.write_text(json.dumps({"ratios": found, **circumstances()}, indent=1) + "\n")
        return 0
    lines = fallen(recorded, found)
    if unknown := found.keys() - recorded.keys():
        print(f"Never recorded: {', '.join(sorted(unknown))}.")
    print("\n".join(lines) or "No ratio has fallen.")
    return 1 if lines else 0


def _recorded() -> dict[str, list[float]]:
    try:
        held: dict[str, Any] = json.loads(RECORDED.read_text())
    except OSError:
        raise ConfigError(f"There is no {RECORDED}: record one first, with --record.") from None
    ratios: dict[str, list[float]] = held["ratios"]
    return ratios


def _measure(names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Round after round, so that what the machine does for a while does not strike one benchmark alone."""
    found: dict[str, list[float]] = {name: [] for name in names}
    with broker(None) as bootstrap:
        for number in range(rounds):
            for name in names:
                ratio = float(run(parse([*RUNS[name], "--bootstrap", bootstrap]))["ratio"])
                found[name].append(ratio)
                print(f"round {number + 1}: {name} {ratio:.3f} of its limit", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
