"""The life of a task, from outside: real workers, a real Kafka, and the audit at the end of each test."""

from __future__ import annotations

import itertools
import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest

from streamtask.domain.identity import new_task_id
from streamtask.domain.model import TaskRequest
from streamtask.errors import TaskFailed
from tests.acceptance.harness import PATIENT, ROOT, WAIT_S, Bench, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

SAMPLES = ROOT / "schemas" / "samples" / "v1"


def test_tasks_run_and_tell_their_histories(bench: Bench) -> None:
    bench.supervised()
    quick = bench.client.submit("noop", {"n": 7})
    assert quick.result(WAIT_S) == 7
    assert bench.client.submit("plain", {"n": 8}).result(WAIT_S) == 8
    assert bench.statuses(quick.task_id) == ["created", "running", "completed"]
    bench.finish()


def test_retries_back_off_until_one_succeeds_or_none_is_left(bench: Bench) -> None:
    bench.worker(PATIENT)
    mends, fails = bench.client.submit("flaky", {"failures": 2}), bench.client.submit("flaky", {"failures": 9})
    waits, gives_up = bench.client.submit("later", {"after": 0.7}), bench.client.submit("hopeless")
    assert mends.result(WAIT_S) == 3
    assert bench.end(fails.task_id).code == "handler_error"
    assert [one.attempt for one in bench.starts(fails.task_id)] == [1, 2, 3]
    assert waits.result(WAIT_S) == 2
    first, second = bench.starts(waits.task_id)
    assert second.ms - first.ms >= 700, "RetryLater(after) is taken as it is"
    assert bench.end(gives_up.task_id).code == "handler_error"
    assert len(bench.starts(gives_up.task_id)) == 1, "GiveUp forbids another attempt"
    assert bench.letter(fails.origin).attempt == 3
    assert bench.letter(gives_up.origin).reason == "handler_error"
    bench.finish()


@pytest.mark.parametrize("task_type", ["wait_for", "block"])
def test_a_timeout_ends_the_attempt_and_is_a_failure(bench: Bench, task_type: str) -> None:
    bench.worker(PATIENT)
    slow = bench.client.submit(task_type, {"path": str(bench.directory / "never")}, timeout=0.5)
    end = bench.end(slow.task_id)
    assert end.code == "timeout"
    # Its first instruction may come late, or never. RUNNING is written before the time begins.
    (running,) = (seen for seen in bench.history(slow.task_id) if seen.status == "running")
    assert end.timestamp_ms - running.timestamp_ms >= 499
    assert "abandoned" not in (end.event.error or ""), "it ended when it was cancelled"
    assert bench.letter(slow.origin).reason == "timeout"
    bench.finish()


@pytest.mark.parametrize("task_type", ["wait_for", "block"])
def test_a_cancel_ends_what_runs(bench: Bench, task_type: str) -> None:
    bench.worker(PATIENT)
    task = bench.client.submit(task_type, {"path": str(bench.directory / "never")})
    until(lambda: bench.starts(task.task_id), "it runs")
    task.cancel()
    assert bench.end(task.task_id).code == "cancelled"
    assert bench.statuses(task.task_id) == ["created", "running", "cancelled"]
    bench.finish()
    assert not bench.letters(), "what was cancelled is no dead letter"


def test_a_cancel_before_the_start_proves_that_nothing_ran(bench: Bench) -> None:
    early = str(uuid.uuid4())
    bench.client.cancel(early)  # before its request exists
    known = bench.client.submit("noop", {"n": 1}, task_id=early)
    bench.worker(PATIENT)
    assert bench.end(known.task_id).status == "cancelled"
    gate = bench.directory / "gate"
    busy = bench.client.submit("one_at_a_time", {"path": str(gate)})
    until(lambda: bench.starts(busy.task_id), "the first one runs")
    queued = [bench.client.submit("one_at_a_time", {"ms": 1}) for _ in range(4)]
    for one in queued:
        bench.until_status(one.task_id, "created")
        one.cancel()
    for one in queued:
        bench.end(one.task_id)
    gate.touch()
    bench.end(busy.task_id)
    bench.finish()
    never = [known, *(one for one in queued if bench.statuses(one.task_id) == ["created", "cancelled"])]
    assert len(never) == 5, "all of them were cancelled while the slot of their type was busy"
    assert not [one for one in never if bench.starts(one.task_id)]


def test_a_cancel_is_known_to_a_worker_that_was_not_there(bench: Bench) -> None:
    task = bench.client.submit("noop", {"n": 1})
    task.cancel()
    other = bench.client.submit("noop", {"n": 2})
    bench.worker(PATIENT)
    assert bench.end(task.task_id).code == "cancelled"
    assert bench.end(other.task_id).status == "completed"
    bench.finish()
    assert not bench.starts(task.task_id)


