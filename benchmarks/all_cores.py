"""Tasks a second of `streamtask worker` as a user starts it, on all cores, and of raw loops.

The worker has its defaults: a process per core, and the concurrency that each process has by itself. Its processes own
their shards before there is any request: all requests are in one transaction, whose commit starts the run. Timed from its
first to its last terminal event, by the timestamps of their records. Then the raw loop does the same requests, in as many
processes as the worker has, each with its share of the partitions, from the first request that any of them reads to the last
commit. It also does them in one process where that may be faster (`EITHER`); the fastest of all its runs counts. A run before
the first one warms the broker up.

A job is one of benchmarks.peers.apps.jobs: the same tasks that `--peers` compares. The raw loop gets fewer of them than the
worker where it does one after the other, so that it takes about as long.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.app import TASK_TYPES
from benchmarks.peers.apps.jobs import JOBS, MIXED, MIXTURE
from benchmarks.peers.catalogue import KNOWN, OURS, RAW
from benchmarks.scaling import Run, cpu_time_s, held_back, measured, owned
from benchmarks.stand import (
    LOOK_S,
    READY_S,
    ROOT,
    Failed,
    OtherProcess,
    default_worker,
    kafka,
    status_counts,
    topics,
    until_said,
)
from benchmarks.throughput import RAW_RUNS, beside_raw, fastest, follow, rate, raw_loop
from streamtask.config import Settings, TopicNames
from streamtask.kafka.admin import group_members

# Where the raw loop does nothing but read and write, one process beside the broker on two cores is faster than two.
EITHER = ("noop", "payload_20k")
STARTING = r'^\{.*"what": "starting".*\}$'
RAW_S = 400.0  # longer than a raw loop's own limit
ENDED_S, AGAIN_S = 10.0, 0.1  # the last few ends are committed a moment after their offsets are counted


def measure(
    bootstrap: str,
    *,
    tasks: int,
    concurrency: int,
    partitions: int,
    handler: str = "async",
    jobs: Sequence[str] = (),
) -> dict[str, Any]:
    """The figures; see the module.

    tasks        no-ops; of other jobs the worker and the raw loop get what takes them as long (peers/catalogue.py)
    concurrency  not used, the worker has its own
    handler      a name in TASK_TYPES
    jobs         one job in place of no-ops in this kind of handler; (): no-ops
    """
    measured(bootstrap, Run(value="warm-up", share=1 / 3), tasks, partitions)
    job = jobs[0] if jobs else JOBS[0]
    types = MIXTURE if job == MIXED else (job if jobs else TASK_TYPES[handler],)
    count = KNOWN[OURS].tasks(job, tasks)
    found, cpu_us, said = defaults(bootstrap, types, count, partitions)
    raws = raw_runs(bootstrap, job, KNOWN[RAW].tasks(job, tasks), partitions, said["processes"])
    return {
        **beside_raw(found, cpu_us, raws),
        "processes": said["processes"],
        "processes_by": said["processes_by"],
        "raw_processes": fastest(raws)["processes"],
        "concurrency": Settings.model_fields["concurrency"].default,
        "handler": None if jobs else handler,
        "job": job if jobs else None,
        "tasks": count,
        "partitions": partitions,
    }


def defaults(
    bootstrap: str, types: tuple[str, ...], tasks: int, partitions: int
) -> tuple[dict[str, float], float, dict[str, Any]]:
    """`streamtask worker` with its defaults, over so many tasks of these types in turn.

    Returns what `throughput.rate` found, µs of CPU a task of all processes, and the event `starting` of the worker.
    """
    run = Run(value="defaults", share=1, types=types)
    with topics(bootstrap, "bench", partitions) as names, held_back(bootstrap, names, run, tasks) as let_go:
        with default_worker(bootstrap, names.prefix) as process:
            said = json.loads(until_said(process, STARTING, READY_S)[0])
            _until_shared(bootstrap, names, process, said["processes"], partitions)
            before_s = cpu_time_s([process])
            let_go()
            follow(bootstrap, names, process, tasks)
            cpu_us = (cpu_time_s([process]) - before_s) / tasks * 1e6
            _until_ended(bootstrap, names, tasks)
        return rate(bootstrap, names, tasks), cpu_us, said


def raw_runs(bootstrap: str, job: str, tasks: int, partitions: int, processes: int) -> list[dict[str, Any]]:
    """Runs of the raw loop over so many requests of this job; see the module. processes: of the worker."""
    many = min(processes, partitions)
    run = Run(value=RAW, share=1, types=MIXTURE if job == MIXED else (job,))
    with topics(bootstrap, "bench", partitions) as names, topics(bootstrap, "raw", partitions) as raw:
        with held_back(bootstrap, names, run, tasks) as let_go:
            let_go()
        raws = []
        for _ in range(RAW_RUNS if job in EITHER else 1):
            if job in EITHER or many == 1:
                raws.append({**raw_loop(bootstrap, names, raw.status, tasks, job), "processes": 1})
            if many > 1:
                raws.append(raw_loops(bootstrap, names, raw.status, tasks, many, job))
    return raws


def _until_shared(bootstrap: str, names: TopicNames, process: OtherProcess, count: int, partitions: int) -> None:
    """Wait until `count` worker processes are in the group and have shared all shards among them."""
    deadline = time.monotonic() + READY_S
    seen: object = "no group yet"
    while True:
        process.check()
        if len(owned(process.said())) == partitions:
            # Only now: a broker that has never had a group does not answer this question (kafka/offset_queries.py).
            state, members = group_members(kafka(bootstrap), names)
            busy = [member for member in members if member.shards]
            seen = state, [len(member.shards) for member in members]
            if state == "stable" and len(members) == count and len(busy) == min(count, partitions):
                return
        if time.monotonic() > deadline:
            raise Failed(f"After {READY_S:g} s, {count} processes do not share {partitions} shards: {seen}.")
        time.sleep(LOOK_S)


def _until_ended(bootstrap: str, names: TopicNames, tasks: int) -> None:
    """Wait for the last terminal events; `rate` says what is wrong if they do not come."""
    deadline = time.monotonic() + ENDED_S
    while status_counts(bootstrap, names)["completed"] < tasks and time.monotonic() < deadline:
        time.sleep(AGAIN_S)


def raw_loops(
    bootstrap: str, names: TopicNames, status: str, tasks: int, count: int, job: str = "noop"
) -> dict[str, Any]:
    """What so many processes of benchmarks.raw do together. Raises Failed."""
    command = [sys.executable, "-m", "benchmarks.raw", bootstrap, names.prefix, status]
    with contextlib.ExitStack() as stack:
        loops = []
        for share in range(count):
            loop = subprocess.Popen(
                [*command, f"{share}/{count}", job],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            loops.append(stack.enter_context(loop))
            stack.callback(loop.kill)  # before it is waited for; one that has ended is not harmed
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()  # it is ready
        for loop in loops:
            _tell(loop)
        found = [_said(loop) for loop in loops]
    done = sum(one["tasks"] for one in found)
    if done != tasks:
        raise Failed(f"The raw loops saw {done} of {tasks} requests.")
    took_s = max(one["ended_s"] for one in found) - min(one["began_s"] for one in found if one["tasks"])
    return {
        "processes": count,
        "tasks_per_s": done / took_s,
        "cpu_us_per_task": sum(one["cpu_s"] for one in found) / done * 1e6,
        "event_bytes": sum(one["bytes"] for one in found) / done / 3,
    }


def _tell(loop: subprocess.Popen[str]) -> None:
    """Let a raw loop begin."""
    assert loop.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has failed: _said says why
        loop.stdin.write("begin\n")
        loop.stdin.flush()


def _said(loop: subprocess.Popen[str]) -> dict[str, Any]:
    """Its one line, when it has ended. Raises Failed."""
    out, complaint = loop.communicate(timeout=RAW_S)
    if loop.returncode:
        raise Failed(f"The raw loop failed:\n{complaint[-3_000:]}")
    found: dict[str, Any] = json.loads(out)
    return found
