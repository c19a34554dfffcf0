"""What the scripts of all peers share: the run they are in, the jobs, and how a backlog is put in and read back.

Standard library only: this is imported in each peer's own environment, where nothing else of the project is. The driver
says what to do by argument (`submit`, `work`, `results`) and which run it is by one environment variable.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

VARIABLE = "STREAMTASK_PEER_RUN"
NUMBER = "STREAMTASK_PEER_PROCESS"
PAYLOAD_BYTES = 20_000
LOOK_S = 0.2
STALL_S = 20.0  # without any further result
LOOKED_AT = 500  # keys in one question

Number = int  # of a task in its run, 0..tasks-1; it is the parameter `size` and the result's `size`


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement of one peer."""

    job: str  # a name in JOBS
    tasks: int
    address: str  # redis://host:port/0, or the bootstrap servers
    mode: str = ""  # which of the peer's own ways
    processes: int = 1
    concurrency: int = 1  # of each process
    group: str = ""  # of consumers
    requests: str = ""  # topics; "" where the store is Redis
    results: str = ""


def this_run() -> Run:
    return Run(**json.loads(os.environ[VARIABLE]))


# --- The jobs ---------------------------------------------------------------------------------------------------------

MIXED = "mixed"
# What a mixed backlog consists of, in turn by the number of the task: 70 % wait, 20 % compute, 10 % carry 20 KB.
MIXTURE = tuple({"w": "sleep_5ms", "c": "cpu_1ms", "p": "payload_20k"}[letter] for letter in "wwcwwpwwcw")
WAITS: dict[str, float] = {"sleep_5ms": 0.005, "sleep_1ms": 0.001}
CPU_S: dict[str, float] = {"cpu_1ms": 0.001}
TABLE = ("noop", "sleep_5ms", "cpu_1ms", "payload_20k", MIXED)
JOBS = (*TABLE, "sleep_1ms")
WORKING = frozenset((*WAITS, *CPU_S, MIXED))  # the others only say they are done


def part(job: str, number: Number) -> str:
    """The job of the task with this number: the job itself, unless it is a mixture."""
    return MIXTURE[number % len(MIXTURE)] if job == MIXED else job


def burn(seconds: float) -> None:
    """CPU time of this thread, so that it is the same work however busy the machine is."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def parameters(job: str, number: Number) -> dict[str, Any]:
    """Three fields, as benchmarks.app.parameters; a fourth where the payload is the job."""
    given = {"path": f"lib/module_{number}.py", "size": number, "deep": True}
    return given | {"payload": payload(number)} if part(job, number) == "payload_20k" else given


def payload(number: Number) -> str:
    """PAYLOAD_BYTES of text that does not compress: what does would be next to nothing to Kafka, and all of it to Redis."""
    return base64.b64encode(random.Random(number).randbytes(PAYLOAD_BYTES // 4 * 3)).decode()


def task_id(number: Number) -> str:
    return f"task-{number:08}"


def perform(job: str, path: str, size: int) -> dict[str, Any]:
    """The job in a thread or a process. `done_ms`: when the handler was done, on the wall clock."""
    job = part(job, size)
    if wait_s := WAITS.get(job):
        time.sleep(wait_s)
    if cpu_s := CPU_S.get(job):
        burn(cpu_s)
    return {"path": path, "size": size, "done_ms": time.time_ns() // 1_000_000}


async def perform_async(job: str, path: str, size: int) -> dict[str, Any]:
    """The job on an event loop; CPU time holds the loop up, as it does there."""
    job = part(job, size)
    if wait_s := WAITS.get(job):
        await asyncio.sleep(wait_s)
    if cpu_s := CPU_S.get(job):
        burn(cpu_s)
    return {"path": path, "size": size, "done_ms": time.time_ns() // 1_000_000}


def completed(request: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The status that a stream system writes for a request."""
    return {"task_id": request["task_id"], "status": "completed", "result": result}


# --- What the driver asks for -----------------------------------------------------------------------------------------


def become(*command: str) -> NoReturn:
    """This process becomes `python -m …` of the peer's own command line."""
    os.execv(sys.executable, [sys.executable, "-m", *command])


def in_each_process(main: Callable[[], None]) -> None:
    """Run `main` here, or start this script once for each of the processes that the run has, and wait for them.

    Each has a folder of its own, and finds its own number in `NUMBER`. SIGTERM ends all.
    """
    run = this_run()
    if run.processes == 1 or NUMBER in os.environ:
        main()
        return
    started = []
    for number in range(run.processes):
        os.mkdir(folder := f"process-{number}")
        environment = os.environ | {NUMBER: str(number)}
        started.append(subprocess.Popen([sys.executable, *sys.argv], cwd=folder, env=environment))

    def end(signum: int, _frame: object) -> None:
        for process in started:
            process.send_signal(signum)

    signal.signal(signal.SIGTERM, end)
    sys.exit(max(abs(process.wait()) for process in started))


def asked(
    *,
    submit: Callable[[], None],
    work: Callable[[], None],
    results: Callable[[], Iterator[dict[str, Any]]],
    key: Callable[[Number], str],
) -> None:
    """Do what the first argument says, for a peer on Redis.

    results  all stored results, read by the peer's own means
    key      where Redis has the result of a task; it is there once the task is done
    """
    command = sys.argv[1]
    if command == "submit":
        submit()
    elif command == "work":
        work()
    elif command == "results":
        wait_for_results(key)
        ends: dict[Number, int] = {}
        count = 0
        for result in results():
            count += 1
            ends[result["size"]] = result["done_ms"]
        print(json.dumps({"count": count, "ends_ms": list(ends.values())}))
    else:
        sys.exit(f"{sys.argv[0]}: {command!r} is none of submit, work, results")


def wait_for_results(key: Callable[[Number], str]) -> None:
    """Until every task has its result, or none has come for STALL_S. Looks at the oldest that is missing, and so costs
    Redis one command every LOOK_S."""
    import redis  # of the peer's environment

    run = this_run()
    client = redis.Redis.from_url(run.address)
    done, moved_s = 0, time.monotonic()
    while done < run.tasks:
        asked_for = [key(number) for number in range(done, min(done + LOOKED_AT, run.tasks))]
        there = client.exists(*asked_for)
        if there == len(asked_for):
            done, moved_s = done + there, time.monotonic()
        elif time.monotonic() - moved_s > STALL_S:
            return
        else:
            time.sleep(LOOK_S)
