"""`python -m benchmarks NAME`: says who measured, measures, says what was found. See each benchmark's module."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    audit,
    cancel,
    garbage,
    latency,
    lookup,
    memory,
    restore,
    rooms,
    submit,
    subscribers,
    throughput,
    visible,
)
from benchmarks.app import TASK_TYPES
from benchmarks.peers import catalogue, drive, report
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
    "subscribers": (subscribers.measure, 10_000),
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
    parser.add_argument(
        "--peers",
        nargs="?",
        type=_names,
        const=(),
        metavar="NAME,…",
        help="of throughput: the same jobs on other task systems, about a quarter of an hour; with names only on these: "
        + ", ".join(peer.name for peer in catalogue.PEERS),
    )
    parser.add_argument(
        "--jobs", type=_names, default=(), metavar="JOB,…", help=f"of --peers: {', '.join(catalogue.JOBS)} (all)"
    )
    parser.add_argument(
        "--chart", type=Path, metavar="FILE.png", help="of --peers: draw the figures (needs matplotlib)"
    )
    options = parser.parse_args(argv)
    if options.peers is not None and options.name != "throughput":
        parser.error("--peers is of throughput: python -m benchmarks throughput --peers")
    if options.peers is None and (options.chart or options.jobs):
        parser.error("--chart and --jobs are of throughput --peers")
    if unknown := set(options.jobs) - set(catalogue.JOBS):
        parser.error(f"--jobs {','.join(sorted(unknown))}: there are {', '.join(catalogue.JOBS)}")
    return options


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number from 1")
    return value


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and put the figures beside who measured them."""
    measure, tasks = BENCHMARKS[options.name]
    given = OPTIONS.get(options.name, ())
    if options.peers is not None:
        measure, given = drive.measure, ("peers", "jobs")
    about = circumstances()
    with contextlib.nullcontext("") if options.name in WITHOUT_BROKER else broker(options.bootstrap) as bootstrap:
        found = measure(
            bootstrap,
            tasks=options.tasks or tasks,
            concurrency=options.concurrency,
            partitions=options.partitions,
            **{name: getattr(options, name) for name in given},
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
        return _main(options)
    except StreamtaskError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    if options.chart:
        report.drawing()  # a quarter of an hour is not measured for a chart that cannot be drawn
    found = run(options)
    print(report.text(found) if options.peers is not None else table(found))
    if options.chart:
        report.draw(found, options.chart)
    if options.json:
        print(json.dumps(found))
    return 1 if found.get("grown") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
