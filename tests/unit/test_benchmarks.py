"""The benchmarks: what their command line takes, and the shape of the one line that others read."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from benchmarks.__main__ import main, parse, table
from benchmarks.latency import PARTS, quantile
from benchmarks.rooms import ROOMS
from benchmarks.stand import Failed, check_histories
from tests.conftest import Broker

EVERYWHERE = {"benchmark", "tasks_per_s", "raw_tasks_per_s", "ratio", "p50_ms", "p99_ms", "concurrency", "tasks"}
ABOUT = {"machine", "versions", "commit"}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() >= EVERYWHERE | ABOUT
    assert {"streamtask", "python", "confluent_kafka", "librdkafka", "kafka"} <= found["versions"].keys()
    assert {"cpu", "cores", "system"} <= found["machine"].keys()
    return found


def test_without_options_a_thousand_handlers_run_at_once_and_no_broker_is_named() -> None:
    options = parse(["throughput"])
    assert (options.concurrency, options.partitions, options.tasks) == (1_000, 12, None)
    assert (options.json, options.bootstrap) == (False, None)


@pytest.mark.parametrize(
    "argv", [[], ["speed"], ["latency", "--tasks", "0"], ["latency", "--tasks", "many"], ["throughput", "--fast"]]
)
def test_a_wrong_command_line_ends_with_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert "usage: python -m benchmarks" in capsys.readouterr().err


def test_a_rate_over_histories_that_are_not_complete_is_refused() -> None:
    check_histories(Counter(created=2, running=2, completed=2), 2)
    with pytest.raises(Failed, match="nothing was measured"):
        check_histories(Counter(created=2, running=2, completed=1), 2)


def test_quantiles_are_those_of_the_sorted_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert quantile(values, 0.5) == pytest.approx(50.5)
    assert quantile(values, 0.99) == pytest.approx(99.01)
    assert quantile([7.0], 0.99) == 7.0


def test_what_was_not_measured_is_null_in_the_line_and_left_out_of_the_table() -> None:
    shown = table({"tasks_per_s": None, "p50_ms": 8.1, "parts": {"pick": 1}})
    assert "tasks_per_s" not in shown
    assert "8.1" in shown
    assert "pick 1" in shown


def test_the_rooms_are_measured_without_a_broker(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "rooms", "--tasks", "600", "--partitions", "3", "--concurrency", "50")
    assert tuple(found["rooms_us"]) == ROOMS
    assert found["cpu_us_per_task"] > 0
    assert found["tasks_per_s"] is None


def test_the_audit_is_measured_without_a_broker_and_keeps_few_bytes_of_a_task(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(capsys, "audit", "--tasks", "3000", "--partitions", "3")
    assert (found["tasks"], found["events"]) == (3_000, 12_000)
    assert found["events_per_s"] > 0
    assert found["rss_max_mb"] >= found["rss_before_mb"]


@pytest.mark.broker
def test_throughput_stands_beside_the_raw_loop_of_the_same_run(
    capsys: pytest.CaptureFixture[str], broker: Broker
) -> None:
    options = ("--tasks", "600", "--partitions", "3", "--concurrency", "50", "--bootstrap", broker.bootstrap)
    found = run(capsys, "throughput", *options)
    assert found["tasks"] == 600
    assert found["raw_tasks_per_s"] == max(found["raw_runs_per_s"])
    assert len(found["raw_runs_per_s"]) == 3
    assert found["ratio"] == pytest.approx(found["tasks_per_s"] / found["raw_tasks_per_s"], abs=0.002)
    # The raw loop is only a limit if its events are as long as ours.
    assert found["raw_event_bytes"] == pytest.approx(found["event_bytes"], rel=0.03)
    assert found["p50_ms"] is None


@pytest.mark.broker
@pytest.mark.slow
def test_latency_is_told_with_its_parts(capsys: pytest.CaptureFixture[str], broker: Broker) -> None:
    found = run(capsys, "latency", "--tasks", "20", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert set(found["parts_p50_ms"]) == set(PARTS)
    assert found["tasks"] == 20
    assert found["tasks_per_s"] is None


@pytest.mark.broker
@pytest.mark.slow
def test_how_long_a_cancel_takes_is_told_for_each_kind_alone_and_beside_load(
    capsys: pytest.CaptureFixture[str], broker: Broker
) -> None:
    found = run(capsys, "cancel", "--tasks", "2", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    for name in ("kinds_p50_ms", "kinds_p99_ms", "loaded_p50_ms", "loaded_p99_ms"):
        assert set(found[name]) == {"async", "thread", "process"}
    assert (found["tasks"], found["loaded_tasks"]) == (1, 1)


@pytest.mark.slow
def test_an_unreachable_broker_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", "--tasks", "1", "--bootstrap", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks: ")
