"""The demo's census on a system that is there: `streamtask demo DIR --url …` submits, watches, audits, and starts nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from streamtask.demo.plan import make_plan
from tests.acceptance.harness import ROOT, Bench, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]

APP = "streamtask.demo.census:app"
KEY = "a key of the census"


def census(bench: Bench, folder: Path, url: str, key: str | None = KEY) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")}
    environment |= {"STREAMTASK_BOOTSTRAP_SERVERS": bench.kafka.bootstrap, "STREAMTASK_PREFIX": bench.names.prefix}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "streamtask", "demo", str(folder), "--exit", "--url", url),
            *(("--api-key", key) if key else ()),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_census_on_a_running_system_counts_only_its_own_and_survives_a_killed_worker(
    bench: Bench, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(400):
        (folder / f"{number}.txt").write_text("some words\n" * (number + 1))
    workers = bench.supervised(2, app=APP)
    service = bench._start([sys.executable, "-m", "streamtask", "serve", "--port", "0"], {"STREAMTASK_API_KEY": KEY})
    url = until(lambda: [line for line in service.text().splitlines() if line.startswith("ready: ")], "ready")[
        0
    ].split()[1]
    before = bench.client.submit("file_census", {"path": __file__})
    bench.end(before.task_id)

    with census(bench, folder, url, key="wrong") as refused:
        said, complaint = refused.communicate(timeout=90)
    assert (refused.returncode, said) == (2, "")
    assert "is not ready, or rejects the API key" in complaint
    assert len(complaint.strip().splitlines()) == 1, complaint

    with census(bench, folder, url) as running:
        ended = until(lambda: sum(events[-1].event.ended for events in bench.histories().values()) > 20, "at work")
        assert ended
        psutil.Process(until(workers.children, "a worker")[0]).kill()
        said, complaint = running.communicate(timeout=180)
    assert running.returncode == 0, said + complaint
    counts = json.loads(said.splitlines()[-1])["counts"]
    plan = make_plan(folder)
    assert sum(counts.values()) == plan.total, "not the one that was there before"
    assert (counts["failed"], counts["cancelled"]) == (6, 3)
    assert "Audit: clean." in said
    report = bench.finish()
    assert sum(report.counts.values()) == plan.total + 1
