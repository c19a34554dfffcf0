"""What a real worker process says of itself over HTTP: numbers that agree with its events, health, readiness."""

from __future__ import annotations

import json
import random
import signal
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamtask.domain.model import TaskRequest
from tests.acceptance.harness import PATIENT, WAIT_S, Bench, Running, until

pytestmark = [pytest.mark.broker, pytest.mark.acceptance]


def get(url: str) -> tuple[int, str]:
    """(0, "") when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=30) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def verdict(url: str) -> tuple[int, dict[str, Any]]:
    status, text = get(url)
    return status, json.loads(text) if text else {}


def metrics(url: str) -> dict[tuple[str, ...], float]:
    """{(name, label values in the order of their labels' names...): value}"""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(get(f"{url}/metrics")[1])
        for sample in family.samples
    }


def url_of(worker: Running) -> str:
    return str(until(lambda: worker.events("metrics_listening"), "it listens")[0]["url"])


def until_answer(url: str, status: int, timeout_s: float = WAIT_S) -> dict[str, Any]:
    until(lambda: verdict(url)[0] == status, lambda: f"{url} answers {status}; it is {verdict(url)}", timeout_s)
    return verdict(url)[1]


def test_the_numbers_of_a_worker_under_load_agree_with_its_events(bench: Bench) -> None:
    worker = bench.worker(PATIENT, STREAMTASK_METRICS_PORT="0")
    url = url_of(worker)
    ready = f"{url}/ready"  # 200 also before it has shards: with more workers than shards it may never have one
    until(lambda: verdict(ready)[1].get("shards") == {"open": 4}, lambda: f"all are its own; it is {verdict(ready)}")
    assert verdict(ready)[0] == 200
    tasks = bench.client.submit_many([TaskRequest(task_type="noop", priority=1 + n % 10) for n in range(300)])
    tasks += bench.client.submit_many([TaskRequest(task_type="flaky", parameters={"failures": 1})] * 5)
    tasks += bench.client.submit_many([TaskRequest(task_type="hopeless")] * 3)
    tasks += bench.client.submit_many([TaskRequest(task_type="plain")] * 20)
    bench.ends([one.task_id for one in tasks])
    told = sum(len(events) for events in bench.histories().values())
    events = ("streamtask_commit_events_total",)
    until(lambda: metrics(url).get(events) == told, lambda: f"{told} are counted; it is {metrics(url).get(events)}")
    seen = metrics(url)
    assert seen["streamtask_tasks_ended_total", "failed", "hopeless"] == 3
    assert seen["streamtask_attempts_total", "flaky"] == 10
    assert seen["streamtask_retries_total", "flaky"] == 5
    assert seen["streamtask_task_duration_seconds_count", "plain"] == 20
    assert seen["streamtask_dead_letters_total", "handler_error"] == 3
    assert seen["streamtask_tasks_ended_total", "completed", "noop"] == 300
    assert seen["streamtask_slots", "thread"] == 16
    until(lambda: metrics(url).get(("streamtask_log_backlog_tasks", "normal")) == 0, "nothing is left in the log")
    assert verdict(f"{url}/health")[1]["state"] == "healthy"
    bench.finish()


@pytest.mark.slow
def test_health_says_so_when_handlers_block_with_work_waiting_and_takes_it_back(bench: Bench) -> None:
    worker = bench.worker(
        PATIENT, STREAMTASK_METRICS_PORT="0", STREAMTASK_HEALTH_STALLED_S="1.5", STREAMTASK_CONCURRENCY="2"
    )  # one of the two slots is kept for high
    url = url_of(worker)
    until_answer(f"{url}/ready", 200)
    gate = bench.directory / "gate"
    tasks = [bench.client.submit("wait_for", {"path": str(gate)})]
    until(lambda: len(bench.executions()) == 1, "it holds the only slot")
    tasks += [bench.client.submit("noop") for _ in range(6)]
    until_answer(f"{url}/health", 503)

    def problems() -> str:
        return str(verdict(f"{url}/health")[1]["problems"])

    until(lambda: "while 6 tasks wait and 1 run" in problems(), problems)
    backlog = ("streamtask_log_backlog_tasks", "normal")
    until(lambda: metrics(url).get(backlog) == 7, lambda: f"7 have not ended; it is {metrics(url).get(backlog)}")
    assert metrics(url)["streamtask_backlog_tasks", "normal"] == 6
    assert metrics(url)["streamtask_backlog_oldest_seconds", "normal"] > 1.5
    assert metrics(url)["streamtask_healthy",] == 0
    assert verdict(f"{url}/ready")[0] == 200, "it takes requests all the same"
    gate.touch()
    until_answer(f"{url}/health", 200)
    bench.ends([one.task_id for one in tasks])
    bench.finish()


def test_a_draining_worker_is_healthy_and_not_ready(bench: Bench) -> None:
    worker = bench.worker(PATIENT, STREAMTASK_METRICS_PORT="0")
    url = url_of(worker)
    gate = bench.directory / "gate"
    task = bench.client.submit("wait_for", {"path": str(gate)})
    until(lambda: bench.starts(task.task_id), "it runs")
    until_answer(f"{url}/ready", 200)
    worker.send(signal.SIGTERM)
    assert until_answer(f"{url}/ready", 503)["why"] == "it drains"
    assert verdict(f"{url}/health")[0] == 200
    gate.touch()
    assert worker.wait() == 0
    assert get(f"{url}/health")[0] == 0
    bench.finish()


def test_each_process_of_a_supervisor_has_a_port_of_its_own(bench: Bench) -> None:
    port = two_free_ports()
    parent = bench.supervised(2, STREAMTASK_METRICS_PORT=str(port))
    for number in (port, port + 1):
        until_answer(f"http://127.0.0.1:{number}/ready", 200)
    shards = [verdict(f"http://127.0.0.1:{number}/health")[1]["shards"].get("open", 0) for number in (port, port + 1)]
    until(
        lambda: (
            sum(metrics(f"http://127.0.0.1:{n}").get(("streamtask_shards", "open"), 0) for n in (port, port + 1)) == 4
        ),
        f"together they own all four; first seen {shards}",
    )
    assert parent.drain() == 0
    bench.finish()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_true_backlog_holds_what_nobody_has_read_yet(bench: Bench) -> None:
    """Cells are paused long before: their ends are asked for, and Kafka's own lag would tell something else."""
    worker = bench.worker(PATIENT, STREAMTASK_METRICS_PORT="0", STREAMTASK_CONCURRENCY="40", engine={"backlog_max": 20})
    url = url_of(worker)
    until_answer(f"{url}/ready", 200)
    gate = bench.directory / "gate"
    tasks = bench.client.submit_many([{"task_type": "wait_for", "parameters": {"path": str(gate)}}] * 35)
    until(lambda: len(bench.executions()) == 35, "every slot that is not kept is busy")
    tasks += bench.client.submit_many([TaskRequest(task_type="noop")] * 12_000)
    backlog = ("streamtask_log_backlog_tasks", "normal")
    until(lambda: metrics(url).get(backlog) == 12_035, lambda: f"12,035 are open; it is {metrics(url).get(backlog)}")
    # Four cells, and at most one poll of 2,000 records for each before it is paused.
    assert metrics(url)["streamtask_backlog_tasks", "normal"] < 12_000, "the rest is in the log"
    gate.touch()
    bench.ends([one.task_id for one in tasks], 300)
    until(lambda: metrics(url).get(backlog) == 0, lambda: f"all have ended; it is {metrics(url).get(backlog)}")
    bench.finish()


@pytest.mark.slow
def test_whoever_takes_over_from_a_worker_that_was_killed_counts_what_it_cost(bench: Bench) -> None:
    first, second = bench.worker(STREAMTASK_METRICS_PORT="0"), bench.worker(PATIENT, STREAMTASK_METRICS_PORT="0")
    bench.until_owning(first, 2)
    bench.until_owning(second, 2)
    url = url_of(second)
    until_answer(f"{url}/ready", 200)
    gate = bench.directory / "gate"
    tasks = bench.client.submit_many([{"task_type": "wait_for", "parameters": {"path": str(gate)}}] * 40)
    until(lambda: len(bench.running()) == 40, "all run")
    died = [one for one in bench.running() if one.pid == first.pid]
    assert 0 < len(died) < 40
    before = metrics(url)
    assert before["streamtask_deaths_total",] == 0
    first.kill()
    until(lambda: len(bench.executions()) == 40 + len(died), "they run again")
    until_answer(f"{url}/ready", 200)
    until(
        lambda: metrics(url).get(("streamtask_deaths_total",)) == len(died),
        lambda: f"{len(died)} deaths; it is {metrics(url).get(('streamtask_deaths_total',))}",
    )
    backlog = ("streamtask_log_backlog_tasks", "normal")
    until(lambda: metrics(url).get(backlog) == 40, lambda: f"40 have not ended; it is {metrics(url).get(backlog)}")
    after = metrics(url)
    assert after["streamtask_shards", "open"] == 4
    assert after["streamtask_rebalances_total", "assigned"] > before["streamtask_rebalances_total", "assigned"]
    assert after["streamtask_in_flight_tasks",] == 40
    assert after["streamtask_retries_total", "wait_for"] == len(died)
    assert verdict(f"{url}/health")[0] == 200
    gate.touch()
    bench.ends([one.task_id for one in tasks])
    bench.finish()


def test_what_a_handler_logs_names_its_task_and_its_trace_wherever_it_runs(bench: Bench) -> None:
    worker = bench.worker(PATIENT, app="tests.acceptance.process_apps:app")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    places = {"says": "on the loop", "says_in_a_thread": "in a thread", "says_in_a_child": "in a child"}
    asked = {name: bench.client.submit(name, headers=headers) for name in places}
    bench.ends([one.task_id for one in asked.values()])
    lines = until(lambda: found if len(found := worker.events("said")) == 3 else None, "three lines")
    for name, receipt in asked.items():
        (line,) = (line for line in lines if line["task_type"] == name)
        assert line.pop("timestamp").endswith("Z")
        assert line == {
            "event": "said",
            "level": "info",
            "where": places[name],
            "task_id": receipt.task_id,
            "task_type": name,
            "attempt": 1,
            "shard": receipt.partition,
            "trace_id": trace,
        }
    bench.finish()


def two_free_ports() -> int:
    """The first of two neighbours, below those that the system gives to clients of the test that runs beside this one."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
