"""Tasks fail, their fault is mended, and they are run again: from the command line, which is killed, and over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from streamtask.domain.model import TaskRequest
from tests.acceptance.harness import PATIENT, ROOT, WAIT_S, Bench, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance, pytest.mark.slow]
APP = "tests.acceptance.redrive_app:app"
COUNT = 20


def redrive(bench: Bench, *arguments: str) -> Running:
    """`streamtask dead redrive` as a process."""
    return bench_process(bench, "dead", "redrive", *arguments)


def bench_process(bench: Bench, *arguments: str) -> Running:
    given = {name: held for name, held in os.environ.items() if not name.startswith("STREAMTASK_")}
    environment = {
        **given,
        "STREAMTASK_BOOTSTRAP_SERVERS": bench.kafka.bootstrap,
        "STREAMTASK_PREFIX": bench.names.prefix,
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    log = bench.directory / f"{'-'.join(arguments[:2])}-{len(list(bench.directory.iterdir()))}.log"
    with log.open("wb") as out:
        argv = [sys.executable, "-m", "streamtask", *arguments]
        return Running(subprocess.Popen(argv, stdout=out, stderr=out, cwd=ROOT, env=environment), Path(log))


@contextmanager
def service(bench: Bench) -> Iterator[str]:
    """`streamtask serve`, and its address once it is ready."""
    process = bench_process(bench, "serve", "--port", "0")
    try:
        ready = until(lambda: re.search(r"ready: (\S+)", process.text()), process.text)
        yield ready[1]
        assert process.drain() == 0
    finally:
        if process.process.poll() is None:
            process.kill()


def redriven(bench: Bench) -> dict[str, str]:
    """{task_id of a redrive: of which task}."""
    return {
        task_id: events[0].event.labels["redrive_of"]
        for task_id, events in bench.histories().items()
        if events[0].event.labels and "redrive_of" in events[0].event.labels
    }


def failed_tasks(bench: Bench, count: int) -> list[str]:
    """So many tasks that a faulty release has failed; it is gone."""
    faulty = bench.worker(PATIENT, app=APP)
    asked = [TaskRequest(task_type="charge", parameters={"amount": n}, priority=1 + n % 10) for n in range(count)]
    receipts = bench.client.submit_many(asked)
    ends = bench.ends([receipt.task_id for receipt in receipts])
    assert {end.code for end in ends.values()} == {"handler_error"}
    assert faulty.drain() == 0
    return [receipt.task_id for receipt in receipts]


def test_a_redrive_that_was_killed_is_repeated_and_each_task_completes_once(bench: Bench) -> None:
    old = failed_tasks(bench, COUNT)
    shown = redrive(bench, "--text", "the gateway refuses")
    assert shown.wait() == 0, shown.text()
    assert f"{COUNT} to redrive: {COUNT} charge (handler_error)" in shown.text()
    assert redriven(bench) == {}

    bench.worker(PATIENT, app=APP, ACCEPTANCE_FIXED="1")
    first = redrive(bench, "--code", "handler_error", "--rate", "1", "--yes")  # far from done after three
    until(lambda: len(redriven(bench)) >= 3, first.text)
    first.kill()
    assert len(redriven(bench)) < COUNT
    again = redrive(bench, "--code", "handler_error", "--yes")
    assert again.wait() == 0, again.text()
    assert "skipped: already redriven" in again.text()

    until(lambda: len(redriven(bench)) == COUNT, again.text)
    new = redriven(bench)
    assert Counter(new.values()) == Counter(old)
    ends = bench.ends(new)
    assert {end.status for end in ends.values()} == {"completed"}
    assert sorted(end.event.result for end in ends.values()) == list(range(COUNT))
    before = bench.histories()
    assert {ends[task_id].partition - before[of][0].partition for task_id, of in new.items()} == {0}
    bench.finish()
    assert len([one for one in bench.executions() if one.what == "start"]) == 2 * COUNT


def test_a_failed_task_is_redriven_over_http_and_asking_twice_runs_it_once(bench: Bench) -> None:
    (old,) = failed_tasks(bench, 1)
    bench.worker(PATIENT, app=APP, ACCEPTANCE_FIXED="1")
    with service(bench) as url, httpx.Client(base_url=url, timeout=30 + WAIT_S) as http:
        answers = [http.post(f"/tasks/{old}/redrive") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202], [answer.text for answer in answers]
        (place,) = {answer.headers["location"] for answer in answers}
        ended = http.get(place, params={"wait": 30}).json()
        assert (ended["status"], ended["labels"], ended["result"]) == ("completed", {"redrive_of": old}, 0)
        assert http.post(f"/tasks/{ended['task_id']}/redrive").status_code == 409
        assert http.post(f"/tasks/{old}/redrive").json()["status"] == "completed"
    bench.finish()
    assert len(redriven(bench)) == 1
