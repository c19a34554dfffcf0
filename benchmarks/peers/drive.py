"""The same jobs on every peer, one after the other: for each job all peers in the same minutes, on this machine alone.

For each: the backlog is put in and the worker is started on all cores. On Kafka, the backlog is a transaction that is
committed when the processes of the worker share the partitions, so that none of them takes work from another in the middle.
The time runs until the last stored result, from that of the first round of all places (report.rate). A result counts on Kafka
when the broker stored it, on Redis when the handler was done, as its stored result says. Figures are refused unless there is
exactly one result for each task; the peer is left out of that job then, with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import confluent_kafka

from benchmarks import all_cores
from benchmarks.peers import environments, report, stores
from benchmarks.peers.apps.jobs import MIXED, MIXTURE, VARIABLE, Run
from benchmarks.peers.catalogue import JOBS, KNOWN, OURS, RAW, TABLE, Known, Peer, chosen
from benchmarks.peers.report import Row
from benchmarks.peers.stores import Ends
from benchmarks.stand import Failed, OtherProcess
from streamtask import __version__
from streamtask.config import Settings
from streamtask.config.container import cores
from streamtask.errors import StreamtaskError

APPS = Path(__file__).parent / "apps"
STOP_S = 3.0  # all results are stored by then
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CALL_S = 180.0  # submitting, or waiting and reading back


def measure(
    bootstrap: str,
    *,
    tasks: int,
    concurrency: int,
    partitions: int,
    peers: Sequence[str] = (),
    jobs: Sequence[str] = (),
    rounds: int = 1,
) -> dict[str, Any]:
    """The rows; see the module.

    tasks        no-ops of streamtask; the others get what takes them as long (catalogue.py)
    concurrency  not used: streamtask has its own, and the catalogue those of the peers
    peers        names, as catalogue.chosen takes them; () is all
    jobs         some of catalogue.JOBS; () is those of the table
    rounds       how many times all of it is measured, one round after the other
    """
    taking_part, left_out = _environments(chosen(peers))
    jobs = jobs or TABLE
    rows: list[Row] = []
    for number in range(1, rounds + 1):
        found: list[Row] = []
        for job in jobs:
            found += _known_tried(bootstrap, job, tasks, partitions)
            for peer, python in taking_part.items():
                found.append(_row(peer, python, job, *_tried(bootstrap, peer, python, job, tasks, partitions)))
                _say(found[-1])
        found += [_row(peer, None, job, 0, None, reason) for peer, reason in left_out.items() for job in jobs]
        rows += report.with_ratios(replace(row, round=number) for row in found)
    ours = report.median(rows, OURS, JOBS[0])
    raw = report.median(rows, RAW, JOBS[0])
    return {
        "tasks_per_s": ours and ours.per_s,
        "raw_tasks_per_s": raw and raw.per_s,
        "ratio": ours and ours.ratio_raw,
        "concurrency": Settings.model_fields["concurrency"].default,
        "tasks": tasks,
        "partitions": partitions,
        "rounds": rounds,
        "redis": _redis_version(),
        "rows": [asdict(row) for row in rows],
    }


def _known_tried(bootstrap: str, job: str, tasks: int, partitions: int) -> list[Row]:
    """The rows of the raw loop and of streamtask: without figures and with the reason if one of them fails."""
    try:
        return _known(bootstrap, job, tasks, partitions)
    except StreamtaskError as error:
        return [_known_row(known, job, 0, None, f"{job}: {error}") for known in KNOWN.values()]


def _say(row: Row) -> None:
    figure = row.left_out if row.tasks_per_s is None else f"{row.tasks_per_s:,}/s"
    print(f"{row.job}, {row.peer}: {figure}", file=sys.stderr, flush=True)


def _environments(peers: Sequence[Peer]) -> tuple[dict[Peer, Path], dict[Peer, str]]:
    """({peer: its Python}, {peer: why it is left out}). Made before anything is measured."""
    pythons: dict[Peer, Path] = {}
    left_out: dict[Peer, str] = {}
    for peer in peers:
        try:
            if peer.store == "redis":
                environments.python_of("redis")
            pythons[peer] = environments.python_of(peer.environment, peer.python)
        except StreamtaskError as error:
            left_out[peer] = str(error)
    return pythons, left_out


def _redis_version() -> str | None:
    with contextlib.suppress(StreamtaskError, OSError, subprocess.SubprocessError):
        return stores.redis_version(stores.redis_binary(environments.python_of("redis")))
    return None


def _row(peer: Peer, python: Path | None, job: str, tasks: int, tasks_per_s: int | None, left_out: str | None) -> Row:
    version = f"{peer.package} {environments.pinned(peer.environment, peer.package)}"
    if python:
        version += f", Python {environments.version_of(python)}"
    return _row_of(peer, version, job, tasks, tasks_per_s, left_out)


def _row_of(who: Known, version: str, job: str, tasks: int, tasks_per_s: int | None, left_out: str | None) -> Row:
    return Row(
        peer=who.name,
        title=who.title,
        guarantee=who.guarantee,
        version=version,
        job=job,
        configuration=who.configuration,
        durability=who.durability,
        tasks=tasks,
        tasks_per_s=tasks_per_s,
        left_out=left_out,
    )


# --- The raw loop and streamtask --------------------------------------------------------------------------------------


def _known(bootstrap: str, job: str, tasks: int, partitions: int) -> list[Row]:
    """Both, over the same kind of requests."""
    counts = {name: known.tasks(job, tasks) for name, known in KNOWN.items()}
    types = MIXTURE if job == MIXED else (job,)
    raws = all_cores.raw_runs(bootstrap, job, counts[RAW], partitions, cores().count)
    ours, _cpu_us, _said = all_cores.defaults(bootstrap, types, counts[OURS], partitions)
    rows = [
        _known_row(KNOWN[RAW], job, counts[RAW], round(max(found["tasks_per_s"] for found in raws))),
        _known_row(KNOWN[OURS], job, counts[OURS], round(ours["tasks_per_s"])),
    ]
    for row in rows:
        _say(row)
    return rows


def _known_row(known: Known, job: str, tasks: int, tasks_per_s: int | None, left_out: str | None = None) -> Row:
    ours = known.name == OURS
    version = f"streamtask {__version__}" if ours else f"confluent-kafka {confluent_kafka.__version__}"
    return _row_of(known, version, job, tasks, tasks_per_s, left_out)


# --- A peer -----------------------------------------------------------------------------------------------------------


def _tried(
    bootstrap: str, peer: Peer, python: Path, job: str, tasks: int, partitions: int
) -> tuple[int, int | None, str | None]:
    """(tasks, tasks a second, None), else (tasks, None, why not): one that fails does not end the others."""
    count = peer.tasks(job, tasks)
    try:
        return count, max(_measured(bootstrap, peer, python, job, count, partitions)), None
    except (StreamtaskError, OSError, subprocess.SubprocessError) as error:
        return count, None, f"{job}: {error}"


def _measured(bootstrap: str, peer: Peer, python: Path, job: str, tasks: int, partitions: int) -> Iterator[int]:
    """Tasks a second with each number of processes that is tried."""
    for processes in peer.processes(job):
        if peer.store == "redis":
            ends = _on_redis(peer, python, job, tasks, processes)
        else:
            ends = _on_kafka(bootstrap, peer, python, job, tasks, processes, partitions)
        yield round(report.rate(ends, tasks, peer.concurrency * processes))


def _on_redis(peer: Peer, python: Path, job: str, tasks: int, processes: int) -> Ends:
    with stores.redis(stores.redis_binary(environments.python_of("redis"))) as address:
        run = _run_of(peer, job, tasks, processes, address)
        _call(python, peer, run, "submit")
        with _worker(python, peer, run) as process:
            found = json.loads(_call(python, peer, run, "results").splitlines()[-1])
            if found["count"] < tasks:
                _check(process, peer)  # first of all: why did it end?
            return Ends(found["count"], found["ends_ms"], _trouble(process.said()))


def _on_kafka(bootstrap: str, peer: Peer, python: Path, job: str, tasks: int, processes: int, partitions: int) -> Ends:
    with (
        stores.peer_topics(bootstrap, partitions) as names,
        stores.backlog(bootstrap, names.requests, job, tasks, committed=peer.committed) as let_go,
    ):
        run = _run_of(peer, job, tasks, processes, bootstrap, group=f"{peer.name}-{names.requests}", **names._asdict())
        with _worker(python, peer, run) as process:
            members = run.processes if peer.members else 1
            stores.until_shared(bootstrap, run.group, partitions, members, lambda: _check(process, peer))
            let_go()
            stores.wait_for_results(bootstrap, names.results, tasks, lambda: _check(process, peer))
            trouble = _trouble(process.said())
        return stores.stored(bootstrap, names.results)._replace(trouble=trouble)  # the worker has flushed by now


def _run_of(peer: Peer, job: str, tasks: int, processes: int, address: str, **more: str) -> Run:
    return Run(
        job=job,
        tasks=tasks,
        address=address,
        mode=peer.mode,
        processes=processes,
        concurrency=peer.concurrency,
        **more,
    )


def _environment(run: Run) -> dict[str, str]:
    """For a script: its own folder is what it imports from, and nothing of this project's settings is in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMTASK_", "PYTHON"))}
    return kept | {"PYTHONPATH": str(APPS), "PYTHONUNBUFFERED": "1", VARIABLE: json.dumps(asdict(run))}