def test_what_expires_never_starts_and_not_before_waits(bench: Bench) -> None:
    bench.worker(PATIENT)
    now = datetime.now(UTC)
    gate = bench.directory / "gate"
    first = bench.client.submit("one_at_a_time", {"path": str(gate)})
    until(lambda: bench.starts(first.task_id), "the slot is busy")
    expires = bench.client.submit("one_at_a_time", {"ms": 1}, expires_at=datetime.now(UTC) + timedelta(seconds=0.8))
    gone = bench.client.submit("noop", expires_at=now - timedelta(seconds=1))
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    later = bench.client.submit("noop", {"n": 3}, not_before=due)
    far, too_late = new_task_id(), (now + timedelta(hours=2)).isoformat()
    bench.produce(json.dumps({"task_type": "noop", "task_id": far, "not_before": too_late}).encode(), far.encode())
    assert bench.end(expires.task_id).code == "expired"
    gate.touch()
    assert bench.end(first.task_id).status == "completed"
    assert bench.end(gone.task_id).code == "expired"
    assert bench.statuses(expires.task_id) == ["created", "cancelled"]
    assert bench.end(far).code == "invalid_parameters"
    assert later.result(WAIT_S) == 3
    assert bench.starts(later.task_id)[0].ms >= due.timestamp() * 1_000 - 1
    bench.finish()
    assert not bench.starts(expires.task_id)


def test_an_unknown_type_waits_for_its_grace_and_then_fails(bench: Bench) -> None:
    bench.worker(PATIENT, engine={"unknown_type_grace_ms": 1_500})
    task = bench.client.submit("nobody_knows", {"a": 1})
    bench.until_status(task.task_id, "created")
    end = bench.end(task.task_id)
    assert end.code == "unknown_task_type"
    created, running, failed = bench.history(task.task_id)
    assert running.status == "running"
    assert failed.timestamp_ms - created.timestamp_ms >= 1_400
    assert bench.letter(task.origin).reason == "unknown_task_type"
    bench.finish()


def test_tasks_of_one_key_start_in_order_one_at_a_time_across_workers(bench: Bench) -> None:
    workers = [bench.worker(PATIENT), bench.worker(PATIENT)]
    for worker in workers:
        bench.until_owning(worker, 2)
    requests = [
        TaskRequest(task_type="nap", parameters={"ms": 20}, ordering_key=f"key-{n % 6}", priority=5) for n in range(90)
    ]
    receipts = bench.client.submit_many(requests)
    bench.until_status(receipts[0].task_id, "running")
    workers[0].drain()  # its keys move
    bench.ends([one.task_id for one in receipts], 60)
    bench.finish()
    lines = bench.executions()
    keys = {receipt.task_id: request.ordering_key for receipt, request in zip(receipts, requests, strict=True)}
    for key in {f"key-{n}" for n in range(6)}:
        order = [one.task_id for one in receipts if keys[one.task_id] == key]
        ran = [line for line in lines if keys[line.id] == key]
        first = list(dict.fromkeys(line.id for line in ran if line.what == "start"))
        assert first == order
        open_: str | None = None
        for line in ran:
            if line.what == "start":
                assert open_ is None, f"{line.id} began while {open_} ran"
                open_ = line.id
            else:
                assert open_ == line.id
                open_ = None


def test_high_starts_before_a_backlog_of_low(bench: Bench) -> None:
    bench.worker(PATIENT, STREAMTASK_CONCURRENCY="4")  # one of them is kept for high
    held = {"task_type": "wait_for", "parameters": {"path": str(bench.directory / "gate")}}
    low = bench.client.submit_many([{**held, "priority": 1}] * 200)
    until(lambda: len(bench.running()) == 3, "low has every slot that is not kept")
    high = bench.client.submit_many([{**held, "priority": 10}] * 5)
    for one in high:
        bench.until_status(one.task_id, "created")
    until(lambda: len(bench.running()) == 4, "high has the slot that is kept, and four wait")
    (bench.directory / "gate").touch()
    bench.ends([one.task_id for one in (*high, *low)])
    begun = [one.id for one in bench.executions() if one.what == "start"]
    last = max(begun.index(one.task_id) for one in high)
    assert last < 30, f"{last + 1 - len(high)} of low began before the last of high: it stood in their queue"
    bench.finish()


