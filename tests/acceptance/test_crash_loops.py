"""A task that kills the process that it runs in is quarantined after three deaths; its neighbours are not, and work goes on.

Deaths of a worker are charged to all that ran in it, but never a third one: that is always a death of a quarantine child in
which it was alone, or inside a trial that it stands alone (decision 0008). A poison with others in its group dies once more
for each time that the group is halved; its last attempt is the one in which it is alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from streamtask.codec import avro
from streamtask.domain.model import TaskRequest
from tests.acceptance.harness import PATIENT, Bench, Seen, until
from tests.contract.raw_names import RawName

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.timeout(420)]

APP = "tests.acceptance.poison_apps:app"
SAYS = {
    "exits": "exit code 7",
    "segfaults": "SIGSEGV",
    "aborts": "SIGABRT",
    "killed": "SIGKILL",
    "memory": "SIGABRT",
}


def request(task_type: str, **parameters: object) -> TaskRequest:
    return TaskRequest(task_type=task_type, parameters=parameters)


def ends_of(bench: Bench, task_ids: list[str], directory: Path, timeout_s: float = 240) -> dict[str, Seen]:
    """Their ends. Who waits for it after its progress is let go on as soon as that progress is committed, and the
    neighbours when they run for the third time, isolated (they would hold the slots that the poisons need), or when all
    have died. Attempts are read from the events: of many at once, one may die before its first instruction."""

    def all_ended() -> dict[str, Seen] | None:
        ends = {}
        attempts = {one: events[-1].event.attempt or 0 for one, events in bench.histories().items()}
        isolated = {
            one.id for one in bench.executions() if one.type.startswith("beside") and attempts.get(one.id, 0) > 2
        }
        if isolated or all(attempts.get(task_id, 0) > 1 for task_id in task_ids):
            (directory / "go").touch()
        for task_id in task_ids:
            for seen in bench.history(task_id):
                if seen.event.ended:
                    ends[task_id] = seen
                elif seen.event.progress == 0.5:
                    (directory / f"{task_id}.{seen.event.attempt}").touch()
        return ends if len(ends) == len(task_ids) else None

    def left() -> str:
        held = [(one.type, one.attempt, one.pid) for one in bench.executions() if one.what == "start"]
        return f"all end; {[bench.statuses(one) for one in task_ids]}; started are {[one for one in held if one[0] != 'noop']}"

    return until(all_ended, left, timeout_s)


def check_quarantined(bench: Bench, task_id: str, how: str, end: Seen) -> None:
    assert (end.status, end.code) == ("failed", "worker_lost"), f"{how}: {end.event}"
    assert SAYS[how] in (end.event.error or ""), f"{how}: {end.event.error}"
    starts = bench.starts(task_id)
    attempts = [one.attempt for one in starts]  # of many at once, one may die before its first instruction
    assert attempts == sorted(set(attempts))
    assert attempts[-1] == end.event.attempt, "the death that counted was its own"
    assert len({one.pid for one in starts}) == len(starts), "each death was one of its process"
    assert not any(psutil.pid_exists(one.pid) for one in starts)
    letter = bench.letter(end.event.origin or "")
    assert (letter.reason, letter.attempt) == ("worker_lost", end.event.attempt)


def neighbours(bench: Bench, directory: Path) -> list[str]:
    """One of each kind, running until `go` is there."""
    path = directory / "go"
    kinds = ("beside", "beside_thread", "beside_process")
    return [one.task_id for one in bench.client.submit_many([request(kind, path=str(path)) for kind in kinds])]


@pytest.mark.parametrize(
    ("task_type", "how", "tells_progress"),
    [("poison", "exits", False), pytest.param("poison_thread", "segfaults", True, marks=pytest.mark.slow)],
    ids=["a coroutine in its first instruction", "a thread inside C after its first progress"],
)
def test_a_poison_is_quarantined_after_two_deaths_of_its_worker_and_its_neighbours_finish(
    bench: Bench, tmp_path: Path, task_type: str, how: str, tells_progress: bool
) -> None:
    parent = bench.supervised(1, PATIENT, app=APP, STREAMTASK_CHILDREN="3")
    beside = neighbours(bench, tmp_path)
    before = bench.client.submit_many([request("noop", n=n) for n in range(4)])
    poison = bench.client.submit(task_type, {"how": how, "gates": str(tmp_path) if tells_progress else ""})
    after = bench.client.submit_many([request("noop", n=n) for n in range(4)])
    end = ends_of(bench, [poison.task_id], tmp_path)[poison.task_id]
    check_quarantined(bench, poison.task_id, how, end)
    assert end.event.attempt is not None
    assert 3 <= end.event.attempt <= 6, "a group of twelve at most, then of six, of three, and of one"
    ends = bench.ends([*beside, *(one.task_id for one in (*before, *after))], 90)
    assert {one.status for one in ends.values()} == {"completed"}
    assert [letter.reason for letter in bench.letters()] == ["worker_lost"]
    deaths = [told for told in parent.events("supervisor_event") if told["what"] == "child_ended"]
    assert len(deaths) == 2, "the others were those of quarantine children"
    bench.finish()


@pytest.mark.slow
def test_poisons_of_children_cost_exactly_three_deaths_each_and_nobody_else_anything(
    bench: Bench, tmp_path: Path
) -> None:
    """All ways at once, each in a child of its own kind: no death of theirs is anybody else's."""
    parent = bench.supervised(1, PATIENT, app=APP, STREAMTASK_CHILDREN="4")
    beside = neighbours(bench, tmp_path)
    until(lambda: len(bench.running()) == 3, "the neighbours run", 120)
    (worker,) = parent.children()
    poisons = {how: bench.client.submit("poison_process", {"how": how}) for how in ("exits", "segfaults", "killed")}
    poisons["aborts"] = bench.client.submit("poison_process", {"how": "aborts", "gates": str(tmp_path)})
    poisons["memory"] = bench.client.submit("poison_hungry", {"how": "memory"})
    good = bench.client.submit_many([request("noop", n=n) for n in range(50)])
    ends = ends_of(bench, [one.task_id for one in poisons.values()], tmp_path)
    for how, one in poisons.items():
        check_quarantined(bench, one.task_id, how, ends[one.task_id])
        assert [start.attempt for start in bench.starts(one.task_id)] == [1, 2, 3], how
    assert {end.status for end in bench.ends([one.task_id for one in good]).values()} == {"completed"}
    ends = bench.ends(beside)
    assert {(end.status, end.event.attempt) for end in ends.values()} == {("completed", 1)}
    assert parent.children() == [worker], "it has noticed nothing"
    bench.finish()


