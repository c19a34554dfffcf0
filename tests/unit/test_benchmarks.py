"""The benchmarks: what their command line takes, and the shape of the one line that others read."""

from __future__ import annotations

import asyncio
import inspect
import json
import resource
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.main import get_command

from benchmarks import all_cores, flame, priority, scaling, start, steady, subscribers, throughput, visible
from benchmarks.__main__ import main, parse, table
from benchmarks.check import fallen
from benchmarks.drawing import folded, svg, unfolded
from benchmarks.http_load import closed_loop, open_loop
from benchmarks.latency import PARTS, quantile
from benchmarks.rooms import ROOMS
from benchmarks.soak.measure import Plan
from benchmarks.stand import Failed, bare_server, check_histories, status_counts, topics
from benchmarks.written import STEPS, Task, event
from streamtask.cli import app
from streamtask.codec import decode_status
from streamtask.config import Settings
from streamtask.config.container import cores
from streamtask.errors import ConfigError
from streamtask.kafka.admin import ensure_topics
from streamtask.testing import Broker

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


def test_the_benchmarks_have_the_partitions_that_topics_create_makes() -> None:
    count = Settings.model_fields["partitions"].default
    assert parse(["throughput"]).partitions == Plan(minutes=1, rate=1).partitions == count
    assert inspect.signature(ensure_topics).parameters["partitions"].default == count
    (option,) = (one for one in _options("topics", "create") if one.name == "partitions")
    assert f"(default: {count})" in option.help


def _options(*path: str) -> Sequence[Any]:
    """Those of a command of streamtask."""
    command: Any = get_command(app)
    for name in path:
        command = command.commands[name]
    options: Sequence[Any] = command.params
    return options


@pytest.mark.parametrize(
    "argv", [[], ["speed"], ["latency", "--tasks", "0"], ["latency", "--tasks", "many"], ["throughput", "--fast"]]
)
def test_a_wrong_command_line_ends_with_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert "usage: python -m benchmarks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["latency", "--defaults"], "--defaults is of throughput"),
        (["throughput", "--defaults", "--peers"], "without --peers"),
        (["throughput", "--defaults", "--concurrency", "50"], "it measures their defaults"),
        (["throughput", "--defaults", "--partitions", "3"], "it measures their defaults"),
    ],
)
def test_the_defaults_are_measured_as_they_are(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["throughput", "--defaults"]).defaults
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


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


def test_the_table_of_an_axis_says_what_became_of_each_figure() -> None:
    rows = [
        {"value": 20_000, "tasks_per_s": 8_000, "cpu_us_per_task": 60.0, "tasks": 20_000},
        {"value": 400_000, "tasks_per_s": 6_000, "cpu_us_per_task": 75.0, "tasks": 400_000},
    ]
    shown = scaling.text({"axes": {"backlog": rows}}).splitlines()
    assert shown[0].split("  ")[0] == "backlog"
    assert shown[2].split() == ["400,000", "400,000", "6,000", "0.75", "75.0", "1.25"]


def test_a_ratio_has_fallen_when_its_median_is_15_percent_lower_and_no_round_reaches_the_lowest_recorded_one() -> None:
    recorded = {"throughput": [0.20, 0.22, 0.24]}
    (line,) = fallen(recorded, {"throughput": [0.15, 0.16, 0.19]})
    assert line == "throughput: 0.160 of its limit; it was 0.220 (-27%)"
    assert fallen(recorded, {"throughput": [0.15, 0.16, 0.21]}) == [], "one round reached it: noise"
    assert fallen(recorded, {"throughput": [0.19, 0.19, 0.19]}) == [], "less than 15 %"
    assert fallen(recorded, {"submit": [0.1]}) == [], "never recorded"


def test_the_written_events_are_what_a_worker_writes() -> None:
    task = Task("0190a5e2-7d44-7f00-8000-000000000001", 3, "high-3@7", 9, 1_795_505_160_123)
    for status in STEPS:
        read = decode_status(event(task, status))
        assert (read.task_id, read.status.value, read.origin) == (task.task_id, status, "high-3@7")
        assert read.attempt == (None if status == "created" else 1)
    assert decode_status(event(task, "completed")).result == {"path": "lib/module.py", "size": 3}