def _call(python: Path, peer: Peer, run: Run, command: str) -> str:
    """What the script says. Raises Failed."""
    arguments = [str(python), str(APPS / f"{peer.script}.py"), command]
    with tempfile.TemporaryDirectory(prefix="streamtask-peer-") as directory:
        said = subprocess.run(
            arguments, cwd=directory, env=_environment(run), capture_output=True, text=True, timeout=CALL_S
        )
    if said.returncode:
        raise Failed(_ended(peer, command, said.returncode, said.stderr))
    return said.stdout


def _check(process: OtherProcess, peer: Peer) -> None:
    """Raises Failed when the worker has ended."""
    if (code := process.process.poll()) is not None:
        raise Failed(_ended(peer, "work", code, process.said()))


def _ended(peer: Peer, command: str, code: int, said: str) -> str:
    lines = [line.strip() for line in COLOURS.sub("", said).splitlines() if line.strip()] or ["it said nothing"]
    return f"{peer.script} {command} ended with exit code {code}: {_trouble(said) or lines[-1]}"


def _trouble(said: str) -> str:
    """The last line that names an error, "" when there is none."""
    lines = [line.strip() for line in COLOURS.sub("", said).splitlines() if "Error" in line]
    return lines[-1] if lines else ""


@contextlib.contextmanager
def _worker(python: Path, peer: Peer, run: Run) -> Iterator[OtherProcess]:
    """The peer's worker, with all the processes that it starts; they end with this."""
    with tempfile.TemporaryDirectory(prefix="streamtask-peer-", ignore_cleanup_errors=True) as directory:
        log = Path(directory) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(python), str(APPS / f"{peer.script}.py"), "work"],
                cwd=directory,
                env=_environment(run),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            yield OtherProcess(process, log)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the first, and what of its group is left after STOP_S, SIGKILL to all."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