@pytest.mark.slow
def test_poisons_of_every_kind_and_way_at_once_are_quarantined_and_no_neighbour_is(
    bench: Bench, tmp_path: Path
) -> None:
    parent = bench.supervised(2, app=APP, STREAMTASK_CHILDREN="4")
    beside = neighbours(bench, tmp_path)
    wanted: list[tuple[str, dict[str, str]]] = [
        ("poison", {"how": "exits"}),
        ("poison", {"how": "killed", "gates": str(tmp_path)}),
        ("poison_thread", {"how": "segfaults"}),
        ("poison_thread", {"how": "aborts", "gates": str(tmp_path)}),
        ("poison_process", {"how": "segfaults"}),
        ("poison_hungry", {"how": "memory"}),
    ]
    asked = bench.client.submit_many([request(task_type, **parameters) for task_type, parameters in wanted])
    good = bench.client.submit_many([request("noop", n=n) for n in range(4)])
    ends = ends_of(bench, [one.task_id for one in asked], tmp_path)
    for one, (_, parameters) in zip(asked, wanted, strict=True):
        check_quarantined(bench, one.task_id, parameters["how"], ends[one.task_id])
    assert {end.status for end in bench.ends([one.task_id for one in good], 90).values()} == {"completed"}
    assert {end.status for end in bench.ends(beside, 90).values()} == {"completed"}
    assert len(bench.letters()) == len(asked)
    until(lambda: len(parent.children()) == 2, "the workers are there")
    bench.finish()


