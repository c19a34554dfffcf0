"""The examples run as they are told to be run: a worker of each, and somebody who asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.harness import ROOT, WAIT_S, Bench, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]


def test_another_service_submits_follows_and_takes_the_result(bench: Bench) -> None:
    bench.supervised(app="examples.quickstart.app:app")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("STREAMTASK_")},
        "STREAMTASK_BOOTSTRAP_SERVERS": bench.kafka.bootstrap,
        "STREAMTASK_PREFIX": bench.names.prefix,
    }
    done = subprocess.run(
        [sys.executable, "examples/submit.py", "2"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *events, result = done.stdout.splitlines()
    assert first.split()[1].startswith("high-"), "priority 8 is the high band"
    assert [line.split()[0] for line in events if "to go" not in line] == ["created", "running", "completed"]
    assert any("1 to go" in line for line in events), events
    assert result == "lift-off"
    bench.finish()


def test_an_import_waits_for_its_file_and_a_wrong_one_is_given_up(bench: Bench, tmp_path: Path) -> None:
    bench.supervised(app="examples.retry_and_progress.app:app")
    late, wrong = tmp_path / "late.csv", tmp_path / "wrong.csv"
    wrong.write_text("name,age\nAda,old\n")
    waits = bench.client.submit("import_people", {"source": str(late), "database": str(tmp_path / "people.db")})
    gives_up = bench.client.submit("import_people", {"source": str(wrong), "database": str(tmp_path / "people.db")})
    until(lambda: any("is not there yet" in (s.event.message or "") for s in bench.history(waits.task_id)), "it waits")
    late.with_suffix(".new").write_text("name,age\nAda,36\n")
    late.with_suffix(".new").rename(late)
    imported = waits.result(WAIT_S)
    assert imported["rows"] == 1
    assert imported["attempt"] > 1
    end = bench.end(gives_up.task_id)
    assert (end.code, end.event.attempt) == ("handler_error", 1)
    assert "row 1" in (end.event.error or "")
    bench.finish()
