"""`python -m benchmarks NAME`: says who measured, measures, says what was found. See each benchmark's module."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import audit, cancel, garbage, latency, lookup, memory, restore, rooms, submit, throughput, visible
from benchmarks.app import TASK_TYPES
from benchmarks.soak import measure as soak
from benchmarks.stand import PARTITIONS, broker, circumstances
from streamtask.errors import StreamtaskError

BENCHMARKS: dict[str, tuple[Callable[..., dict[str, Any]], int]] = {
    "throughput": (throughput.measure, 60_000),
    "garbage": (garbage.measure, 60_000),
    "latency": (latency.measure, 400),
    "cancel": (cancel.measure, 200),
    "submit": (submit.measure, 200_000),
    "restore": (restore.measure, 333_333),
    "lookup": (lookup.measure, 50_000),
    "visible": (visible.measure, 1_000),
    "rooms": (rooms.measure, 60_000),
    "audit": (audit.measure, 200_000),
    "memory": (memory.measure, 1_000_000),
    "soak": (soak.measure, 0),
}
WITHOUT_BROKER = ("rooms", "audit", "soak")  # the soak's is one of its own
OPTIONS = {"throughput": ("handler",), "soak": ("minutes", "rate", "keep")}  # that others do not have
CONCURRENCY = 1_000
ALWAYS = ("tasks_per_s", "raw_tasks_per_s", "ratio", "p50_ms", "p99_ms")  # null where not measured


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Exits with code 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure streamtask on a local Kafka.")
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--concurrency", type=_positive, default=CONCURRENCY, help="handlers at once (1000)")
    parser.add_argument(
        "--tasks",
        type=_positive,
        help=", ".join(f"{name} {tasks}" for name, (_, tasks) in BENCHMARKS.items() if tasks),
    )
    parser.add_argument("--partitions", type=_positive, default=PARTITIONS, help="of every topic (12)")
    parser.add_argument("--bootstrap", help="measure on this broker (host:port); none: one is started")
    parser.add_argument("--handler", choices=sorted(TASK_TYPES), default="async", help="kind, of throughput (async)")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the soak (60)")
    parser.add_argument("--rate", type=float, default=300.0, help="of the soak: requests a second (300)")
    parser.add_argument("--keep", metavar="DIRECTORY", help="of the soak: where logs and samples are to stay")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number from 1")
    return value


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and put the figures beside who measured them."""
    measure, tasks = BENCHMARKS[options.name]
    about = circumstances()
    with contextlib.nullcontext("") if options.name in WITHOUT_BROKER else broker(options.bootstrap) as bootstrap:
        found = measure(
            bootstrap,
            tasks=options.tasks or tasks,
            concurrency=options.concurrency,
            partitions=options.partitions,
            **{name: getattr(options, name) for name in OPTIONS.get(options.name, ())},
        )
    return {"benchmark": options.name, **dict.fromkeys(ALWAYS), **found, "concurrency": options.concurrency, **about}


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    shown = {name: value for name, value in found.items() if value is not None}
    return "\n".join(f"{name:22}{_text(value)}" for name, value in shown.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {held}" for name, held in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    try:
        found = run(options)
    except StreamtaskError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print(table(found))
    if options.json:
        print(json.dumps(found))
    return 1 if found.get("grown") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