@pytest.mark.slow
def test_one_that_kills_only_beside_another_is_parted_from_it_and_both_finish(bench: Bench, tmp_path: Path) -> None:
    """Two deaths together make both suspects of one group; its child dies too, and in children of their own both finish."""
    bench.supervised(1, PATIENT, app=APP, STREAMTASK_CHILDREN="3")
    go = tmp_path / "go"
    both = [one.task_id for one in bench.client.submit_many([request(k, path=str(go)) for k in ("beside", "jealous")])]
    until(lambda: all(len(bench.starts(one)) >= 4 for one in both), "both run for the fourth time", 240)
    assert len({bench.starts(one)[2].pid for one in both}) == 1, "the third time in the child of their group"
    assert len({bench.starts(one)[3].pid for one in both}) == 2, "each in a process of its own"
    go.touch()
    ends = bench.ends(both, 60)
    assert {end.status for end in ends.values()} == {"completed"}
    assert not bench.letters()
    bench.finish()


# --- Memory that really runs out ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def memory_group(limit_mb: int) -> Iterator[Path]:
    """The tasks file of a memory cgroup of its own; skips where this machine gives none."""
    root, files = Path("/sys/fs/cgroup"), ("memory.max", "cgroup.procs")
    if (root / "memory").is_dir():  # version 1
        root, files = root / "memory", ("memory.limit_in_bytes", "cgroup.procs")
    group = root / f"streamtask-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        try:
            (group / files[0]).write_text(str(limit_mb * 1024 * 1024))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be limited here: {error}")
        yield group / files[1]
    finally:
        until(lambda: not (group / files[1]).read_text().strip(), "everybody has left the cgroup")
        group.rmdir()


@pytest.mark.slow
def test_where_the_kernel_takes_a_process_for_its_memory_its_task_is_quarantined_and_the_others_live(
    bench: Bench, tmp_path: Path
) -> None:
    """The worker is taken twice, then the child in which the eater is alone: the worker beside it stays."""
    with memory_group(500) as tasks:
        inside = f"echo $$ > {tasks} && exec {sys.executable} -m streamtask worker {APP} --processes 1"
        parent = bench._start(["sh", "-c", inside], {**PATIENT, "STREAMTASK_CHILDREN": "3"})
        beside = neighbours(bench, tmp_path)
        until(lambda: len(bench.running()) == 3, "the neighbours run", 120)
        hungry = bench.client.submit("eats", {"mb": 1_000})
        end = ends_of(bench, [hungry.task_id], tmp_path)[hungry.task_id]
        assert (end.status, end.code) == ("failed", "worker_lost")
        assert "SIGKILL (not enough memory?)" in (end.event.error or "")
        assert 3 <= len({one.pid for one in bench.starts(hungry.task_id)}) <= 5
        deaths = [told for told in parent.events("supervisor_event") if told["what"] == "child_ended"]
        assert len(deaths) <= 2
        assert bench.starts(hungry.task_id)[-1].pid not in {told["pid"] for told in deaths}, "the kernel took the child"
        assert {end.status for end in bench.ends(beside, 60).values()} == {"completed"}
        bench.finish()


# --- Bytes that break decoding ------------------------------------------------------------------------------------------


def zigzag(number: int) -> bytes:
    """Avro's long."""
    left, out = (number << 1 ^ number >> 63) & 2**64 - 1, b""
    while left > 0x7F:
        out, left = out + bytes([left & 0x7F | 0x80]), left >> 7
    return out + bytes([left])


def nested(name: str, begin: bytes, end: bytes, depth: int) -> bytes:
    return b'{"task_type":"noop","action":"cancel","%s":' % name.encode() + begin * depth + b"1" + end * depth + b"}"


