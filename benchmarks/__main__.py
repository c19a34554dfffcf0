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
    all_cores,
    audit,
    cancel,
    flame,
    garbage,
    in_flight,
    latency,
    lookup,
    memory,
    payloads,
    priority,
    restore,
    rooms,
    scaling,
    start,
    submit,
    subscribers,
    takeover,
    throughput,
    visible,
)
from benchmarks.app import TASK_TYPES
from benchmarks.peers import catalogue, drive, publish, report
from benchmarks.soak import measure as soak
from benchmarks.stand import PARTITIONS, broker, circumstances
from benchmarks.warm import warm
from streamtask.errors import ConfigError, StreamtaskError

BENCHMARKS: dict[str, tuple[Callable[..., dict[str, Any]], int]] = {
    "throughput": (throughput.measure, 60_000),
    "scaling": (scaling.measure, 60_000),
    "garbage": (garbage.measure, 60_000),
    "latency": (latency.measure, 400),
    "priority": (priority.measure, 1_000_000),
    "start": (start.measure, 5),
    "cancel": (cancel.measure, 200),
    "submit": (submit.measure, 200_000),
    "restore": (restore.measure, 333_333),
    "lookup": (lookup.measure, 50_000),
    "visible": (visible.measure, 1_000),
    "subscribers": (subscribers.measure, 10_000),
    "flame": (flame.measure, 100_000),
    "rooms": (rooms.measure, 60_000),
    "audit": (audit.measure, 200_000),
    "memory": (memory.measure, memory.TASKS),
    "takeover": (takeover.measure, 10),
    "soak": (soak.measure, 0),
}
WITHOUT_BROKER = ("rooms", "audit", "soak", "takeover")  # the last two have their own
WARMED = (
    "latency",
    "priority",
    "start",
    "cancel",
    "lookup",
    "visible",
    "subscribers",
)  # timed in milliseconds: see warm.py
OPTIONS = {  # that others do not have
    "throughput": ("handler",),
    "scaling": ("axis",),
    "latency": ("rate",),
    "memory": ("in_flight", "payload", "result"),
    "flame": ("handler", "out"),
    "soak": ("minutes", "rate", "keep"),
    "takeover": ("brokers", "rate"),
}
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"scaling": scaling.text}  # of what is more than a line a figure
ABOUT = ("benchmark", "machine", "versions", "commit")
CONCURRENCY = 1_000
ALWAYS = ("tasks_per_s", "raw_tasks_per_s", "ratio", "p50_ms", "p99_ms")  # null where not measured


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Exits with code 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure streamtask on a local Kafka.")
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--concurrency", type=positive, default=CONCURRENCY, help="handlers at once (1000)")
    parser.add_argument(
        "--tasks",
        type=positive,
        help=", ".join(f"{name} {tasks}" for name, (_, tasks) in BENCHMARKS.items() if tasks),
    )
    parser.add_argument("--partitions", type=positive, default=PARTITIONS, help=f"of every topic ({PARTITIONS})")
    parser.add_argument("--bootstrap", help="measure on this broker (host:port); none: one is started")
    parser.add_argument("--handler", choices=sorted(TASK_TYPES), default="async", help="of throughput, flame (async)")
    parser.add_argument(
        "--defaults",
        action="store_true",
        help="of throughput: `streamtask worker` on all cores with its defaults, beside raw loops",
    )
    parser.add_argument("--axis", choices=scaling.AXES, help="of scaling: this one alone (all)")
    parser.add_argument(
        "--in-flight",
        nargs="?",
        type=positive,
        const=in_flight.MANY,
        metavar="TASKS",
        help="of memory: what each of so many tasks in flight takes (10000)",
    )
    parser.add_argument("--payload", type=_bytes, metavar="BYTES", help="of memory: requests of this size (17k, 900k)")
    parser.add_argument("--result", type=_bytes, metavar="BYTES", help="of memory: results of this size (900k)")
    parser.add_argument("--out", type=Path, metavar="FILE.svg", help="of flame: the graph; .txt: the stacks")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the soak (60)")
    parser.add_argument(
        "--rate",
        type=_rate,
        help="tasks a second: of the soak (300), of latency (none: one after the other), of takeover for each partition (20)",
    )
    parser.add_argument(
        "--brokers", type=_counts, metavar="N,…", help="of takeover: how many brokers a cluster has (1,3)"
    )
    parser.add_argument("--keep", metavar="DIRECTORY", help="of the soak: where logs and samples are to stay")
    _add_peers(parser)
    options = parser.parse_args(argv)
    _refuse_combinations(parser, options)
    try:
        _check(options)
    except StreamtaskError as error:
        parser.error(str(error))
    return options


