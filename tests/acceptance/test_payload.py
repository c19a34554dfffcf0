"""What tasks are given and give back is in the topics and in no log; a traceback is where the operator wants it."""

from __future__ import annotations

import json
import sys

import httpx
import pytest

from streamtask.domain.model import TaskRequest
from tests.acceptance.harness import Bench, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

ENDS_S = 120.0  # a child takes its time to start on a loaded machine
APP = "tests.acceptance.marked_app:app"
MARK = "gR33nHeron"
TYPES = ("echo", "fails", "fails_in_a_thread", "fails_in_a_child", "narrow", "odd", "slow", "nobody_knows_it")
BAD = (
    f"{MARK} no JSON".encode(),
    json.dumps({"task_type": "", "parameters": {"text": MARK}}).encode(),
    b"\xff" + MARK.encode(),
)


def test_no_parameter_result_or_error_is_ever_in_a_log(bench: Bench) -> None:
    worker = bench.supervised(app=APP, STREAMTASK_UNKNOWN_TYPE_GRACE_S="0", STREAMTASK_CHILDREN="1")
    view = bench._start([sys.executable, "-m", "streamtask", "serve", "--port", "0"], {})
    tasks = bench.client.submit_many(
        [
            TaskRequest(
                task_type=name,
                parameters={"text": MARK, **({"number": MARK} if name == "narrow" else {})},
                description=MARK,
            )
            for name in TYPES
        ]
    )
    ends = bench.ends((one.task_id for one in tasks), ENDS_S)
    bad = [bench.produce(value, key=MARK.encode(), headers=[("note", MARK.encode())], partition=0) for value in BAD]
    for origin in bad:
        bench.letter(origin, ENDS_S)
    ready = until(lambda: [line for line in view.text().splitlines() if line.startswith("ready: ")], view.text, ENDS_S)
    with httpx.Client(base_url=ready[0].split()[1], timeout=30) as http:
        assert MARK in http.get(f"/tasks/{tasks[0].task_id}").text
        for body in (MARK, json.dumps({"task_type": "echo", "parameters": MARK}), json.dumps({MARK: MARK})):
            assert http.post("/tasks", content=body).status_code in (400, 422)
    assert {task.task_id: ends[task.task_id].status for task in tasks[:2]} == {
        tasks[0].task_id: "completed",
        tasks[1].task_id: "failed",
    }
    assert MARK in (ends[tasks[1].task_id].event.error or ""), "the topic has it"
    bench.finish()
    for process in (worker, view):
        found = [line for line in process.text().splitlines() if MARK in line and not _names_a_key(line)]
        assert not found, "\n".join(found)
    assert len(worker.text().splitlines()) > 5, "it does log"


def _names_a_key(line: str) -> bool:
    """The one thing of a record that is told: a key that lies in the wrong partition, cut short."""
    return line.startswith("{") and json.loads(line)["event"] == "partitioner_differs"


@pytest.mark.parametrize("kept", ["events", *(pytest.param(kept, marks=pytest.mark.slow) for kept in ("dead", "off"))])
def test_a_traceback_is_kept_where_the_operator_wants_it(bench: Bench, kept: str) -> None:
    bench.supervised(app=APP, STREAMTASK_TRACEBACKS=kept, STREAMTASK_CHILDREN="1")
    tasks = [bench.client.submit(name, {"text": "why"}) for name in ("fails", "fails_in_a_thread", "fails_in_a_child")]
    ends = bench.ends((one.task_id for one in tasks), ENDS_S)
    for task in tasks:
        end = ends[task.task_id]
        letter = bench.letter(end.event.origin or "", ENDS_S)
        told = [seen.event.error_details.traceback for seen in bench.history(task.task_id) if seen.event.error_details]
        assert len(told) >= 1
        assert [text is not None for text in told] == [kept == "events"] * len(told)
        assert end.event.error
        assert end.event.error_details is not None
        assert end.event.error_details.exception, "what it was is told all the same"
        assert (letter.traceback is not None) == (kept == "dead")
        for text in (*told, letter.traceback):
            assert text is None or ("marked_app.py" in text and "why" in text)
    bench.finish()