def evil_bytes() -> dict[str, bytes]:
    """{name: value} of what no reader wants to see."""
    request, control = avro.single_header(avro.REQUEST), avro.single_header(avro.CONTROL)
    found = {"many brackets": b"[" * 400_000, "utf-16": '{"task_type":"noop"}'.encode("utf-16"), "ff": b"\xff" * 1_000}
    for depth in (201, 254, 256, 1_000, 1_022, 1_025, 100_000):
        found[f"lists {depth} deep"] = nested("parameters", b"[", b"]", depth)
        found[f"objects {depth} deep"] = nested("labels", b'{"a":', b"}", depth)
        found[f"a reason {depth} deep"] = nested("reason", b"[", b"]", depth)
    for number in ("9" * 100_000, "1e400", "-1e999999999", "-9223372036854775809", "0." + "1" * 100_000 + "e400"):
        for name in ("priority", "timeout_seconds", "created_at"):
            found[f"{name} {number[:12]}"] = b'{"task_type":"noop","%s":%s}' % (name.encode(), number.encode())
    for text in (rb"\ud800", rb"\udfff\ud800", b"\xed\xa0\x80", b"\xff"):
        found[f"task_type {text!r}"] = b'{"task_type":"noop%s"}' % text
        found[f"label {text!r}"] = b'{"task_type":"noop","labels":{"%s":"%s"}}' % (text, text)
    for length in (2**62, 2**63 - 1, -1, -(2**63), 2**31, 10**9):  # of a text, of a map's block, of an array's
        for header in (request, control):
            found[f"avro {header[2]} text of {length}"] = header + zigzag(length) + b"abc"
            found[f"avro {header[2]} blocks of {length}"] = header + b"\x02x" + zigzag(length) * 30
    found["avro, a number without end"] = request + b"\x80" * 100_000
    found["avro, a confluent id of nobody"] = b"\x00\xff\xff\xff\xff" + zigzag(2**62)
    return found


def test_bytes_that_break_decoding_end_in_the_dead_letters_and_never_a_worker(bench: Bench) -> None:
    """In the bands and in tasks.control, in values and in headers, a good task and a good cancel behind each of them."""
    kafka = pytest.importorskip("kafka")
    worker = bench.worker(app=APP)
    evil = evil_bytes()
    foreign = kafka.KafkaProducer(bootstrap_servers=bench.kafka.bootstrap, linger_ms=5)
    ids, good = {name: str(uuid.uuid4()) for name in evil}, [str(uuid.uuid4()) for _ in range(8)]
    odd = [str(uuid.uuid4()) for _ in range(4)]
    for number, (name, value) in enumerate(evil.items()):
        foreign.send(bench.names.requests[1], value, ids[name].encode(), partition=number % 4)
        foreign.send(bench.names.control, value, ids[name].encode(), partition=number % 4)
    plain = json.dumps({"task_type": "noop", "parameters": {"n": 1}}).encode()
    for partition, task_id in enumerate(odd):
        headers = [(RawName("x"), b"v"), ("task_id", b"\xff")]
        foreign.send(bench.names.requests[1], plain, task_id.encode(), partition=partition, headers=headers)
    for number, task_id in enumerate(good):
        foreign.send(bench.names.requests[1], plain, task_id.encode(), partition=number % 4)
    foreign.flush(30)
    foreign.close()
    ends = bench.ends([*odd, *good], 60)
    assert {end.status for end in ends.values()} == {"completed"}
    ends = bench.ends(ids.values(), 60)
    wrong = {name: ends[ids[name]].event for name in evil if ends[ids[name]].code != "invalid_request"}
    assert not wrong
    changed = [n for n, task_id in ids.items() if bench.letter(ends[task_id].event.origin or "").value != evil[n]]
    assert not changed
    never = bench.client.submit("beside", {"path": str(bench.directory / "never")})
    until(lambda: bench.starts(never.task_id), "it runs")
    never.cancel()
    assert bench.end(never.task_id).status == "cancelled", "control is read on behind them"
    assert worker.process.poll() is None
    bench.finish()