def _add_peers(parser: argparse.ArgumentParser) -> None:
    """The options of the comparison with other task systems."""
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
        "--jobs",
        type=_names,
        default=(),
        metavar="JOB,…",
        help=f"of --peers, and one of --defaults: {', '.join(catalogue.JOBS)} (of --peers all but the last)",
    )
    parser.add_argument(
        "--rounds", type=positive, default=1, help="of --peers: how many times all of it is measured (1)"
    )
    parser.add_argument(
        "--write", action="store_true", help="of --peers: put the tables into README.md and docs/performance.md"
    )
    parser.add_argument(
        "--chart", type=Path, metavar="FILE.png", help="of --peers: draw the figures (needs matplotlib)"
    )


def _refuse_combinations(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with code 2 when options do not belong together, or not to this benchmark."""
    if options.peers is not None and options.name != "throughput":
        parser.error("--peers is of throughput: python -m benchmarks throughput --peers")
    if options.peers is None and (options.chart or options.write or options.rounds > 1):
        parser.error("--chart, --rounds and --write are of throughput --peers")
    if options.jobs and options.peers is None and not (options.defaults and len(options.jobs) == 1):
        parser.error("--jobs is of throughput --peers; --defaults takes one job")
    if options.jobs and options.handler != "async":
        parser.error("--jobs has its own kinds of handlers: leave --handler out")
    if options.write and (options.peers or options.jobs or options.tasks):
        parser.error("--write publishes all of it: leave --jobs, --tasks and the names of --peers out")
    if options.defaults and (options.name != "throughput" or options.peers is not None):
        parser.error("--defaults is of throughput without --peers: python -m benchmarks throughput --defaults")
    if options.defaults and (options.concurrency, options.partitions) != (CONCURRENCY, PARTITIONS):
        parser.error("--defaults takes neither --concurrency nor --partitions: it measures their defaults")
    if unknown := set(options.jobs) - set(catalogue.JOBS):
        parser.error(f"--jobs {','.join(sorted(unknown))}: there are {', '.join(catalogue.JOBS)}")


def _check(options: argparse.Namespace) -> None:
    """Whatever can be known before a broker is started and minutes are measured. Raises ConfigError, Failed."""
    catalogue.chosen(options.peers or ())
    if options.name == "flame":
        flame.find_spy()
    for name in ("out", "chart"):
        file: Path | None = getattr(options, name)
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"--{name} {file}: the folder {file.parent} does not exist.")
    if options.name == "soak" and not options.minutes > 0:
        raise ConfigError(f"--minutes {options.minutes:g}: give more than 0.")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(text: str) -> tuple[int, ...]:
    return tuple(positive(count) for count in _names(text))


def _bytes(text: str) -> int:
    try:
        return payloads.size_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError("more than 0")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number from 1")
    return value


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and put the figures beside who measured them."""
    measure, tasks = BENCHMARKS[options.name]
    if options.name == "latency" and options.rate:
        tasks = round(options.rate * latency.SECONDS)
    given = OPTIONS.get(options.name, ())
    if options.peers is not None:
        measure, given = drive.measure, ("peers", "jobs", "rounds")
    if options.defaults:
        measure, given = all_cores.measure, ("handler", "jobs")
    about = circumstances()
    with contextlib.nullcontext("") if options.name in WITHOUT_BROKER else broker(options.bootstrap) as bootstrap:
        if not options.bootstrap and (options.name in WARMED or options.peers is not None):
            warm(bootstrap)
        found = measure(
            bootstrap,
            tasks=options.tasks or tasks,
            concurrency=options.concurrency,
            partitions=options.partitions,
            **{name: held for name in given if (held := getattr(options, name)) is not None},
        )
    return {"benchmark": options.name, **dict.fromkeys(ALWAYS), "concurrency": options.concurrency, **found, **about}


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    shown = {name: value for name, value in found.items() if value is not None}
    return "\n".join(f"{name:22}{_text(value)}" for name, value in shown.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {held}" for name, held in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shown(options: argparse.Namespace, found: dict[str, Any]) -> str:
    if options.peers is not None:
        return report.text(found)
    if options.name in TABLES:
        return f"{TABLES[options.name](found)}\n\n{table({name: found[name] for name in ABOUT})}"
    return table(found)


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
    print(_shown(options, found))
    if options.peers is not None:
        print(f"\n{publish.page(found)}")
    if options.write:
        publish.write(found)
    if options.chart:
        report.draw(found, options.chart)
    if options.json:
        print(json.dumps(found))
    return 1 if found.get("grown") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
