"""What a worker says of itself: counters, snapshot, health and readiness, the endpoint."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import astuple
from email.message import Message
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from streamtask.config import TopicNames, load_settings
from streamtask.config.kafka import KafkaSettings
from streamtask.core import ownership, protocol, set_aside
from streamtask.core.shard import Standing
from streamtask.domain.identity import trace_id
from streamtask.domain.model import BANDS, Ending, Outcome, Retry, TaskPolicy, TaskRequest
from streamtask.domain.ports import (
    DEAD,
    STATUS,
    UNKNOWN,
    Answer,
    Ask,
    Cell,
    EndTransaction,
    Fault,
    FaultKind,
    Produce,
    Settled,
)
from streamtask.errors import ConfigError
from streamtask.execution.stack_location import Stragglers
from streamtask.handlers.registry import Context
from streamtask.kafka.broker_adapter import Deadlines
from streamtask.kafka.lag import LogEnds, Seen
from streamtask.worker.endpoint import METRICS, Endpoint, WorkerCollector
from streamtask.worker.metrics import BEAT_MAX_S, CLAIM_MAX_S, OTHER, Observer, log_backlog
from streamtask.worker.watchdog import STUCK_S
from tests.core.desk import RETURNED, Desk, raised

STALLED_S = 60.0


class ObservedDesk(Desk):
    """A desk whose answers an observer hears, as in a worker."""

    def __init__(self, policies: dict[str, TaskPolicy] | None = None, **more: Any) -> None:
        policies = policies if policies is not None else {"noop": TaskPolicy()}
        self.observer = Observer(policies, (band.name for band in BANDS), stalled_s=STALLED_S)
        super().__init__(policies, **more)

    def perform(self, ask: Ask) -> Answer:
        answer = super().perform(ask)
        self.observer.performed(ask, answer)
        return answer

    @property
    def now_s(self) -> float:
        return self.now.mono_ms / 1_000

    def look(self, member: bool = True) -> Observer:
        now = self.now
        self.observer.look(self.engine, self.now_s, wall_ms=now.wall_ms, running=len(self.running), member=member)
        return self.observer


def desk(policies: dict[str, TaskPolicy] | None = None, **more: Any) -> ObservedDesk:
    made = ObservedDesk(policies, **more)
    made.ready()
    return made


def run(d: ObservedDesk, task_type: str = "noop", ms: int = 40, outcome: Outcome = RETURNED) -> None:
    record = d.submit(task_type)
    d.settle()
    d.later(ms)
    d.end(record, outcome)
    d.settle()


# --- Counters ---------------------------------------------------------------------------------------------------------


def test_what_was_committed_is_counted_by_type_and_outcome() -> None:
    d = desk({"noop": TaskPolicy(), "bad": TaskPolicy()})
    run(d)
    run(d)
    run(d, "bad", outcome=raised())
    seen = d.look().snapshot
    assert seen.created == 3
    assert seen.types["noop"].ended == {"completed": 2, "failed": 0, "cancelled": 0}
    assert seen.types["bad"].ended == {"completed": 0, "failed": 1, "cancelled": 0}
    assert seen.types["noop"].attempts == 2
    assert seen.dead == {"handler_error": 1}
    assert seen.events == len(d.events)
    assert seen.commits == sum(seen.commit_times.counts)


def test_a_duration_lies_in_the_bucket_whose_bound_it_does_not_pass() -> None:
    d = desk()
    run(d, ms=50)
    held = d.look().snapshot.types["noop"].durations
    assert held.seconds == pytest.approx(0.05)
    assert held.counts[3] == 1, "0.025 < 0.05 <= 0.05"
    assert sum(held.counts) == 1


def test_a_retry_is_an_attempt_after_the_first_and_progress_is_none() -> None:
    d = desk({"noop": TaskPolicy(retry=Retry(attempts=3, backoff_ms=0))})
    record = d.submit()
    d.settle()
    d.engine.progressed(next(iter(d.running)), 0.5, None, d.now)
    d.settle()
    d.end(record, raised())
    d.settle()
    d.later(1)
    d.settle()
    d.end(record)
    d.settle()
    of = d.look().snapshot.types["noop"]
    assert d.history(record).count("running 1") == 3, "its start, its progress, its wait"
    assert (of.attempts, of.retries) == (2, 1)
    assert of.ended["completed"] == 1


def test_an_aborted_transaction_counts_nothing() -> None:
    d = desk()
    d.submit()
    batch = d.engine.build(d.now)
    assert batch is not None
    d.observer.performed(Produce(batch.plan), None)
    d.observer.performed(EndTransaction(), Fault(FaultKind.RETRY, "no"))
    d.observer.performed(EndTransaction(), None)
    assert d.observer.tally.commits == 0


def test_types_that_no_handler_knows_share_one_name() -> None:
    d = desk(unknown_type_grace_ms=1)
    for number in range(3):
        d.submit(f"strange-{number}")
    d.settle()
    d.later(2)
    d.settle()
    seen = d.look().snapshot
    assert set(seen.types) == {"noop", OTHER}
    assert seen.types[OTHER].ended["failed"] == 3
    assert seen.types[OTHER].attempts == 0, "they never ran"


def test_a_death_is_counted_by_the_worker_that_charges_it() -> None:
    d = desk()
    d.submit()
    d.settle()
    assert len(d.running) == 1
    other = d.successor()
    assert other.engine.deaths == 1
    assert d.engine.deaths == 0


def test_the_death_of_a_child_is_counted() -> None:
    d = desk()
    run(d, outcome=Outcome(Ending.LOST, error="exit code 1"))
    assert d.look().snapshot.deaths == 1


# --- What waits -------------------------------------------------------------------------------------------------------


def test_the_backlog_is_what_was_read_and_not_started_and_its_age_is_that_of_the_record() -> None:
    d = desk(slots={})
    d.submit(band=2)
    d.later(5_000)
    d.submit(band=2)
    d.submit(band=0)
    d.turn()
    bands = d.look().snapshot.bands
    assert [of.tasks for of in bands] == [1, 0, 2]
    assert [of.oldest_s for of in bands] == [0.0, 0.0, 5.0]


def test_the_log_backlog_is_the_end_less_the_position_less_what_is_done_above() -> None:
    d = desk(slots={})
    records = [d.submit() for _ in range(4)]
    d.turn()
    d.engine.cancel_read([records[2].task_id], d.now)  # done above the position
    d.settle()
    seen = d.look().snapshot
    assert log_backlog(seen, {(1, 0): 4}, 1) == 3
    assert log_backlog(seen, {(1, 0): 14}, 1) == 13, "ten that nobody has read yet"
    assert log_backlog(seen, {(1, 0): 2}, 1) == 3, "an end from before they came"
    assert log_backlog(seen, {}, 0) == 0


# --- Health -----------------------------------------------------------------------------------------------------------


def test_a_worker_is_unhealthy_when_work_waits_and_nothing_moves() -> None:
    d = desk({"noop": TaskPolicy(concurrency=1)})
    first = d.submit()
    d.submit()
    d.settle()
    assert d.look().health(0.0)[0]
    d.later(int(STALLED_S * 1_000))
    assert d.look().health(0.0)[0], "not longer than that"
    d.later(1_000)
    healthy, facts = d.look().health(0.0)
    assert not healthy
    assert facts["problems"] == ["nothing started, ended or reported for 61 s while 1 tasks wait and 1 run"]
    d.end(first)
    d.settle()
    assert d.look().health(0.0)[0], "one ended, the next one started"


def test_a_long_task_is_no_stall_while_nothing_waits_or_it_reports() -> None:
    d = desk({"noop": TaskPolicy(concurrency=1)})
    d.submit()
    d.settle()
    for _ in range(3):
        d.look()
        d.later(40_000)
    assert d.look().health(0.0)[0], "nothing waits"
    d.submit()
    for step in range(3):
        d.engine.progressed(next(iter(d.running)), step / 10, None, d.now)
        d.settle()
        assert d.look().health(0.0)[0], "it reports"
        d.later(40_000)


def test_requests_that_come_in_are_no_progress() -> None:
    d = desk(slots={})
    for _ in range(4):
        d.submit()
        d.settle()
        d.look()
        d.later(30_000)
    assert not d.look().health(0.0)[0]


def test_a_worker_whose_end_cannot_be_committed_is_unhealthy() -> None:
    d = desk()
    record = d.submit()
    d.settle()
    d.look()
    d.end(record)
    for _ in range(3):
        d.look()
        d.later(40_000)
    assert not d.look().health(0.0)[0], "its end is owed, and nobody says yes"


def test_a_refused_shard_is_named_and_not_ready_and_no_reason_for_a_restart() -> None:
    """Bug: a liveness probe restarted the worker of a roll-back again and again, and each time its other shards moved."""
    d = desk()
    ownership.own(d.engine, (3,))
    ownership.refuse(d.engine, 3, "a newer release wrote it")
    healthy, facts = d.look().health(0.0)
    assert (healthy, facts["state"]) == (True, "refusing")
    assert facts["problems"] == ["shard 3 is refused: a newer release wrote it"]
    assert facts["shards"] == {"open": 1, "refused": 1}
    assert not d.look().ready()[0]
    healthy, facts = d.look().health(BEAT_MAX_S + 2)
    assert (healthy, facts["state"], len(facts["problems"])) == (False, "unhealthy", 2)


def test_a_partition_set_aside_is_named_and_no_reason_for_a_restart() -> None:
    d = desk()
    d.submit()
    d.settle()
    set_aside.set_aside(d.engine, [(STATUS, 0), DEAD], "in-sync replicas [1] of [1, 2]", d.now)
    d.end(next(iter(d.running.values())).record)
    for _ in range(4):
        d.look()
        d.later(40_000)
    healthy, facts = d.look().health(0.0)
    assert (healthy, facts["state"]) == (True, "degraded")
    assert facts["problems"] == [
        "partition 0 of tasks.status has taken no records for 160 s: in-sync replicas [1] of [1, 2]; shard 0 waits",
        "tasks.dead has taken no records for 160 s: in-sync replicas [1] of [1, 2]; tasks that failed wait",
    ]
    collector = WorkerCollector(d.observer, lambda: 0.0, lambda: Seen({}, None, 0.0))
    found = {
        (sample.labels["topic"], sample.labels["partition"])
        for metric in collector.collect()
        for sample in metric.samples
        if sample.name == "streamtask_partition_set_aside_seconds"
    }
    assert found == {("status", "0"), ("dead", "-1")}


def test_a_request_partition_without_a_leader_is_named_and_no_reason_for_a_restart() -> None:
    d = desk(shards=(0, 1))
    d.submit(shard=1)
    d.settle()
    ownership.renewed(d.engine, "tasks.workers.0.99")  # every shard is claimed again; what runs of shard 1 goes on
    led = Settled(0, None, 0, 1)
    settled = {(band, number): led for band in range(3) for number in (0, 1)} | {
        (1, 1): Settled(0, None, UNKNOWN, UNKNOWN)
    }
    assert ownership.with_leaders(d.engine, (0, 1), settled, d.now) == (0,)
    d.end(next(iter(d.running.values())).record)
    d.engine.shards[0].standing = Standing.OPEN
    for _ in range(4):
        d.look()
        d.later(40_000)
    healthy, facts = d.look().health(0.0)
    assert (healthy, facts["state"]) == (True, "degraded")
    assert facts["problems"] == ["partition 1 of tasks.requests.normal has had no leader for 160 s; shard 1 waits"]
    assert not d.observer.ready()[0], "shard 1 is not open"
    assert ownership.unclaimed(d.engine, d.now) == (1,), "it is tried again"
    assert ownership.with_leaders(d.engine, (1,), dict.fromkeys(settled, led), d.now) == (1,)
    assert d.look().health(0.0)[1]["problems"] == []


def test_a_blocked_loop_is_unhealthy_after_a_while_and_stragglers_are_counted() -> None:
    d = desk()

    def health(blocked_s: float) -> tuple[bool, dict[str, Any]]:
        late = Stragglers(2, 1, 4, blocked_s, "slow.py:3 in wait")
        observer = d.observer
        observer.look(d.engine, d.now_s, wall_ms=d.now.wall_ms, running=0, member=True, stragglers=late)
        return observer.health(0.0)

    healthy, facts = health(STALLED_S)
    assert (healthy, facts["overdue"], facts["abandoned"]) == (True, 2, 1)
    healthy, facts = health(STALLED_S + 1)
    assert not healthy
    assert facts["problems"] == ["the handlers' event loop has been blocked for 61 s at slow.py:3 in wait"]


def test_a_claim_that_does_not_come_through_is_unhealthy_after_a_while() -> None:
    d = desk()
    ownership.own(d.engine, (3,))
    assert d.look().health(0.0)[0]
    d.later(int(CLAIM_MAX_S * 1_000) + 1_000)
    assert d.look().health(0.0)[1]["problems"] == [f"a shard could not be claimed for {CLAIM_MAX_S + 1:.0f} s"]
    protocol.lost(d.engine, (3,))
    assert d.look().health(0.0)[0]


def test_a_shard_that_came_back_begins_a_new_wait() -> None:
    d = desk()
    ownership.own(d.engine, (3,))
    d.look()
    d.later(int(CLAIM_MAX_S * 1_000) - 1_000)
    ownership.forget(d.engine, (3,))
    ownership.own(d.engine, (3,))
    d.look()
    d.later(2_000)
    assert d.look().health(0.0)[0]


def test_an_owner_without_a_sign_of_life_is_unhealthy() -> None:
    observer = desk().look()
    assert observer.health(BEAT_MAX_S)[0]
    healthy, facts = observer.health(BEAT_MAX_S + 2)
    assert not healthy
    assert "no sign of life for 17 s" in facts["problems"][0]


def test_the_longest_call_of_a_broker_that_is_away_is_no_silence_of_the_owner() -> None:
    """Bug: in an outage each try for a new producer takes 10 s, and a probe at its end found the worker unhealthy."""
    longest_s = max(astuple(Deadlines()))
    assert desk().look().health(longest_s + 3.0)[0]
    assert BEAT_MAX_S < STUCK_S - 2.0, "told before the watchdog acts"


def test_while_no_broker_answers_health_says_so_and_asks_for_no_restart_and_ready_is_no() -> None:
    d = desk()
    observer = d.look()
    assert (observer.health(0.0)[1]["state"], observer.health(0.0)[1]["kafka"]) == ("healthy", "answers")
    healthy, facts = observer.health(0.0, 12.0)
    assert (healthy, facts["state"], facts["problems"]) == (True, "cut_off", [])
    assert facts["kafka"] == observer.ready(12.0)[1]["why"] == "no broker has answered for 12 s"
    assert (observer.ready()[0], observer.ready(12.0)[0]) == (True, False)
    assert observer.health(BEAT_MAX_S + 2, 12.0)[1]["state"] == "unhealthy", "what a restart mends comes first"


# --- Ready ------------------------------------------------------------------------------------------------------------


def test_a_worker_is_ready_once_it_is_a_member_and_every_shard_is_open() -> None:
    d = ObservedDesk()
    assert not d.observer.ready()[0], "nothing is known yet"
    assert d.look(member=False).ready()[1]["why"] == "it has not joined the group"
    assert d.look().ready()[1]["why"] == "1 of its shards are not open", "tasks.control is still to be read"
    d.ready()
    assert d.look().ready()[0]
    ownership.own(d.engine, (3,))
    ownership.refuse(d.engine, 3, "no")
    assert not d.look().ready()[0]


def test_a_member_without_shards_stands_by_and_a_draining_one_is_not_ready() -> None:
    d = ObservedDesk(claim=False)
    assert d.look().ready()[0]
    d.engine.drain()
    assert d.look().ready()[1]["why"] == "it drains"
    assert d.observer.health(0.0) == (True, d.observer.health(0.0)[1])
    assert d.observer.health(0.0)[1]["state"] == "draining"


# --- The endpoint -----------------------------------------------------------------------------------------------------


def answer(url: str, accept: str = "") -> tuple[int, str, Message]:
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=30) as got:
            return got.status, got.read().decode(), got.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


ENDS: dict[Cell, int] = {(1, 0): 7}


@pytest.fixture
def endpoint() -> Iterator[tuple[ObservedDesk, Endpoint]]:
    d = desk()
    made = Endpoint(WorkerCollector(d.observer, lambda: 0.25, lambda: Seen(ENDS, 1.5)), host="127.0.0.1", port=0)
    made.start()
    yield d, made
    made.stop()


def test_the_endpoint_answers_metrics_health_ready_and_nothing_else(endpoint: tuple[ObservedDesk, Endpoint]) -> None:
    d, made = endpoint
    run(d)
    d.look()
    status, text, headers = answer(f"{made.url}/metrics")
    assert (status, headers["Content-Type"][:10]) == (200, "text/plain")
    assert 'streamtask_tasks_ended_total{outcome="completed",task_type="noop"} 1.0' in text
    assert 'streamtask_log_backlog_tasks{band="normal"} 6.0' in text, "7 less the one that is done"
    assert "process_resident_memory_bytes" in text
    status, text, _ = answer(f"{made.url}/health?verbose")
    assert (status, json.loads(text)["state"]) == (200, "healthy")
    assert answer(f"{made.url}/ready")[0] == 200
    d.later(1)
    d.engine.drain()
    d.look()
    status, text, _ = answer(f"{made.url}/ready")
    assert (status, json.loads(text)["why"]) == (503, "it drains")
    assert answer(f"{made.url}/")[0] == 404


def test_a_client_that_says_nothing_holds_nobody_up(endpoint: tuple[ObservedDesk, Endpoint]) -> None:
    _, made = endpoint
    host, port = made.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))):
        began = time.monotonic()
        assert answer(f"{made.url}/health")[0] == 200
        assert time.monotonic() - began < 10


def test_a_port_that_is_taken_is_an_error_that_says_so(endpoint: tuple[ObservedDesk, Endpoint]) -> None:
    d, made = endpoint
    port = int(made.url.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"metrics_port={port}: cannot listen"):
        Endpoint(WorkerCollector(d.observer, float, Seen), host="127.0.0.1", port=port)


def test_a_port_beyond_the_last_one_is_an_error_too() -> None:
    observer = desk().observer
    with pytest.raises(ConfigError, match="metrics_port=65536"):
        Endpoint(WorkerCollector(observer, float, Seen), host="127.0.0.1", port=65_536)


def test_while_no_broker_answers_no_log_end_is_known_and_nobody_is_disturbed() -> None:
    asked: list[int] = []

    def wanted() -> list[Cell]:
        asked.append(1)
        return [(0, 0)]

    ends = LogEnds(KafkaSettings("127.0.0.1:1", client_id="test"), TopicNames(), wanted, every_s=0.01)
    ends.start()
    deadline = time.monotonic() + 20
    while len(asked) < 2 and time.monotonic() < deadline:
        ends._stop.wait(0.01)  # it asks again after an error
    ends.stop(5.0)
    ends._thread.join(20)
    assert not ends._thread.is_alive()
    seen = ends.seen()
    assert (len(asked) >= 2, seen.ends, seen.age_s) == (True, {}, None)
    assert seen.silent_s > 0, "since the first question"


def test_the_settings_have_their_bounds() -> None:
    assert load_settings().metrics_port is None, "off unless asked for"
    with pytest.raises(ConfigError, match="metrics_port"):
        load_settings(metrics_port=70_000)
    with pytest.raises(ConfigError, match="health_stalled_s"):
        load_settings(health_stalled_s=0)


# --- The table --------------------------------------------------------------------------------------------------------


def test_every_metric_of_the_table_is_exported_with_its_kind_and_its_labels(
    endpoint: tuple[ObservedDesk, Endpoint],
) -> None:
    d, made = endpoint
    run(d)
    run(d, outcome=raised())
    d.look()
    families = {
        family.name: family
        for family in text_string_to_metric_families(answer(f"{made.url}/metrics")[1])
        if family.name.startswith("streamtask_")
    }
    assert set(families) == {name.removesuffix("_total") for name in METRICS}
    for name, (kind, labels, meaning) in METRICS.items():
        family = families[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (kind, meaning)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), sample


# --- Logs of one task -------------------------------------------------------------------------------------------------

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_the_logger_of_a_task_carries_who_it_is_and_its_trace() -> None:
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01".encode()}
    ctx = Context.fake(request=TaskRequest(task_type="x"), attempt=2, headers=headers)
    with capture_logs() as lines:
        ctx.log.info("halfway", rows=7)
    assert lines == [
        {
            "event": "halfway",
            "log_level": "info",
            "rows": 7,
            "task_id": ctx.task_id,
            "task_type": "x",
            "attempt": 2,
            "shard": 0,
            "trace_id": TRACE,
        }
    ]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        f"00-{'0' * 32}-00f067aa0ba902b7-01".encode(),
        f"ff-{TRACE}-00f067aa0ba902b7-01".encode(),
        b"\xff" * 55,
    ],
)
def test_a_trace_header_that_is_none_is_left_out(value: bytes) -> None:
    assert trace_id([("traceparent", value)]) is None


def test_a_later_version_of_the_trace_header_is_understood() -> None:
    assert trace_id([("x", b"y"), ("traceparent", f"01-{TRACE}-00f067aa0ba902b7-01-more".encode())]) == TRACE