def test_a_flame_graph_stands_callees_on_callers_and_leaves_out_what_nobody_could_read() -> None:
    stacks = unfolded(
        "loop;run (streamtask/worker/loop.py);poll (streamtask/kafka/broker_adapter.py) 700\n"
        "loop;run (streamtask/worker/loop.py) 299\n"
    )
    stacks[("loop", "<narrow>")] = 1
    drawn = svg(stacks, "a & b")
    tree = ElementTree.fromstring(drawn)
    titles = [title.text for title in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == [
        "all 100.0%",
        "loop 100.0%",
        "run (streamtask/worker/loop.py) 99.9%",
        "poll (streamtask/kafka/broker_adapter.py) 70.0%",
    ]
    assert "a &amp; b" in drawn
    assert unfolded(folded(stacks)) == stacks


def test_a_stack_begins_with_the_name_of_its_thread_and_with_our_code() -> None:
    looked = (
        "thread (0x7F12AB): loop",
        "_bootstrap (/usr/lib/python3.11/threading.py)",
        "run (/x/streamtask/worker/loop.py)",
    )
    assert flame.short(looked) == ("loop", "run (streamtask/worker/loop.py)")
    assert flame.short(("thread (0x7F12AB)", "f (/a/b/c.py)")) == ("librdkafka", "f (b/c.py)")


def test_a_shard_is_owned_from_its_claim_until_the_worker_says_otherwise() -> None:
    """The claim once took the shards away again: whoever looked after it waited for ever (CI, once)."""
    told = [("assigned", [0, 1, 2]), ("claimed", [0, 1, 2]), ("revoked", [0]), ("lost", [1])]
    lines = [json.dumps({"event": f"shards_{name}", "level": "info", "shards": shards}) for name, shards in told]
    logs = ["\n".join(lines[:count]) for count in range(5)]
    assert [scaling.owned(log) for log in logs] == [set(), set(), {0, 1, 2}, {1, 2}, {2}]


def test_the_http_load_counts_answers_and_times_them_from_when_they_were_due() -> None:
    with bare_server(100) as url:
        assert asyncio.run(closed_loop(url, ["/a"], connections=4, seconds=0.2)) > 0
        took = asyncio.run(open_loop(url, ["/a", "/b"], connections=4, rate=200, seconds=0.2))
    assert 0 < len(took) <= 41
    assert all(ms > 0 for ms in took)


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
def test_the_defaults_are_measured_beside_one_raw_loop_and_as_many_as_there_are_worker_processes(
    capsys: pytest.CaptureFixture[str], broker: Broker
) -> None:
    found = run(capsys, "throughput", "--defaults", "--tasks", "600", "--bootstrap", broker.bootstrap)
    assert (found["processes"], found["processes_by"]) == (cores().count, cores().source)
    assert found["raw_processes"] in (1, min(found["processes"], found["partitions"])), "the faster of the two"
    assert found["concurrency"] == Settings.model_fields["concurrency"].default
    assert len(found["raw_runs_per_s"]) == (6 if found["processes"] > 1 else 3)
    assert found["ratio"] == pytest.approx(found["tasks_per_s"] / found["raw_tasks_per_s"], abs=0.005)
    assert found["raw_event_bytes"] == pytest.approx(found["event_bytes"], rel=0.03)
    assert min(found["cpu_us_per_task"], found["raw_cpu_us_per_task"]) > 0


@pytest.mark.broker
@pytest.mark.slow
def test_raw_loops_that_share_a_backlog_read_each_request_once(broker: Broker) -> None:
    with topics(broker.bootstrap, "bench", 3) as names, topics(broker.bootstrap, "raw", 3) as raw:
        asyncio.run(throughput.submit(broker.bootstrap, names, 60, "noop"))
        all_cores.raw_loops(broker.bootstrap, names, raw.status, 60, 2)
        check_histories(status_counts(broker.bootstrap, raw), 60)
        with pytest.raises(Failed, match="60 of 61 requests"):
            all_cores.raw_loops(broker.bootstrap, names, raw.status, 61, 2)


@pytest.mark.broker
@pytest.mark.slow
def test_an_axis_is_told_as_figures_of_each_of_its_runs_and_their_ratios_to_the_first(
    capsys: pytest.CaptureFixture[str], broker: Broker
) -> None:
    options = ("--tasks", "900", "--partitions", "3", "--axis", "format", "--bootstrap", broker.bootstrap)
    found = run(capsys, "scaling", *options)
    assert list(found["axes"]) == ["format"]
    first, last = found["axes"]["format"]
    assert (first["value"], first["tasks"], last["value"], last["tasks"]) == ("json", 600, "avro", 600)
    assert min(first["tasks_per_s"], last["tasks_per_s"], first["cpu_us_per_task"], last["cpu_us_per_task"]) > 0
    ratio = last["tasks_per_s"] / first["tasks_per_s"]
    assert found["to_first"]["format"]["avro"]["tasks_per_s"] == pytest.approx(ratio, abs=0.006)


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
def test_latency_at_a_rate_counts_every_task_that_was_due_behind_the_warm_up(
    capsys: pytest.CaptureFixture[str], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady, "WARM_UP_S", 0.2)
    options = ("--rate", "100", "--tasks", "50", "--partitions", "3", "--bootstrap", broker.bootstrap)
    found = run(capsys, "latency", *options)
    assert (found["tasks"], found["rate_per_s"]) == (50, 100)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert set(found["parts_p50_ms"]) == set(PARTS)


@pytest.mark.broker
@pytest.mark.slow
def test_an_urgent_request_is_timed_alone_and_behind_a_backlog_that_is_still_there(
    capsys: pytest.CaptureFixture[str], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priority, "PROBES", 20)
    options = ("--tasks", "10000", "--partitions", "3", "--concurrency", "10", "--bootstrap", broker.bootstrap)
    found = run(capsys, "priority", *options)
    assert 0 < found["alone_p50_ms"] <= found["alone_p99_ms"]
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert 0 < found["left"] < found["tasks"] == 10_000
    assert found["slots"] == 10
    assert 0 < found["slots_busy"] <= 10 + 1, "what began before the first urgent one may end after it"
    assert found["urgent"] == 20


@pytest.mark.broker
@pytest.mark.slow
def test_a_backlog_that_is_done_too_early_is_no_backlog(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(priority, "PROBES", 5)
    monkeypatch.setattr(priority, "BUSY_ROUNDS", 1)
    options = ("--tasks", "30", "--partitions", "3", "--concurrency", "10", "--bootstrap", broker.bootstrap)
    assert main(["priority", *options]) == 2
    assert "give more --tasks" in capsys.readouterr().err


@pytest.mark.broker
@pytest.mark.slow
def test_a_start_is_told_with_its_parts(capsys: pytest.CaptureFixture[str], broker: Broker) -> None:
    found = run(capsys, "start", "--tasks", "1", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert len(found["starts_ms"]) == 1
    assert set(found["parts_p50_ms"]) == set(start.PARTS)
    assert sum(found["parts_p50_ms"].values()) == pytest.approx(found["p50_ms"], abs=5)


@pytest.mark.broker
@pytest.mark.slow
def test_what_a_task_in_flight_takes_is_told_in_bytes(capsys: pytest.CaptureFixture[str], broker: Broker) -> None:
    found = run(capsys, "memory", "--in-flight", "1000", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert found["in_flight"] == [10, 1_000]
    assert 0 < found["bytes_per_task"] < 50_000
    assert found["rss_mb_many"] > found["rss_mb_few"]


@pytest.mark.broker
@pytest.mark.slow
def test_a_worker_at_work_is_drawn(capsys: pytest.CaptureFixture[str], broker: Broker, tmp_path: Path) -> None:
    try:
        flame.find_spy()
    except ConfigError as error:
        pytest.skip(str(error))
    out = tmp_path / "worker.svg"
    # py-spy needs a second to begin; 20,000 tasks were done by then (seen once).
    options = ("--tasks", "60000", "--partitions", "3", "--out", str(out), "--bootstrap", broker.bootstrap)
    found = run(capsys, "flame", *options)
    assert found["looks"] > 0
    assert "Worker.run" in out.read_text()


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


@pytest.mark.broker
@pytest.mark.slow
def test_submits_stand_beside_the_producer_of_confluent_kafka(
    capsys: pytest.CaptureFixture[str], broker: Broker
) -> None:
    found = run(capsys, "submit", "--tasks", "2000", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert found["ratio"] == pytest.approx(found["tasks_per_s"] / found["raw_tasks_per_s"], abs=0.002)
    assert (len(found["bulk_runs_per_s"]), len(found["raw_runs_per_s"])) == (2, 4)
    assert found["awaited_per_s"] > 0
    assert 0 < found["awaited_p50_ms"] <= found["awaited_p99_ms"]


@pytest.mark.broker
@pytest.mark.slow
def test_a_restore_stands_beside_a_reader_that_keeps_nothing(
    capsys: pytest.CaptureFixture[str], broker: Broker
) -> None:
    found = run(capsys, "restore", "--tasks", "2000", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert (found["tasks"], found["events"]) == (2_000, 6_000)
    assert found["events_per_s"] == pytest.approx(found["tasks_per_s"] * 3, rel=0.01)
    assert found["ready_s"] > 0
    assert found["finished_events_per_s"] > 0
    assert found["ratio"] > 0


@pytest.mark.broker
@pytest.mark.slow
def test_lookups_stand_beside_a_bare_server(capsys: pytest.CaptureFixture[str], broker: Broker) -> None:
    found = run(capsys, "lookup", "--tasks", "300", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert found["ratio"] == pytest.approx(found["lookups_per_s"] / found["bare_per_s"], abs=0.002)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["events_per_s"] > 0


@pytest.mark.broker
@pytest.mark.slow
def test_how_long_a_commit_takes_to_be_visible_is_told(
    capsys: pytest.CaptureFixture[str], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visible, "TASKS_PER_S", 100)  # a busy machine's view would be behind at 5,000
    found = run(capsys, "visible", "--tasks", "50", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["tasks"] >= 50


@pytest.mark.broker
@pytest.mark.slow
def test_how_long_an_event_takes_to_the_last_of_many_subscribers_is_told(
    capsys: pytest.CaptureFixture[str], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "UPDATES", 3)
    found = run(capsys, "subscribers", "--tasks", "50", "--partitions", "3", "--bootstrap", broker.bootstrap)
    assert (found["tasks"], found["updates"]) == (50, 3)
    for kind in ("filter", "task"):
        assert 0 < found[kind]["each_p50_ms"] <= found[kind]["last_p50_ms"]


def test_more_subscribers_than_files_may_be_open_are_refused_before_anything_is_measured() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        with pytest.raises(Failed, match="ulimit"):
            subscribers.open_files(hard + 1)


@pytest.mark.slow
def test_an_unreachable_broker_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", "--tasks", "1", "--bootstrap", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks: ")