def test_a_limit_that_was_raised_since_the_start_holds_for_the_next_large_result(bench: Bench) -> None:
    """Bug: a worker that started while max.message.bytes was low refused results until its own end."""
    bench.take_at_most(20_000)
    bench.worker(PATIENT)
    refused = bench.client.submit("large", {"size": 30_000})
    assert bench.end(refused.task_id).code == "result_too_large"
    bench.take_at_most(None)

    def fits() -> bool:
        return bench.end(bench.client.submit("large", {"size": 30_000}).task_id).code is None

    until(fits, "it has looked again")
    bench.finish()


def test_results_and_parameters_that_do_not_fit_are_told_by_their_code(bench: Bench) -> None:
    bench.worker(PATIENT)
    large = bench.client.submit("large", {"size": 2_000_000})
    fits = bench.client.submit("large", {"size": 500_000})
    odd = bench.client.submit("odd")
    wrong = [
        bench.client.submit("typed", {"params": {"x": "no number"}}),
        bench.client.submit("typed", {"x": "no number"}),
        bench.client.submit("noop", {"nothing": 1}),
        bench.client.submit("nap"),
    ]
    right = bench.client.submit("typed", {"x": 1, "y": 2})
    assert bench.end(large.task_id).code == "result_too_large"
    assert len(fits.result(WAIT_S)) == 500_000
    assert bench.end(odd.task_id).code == "not_serializable"
    assert right.result(WAIT_S) == 3
    for one in wrong:
        assert bench.end(one.task_id).code == "invalid_parameters"
        assert bench.letter(one.origin).reason == "invalid_parameters"
        assert not bench.starts(one.task_id)
    with pytest.raises(TaskFailed, match="result"):
        large.result(WAIT_S)
    bench.finish()


def test_a_second_record_of_an_open_task_is_a_dead_duplicate_and_one_after_its_end_runs(bench: Bench) -> None:
    bench.worker(PATIENT)
    gate = bench.directory / "gate"
    first = bench.client.submit("wait_for", {"path": str(gate)})
    until(lambda: bench.starts(first.task_id), "the first one runs")
    again = bench.client.submit("wait_for", {"path": str(gate)}, task_id=first.task_id)
    letter = bench.letter(again.origin)
    assert (letter.reason, letter.task_id) == ("duplicate", first.task_id)
    gate.touch()
    bench.end(first.task_id)
    third = bench.client.submit("noop", {"n": 1}, task_id=first.task_id)
    until(lambda: len([s for s in bench.history(first.task_id) if s.event.ended]) == 2, "the third one ran")
    assert {seen.event.origin for seen in bench.history(first.task_id)} == {first.origin, third.origin}
    assert bench.finish().duplicates == 1


def test_progress_is_throttled_and_its_latest_wins(bench: Bench) -> None:
    bench.worker(PATIENT)
    task = bench.client.submit("counts", {"steps": 400, "ms": 5})
    end = bench.end(task.task_id)
    reports = [seen for seen in bench.history(task.task_id) if seen.status == "running" and seen.event.progress]
    assert 3 <= len(reports) <= 2 + (end.timestamp_ms - bench.starts(task.task_id)[0].ms) // 100
    told = [seen.event.progress or 0 for seen in reports]
    assert told == sorted(told)
    assert len(set(told)) == len(told)
    assert all((seen.event.message or "").startswith("step ") for seen in reports)
    gaps = [b.timestamp_ms - a.timestamp_ms for a, b in itertools.pairwise(reports)]
    # Their number is bounded above. A single one may be late, on a busy machine, and the next one then seems early.
    assert median(gaps) >= 90, f"events {gaps} ms apart"
    assert end.event.progress == 1.0
    bench.finish()


def _sample(name: str) -> dict[str, object]:
    document = json.loads((SAMPLES / name).read_text())
    assert isinstance(document, dict)
    return document


def test_the_golden_documents_in_chinese(bench: Bench, tmp_path: Path) -> None:
    """What the samples say is what comes out, byte for byte in every field that they name."""
    bench.worker(PATIENT, STREAMTASK_LOCALE="zh")
    task_id = str(_sample("task_response.created.json")["task_id"])
    raw = (SAMPLES / "task_request.long_inference.json").read_bytes()
    origin = bench.produce(raw, task_id.encode(), band=0)
    bench.end(task_id)
    events = [json.loads(seen.value) for seen in bench.history(task_id)]
    for wanted in ("created", "running", "completed"):
        sample = _sample(f"task_response.{wanted}.json")
        sample.pop("created_at", None)  # the time of this request
        told = [event for event in events if sample.items() <= event.items()]
        assert told, f"no event has {sample}: {events}"
        assert told[0]["origin"] == origin
    assert all(event["priority"] == 8 for event in events)
    bench.finish()
