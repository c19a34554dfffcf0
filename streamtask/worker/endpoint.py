"""A worker's own small HTTP endpoint: /metrics (Prometheus), /health, /ready. It reads snapshots, never the engine.

It listens on loopback unless configured otherwise and answers only GET and HEAD. It serves at most CONNECTIONS_MAX requests at
a time, and drops a client that sends nothing for CLIENT_S. docs/reference/metrics.md is generated from the table below.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.startstop import HasLifecycle, Lifecycle
from streamtask.errors import ConfigError
from streamtask.kafka.lag import LogEnds, Seen
from streamtask.observability import event_log
from streamtask.observability.prometheus import COUNTER, GAUGE, HISTOGRAM, Samples, Together, family, render
from streamtask.worker.metrics import (
    COMMITS_S,
    DURATIONS_S,
    REBALANCES,
    Durations,
    Observer,
    Snapshot,
    log_backlog,
)

CONNECTIONS_MAX = 16
CLIENT_S = 5.0
STOP_S = 5.0  # how long a second stop waits for the first

#: name → (kind, labels, meaning). Prometheus' own labels `instance` and `job` distinguish workers; neither is repeated.
METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    # tasks
    "streamtask_tasks_created_total": (COUNTER, (), "Requests admitted: CREATED was published."),
    "streamtask_tasks_ended_total": (COUNTER, ("task_type", "outcome"), "Tasks that ended completed, failed or "
                                     "cancelled."),
    "streamtask_task_duration_seconds": (HISTOGRAM, ("task_type",), "From the start of a task's last attempt to the "
                                         "record of its end."),
    "streamtask_attempts_total": (COUNTER, ("task_type",), "Executions started."),
    "streamtask_retries_total": (COUNTER, ("task_type",), "Executions started after the first one of their task."),
    "streamtask_dead_letters_total": (COUNTER, ("reason",), "Records written to the dead letter topic."),
    "streamtask_deaths_total": (COUNTER, (), "Process deaths charged to tasks: of earlier workers and of child processes."),
    "streamtask_late_results_total": (COUNTER, (), "Results dropped because their shard had moved to another worker."),
    # what waits
    "streamtask_backlog_tasks": (GAUGE, ("band",), "Requests that this worker has read but not started."),
    "streamtask_backlog_oldest_seconds": (GAUGE, ("band",), "Age of the oldest of these requests."),
    "streamtask_log_backlog_tasks": (GAUGE, ("band",), "Requests of the owned shards that have not ended: log end minus "
                                     "position minus those done above it. Scale by the sum of this metric."),
    "streamtask_log_ends_age_seconds": (GAUGE, (), "Age of the log ends behind streamtask_log_backlog_tasks."),
    # what runs
    "streamtask_in_flight_tasks": (GAUGE, (), "Handlers that are running."),
    "streamtask_overdue_tasks": (GAUGE, (), "Handlers still running 5 s after they were stopped; each keeps its slot."),
    "streamtask_abandoned_tasks": (GAUGE, (), "Coroutines that ignored cancellation, were abandoned, and still run."),
    "streamtask_abandoned_total": (COUNTER, (), "Coroutines that were abandoned."),
    "streamtask_loop_blocked_seconds": (GAUGE, (), "How long the handlers' event loop has been blocked; 0 below 5."),
    "streamtask_slots": (GAUGE, ("kind",), "Concurrent executions allowed, by kind of handler."),
    "streamtask_slots_used": (GAUGE, ("kind",), "Slots in use."),
    # memory
    "streamtask_memory_bytes": (GAUGE, ("share",), "Bytes held: waiting (requests until their end is committed), active "
                                "(parameters and results of what runs)."),
    "streamtask_memory_budget_bytes": (GAUGE, (), "Limit of both shares; above it partitions are paused and fewer "
                                       "tasks are started."),
    "streamtask_cells_paused_for_memory": (GAUGE, (), "Request partitions that are paused because the requests read "
                                          "so far fill the memory."),
    "streamtask_memory_pauses_total": (COUNTER, (), "Times that a partition was paused for memory."),
    # transactions and shards
    "streamtask_commits_total": (COUNTER, (), "Committed transactions."),
    "streamtask_commit_events_total": (COUNTER, (), "Status events in committed transactions."),
    "streamtask_commit_seconds": (HISTOGRAM, (), "From a transaction's first record to the answer to its commit."),
    "streamtask_shards": (GAUGE, ("state",), "Shards assigned to this worker: unclaimed, claimed, open, closing, "
                          "refused."),
    "streamtask_partition_set_aside_seconds": (GAUGE, ("topic", "partition", "reason"), "How long a partition has accepted "
                                               "no records (topic: status or dead, partition -1: all of it), or has had no "
                                               "leader (topic: requests.BAND)."),
    "streamtask_batch_bytes": (GAUGE, (), "Size limit of the next transaction; falls when the broker does not accept it in "
                               "time."),
    "streamtask_rebalances_total": (COUNTER, ("kind",), "Times the group gave or took shards: assigned, revoked, lost."),
    "streamtask_cells_reseated_total": (COUNTER, (), "Partitions reassigned because they delivered nothing "
                                        "although their logs grew."),
    # the worker
    "streamtask_notes_total": (COUNTER, ("event", "level"), "Logged events, by name (the log has their fields)."),
    "streamtask_owner_beat_age_seconds": (GAUGE, (), "Time since the last sign of life of the owner thread."),
    "streamtask_snapshot_age_seconds": (GAUGE, (), "Age of these metrics; normally below 1.1."),
    "streamtask_stalled_seconds": (GAUGE, (), "How long work has waited while nothing started, ended or reported."),
    "streamtask_kafka_silent_seconds": (GAUGE, (), "How long no broker has answered; 0 while one does."),
    "streamtask_healthy": (GAUGE, (), "1 when /health returns 200."),
    "streamtask_ready": (GAUGE, (), "1 when /ready returns 200."),
}  # fmt: skip


def _histogram(name: str, bounds: Sequence[float], samples: Iterable[tuple[Sequence[str], Durations]]) -> Metric:
    _, labels, meaning = METRICS[name]
    made = HistogramMetricFamily(name, meaning, labels=labels)
    for values, held in samples:
        total, buckets = 0, []
        for bound, count in zip((*map(str, bounds), "+Inf"), held.counts, strict=True):
            total += count
            buckets.append((bound, total))
        made.add_metric(values, buckets, held.seconds)
    return made


class WorkerCollector(Collector):
    """The metrics of the table above, from the last snapshot.

    beat_age_s: time since the owner's last sign of life; ends: LogEnds.seen
    """

    def __init__(
        self,
        observer: Observer,
        beat_age_s: Callable[[], float],
        ends: Callable[[], Seen],
    ) -> None:
        self._observer, self._beat_age_s, self._ends = observer, beat_age_s, ends

    def health(self) -> tuple[bool, dict[str, Any]]:
        """See Observer.health."""
        return self._observer.health(self._beat_age_s(), self._ends().silent_s)

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """See Observer.ready."""
        return self._observer.ready(self._ends().silent_s)

    def collect(self) -> Iterator[Metric]:
        seen, beat_age_s = self._observer.snapshot, self._beat_age_s()
        for name, samples in self._samples(seen, beat_age_s).items():
            yield family(METRICS, name, samples)
        durations = [((name,), of.durations) for name, of in seen.types.items()]
        yield _histogram("streamtask_task_duration_seconds", DURATIONS_S, durations)
        if seen.commit_times.counts:
            yield _histogram("streamtask_commit_seconds", COMMITS_S, [((), seen.commit_times)])
        else:
            yield _histogram("streamtask_commit_seconds", COMMITS_S, [])

    def _samples(self, seen: Snapshot, beat_age_s: float) -> dict[str, Samples]:
        bands, types = self._observer.bands, seen.types.items()
        logs = self._ends()
        known = logs.age_s is not None
        notes = ((name, logging.getLevelName(event_log.EVENTS[name][0]).lower(), n) for name, n in seen.notes.items())
        states = {**seen.shards, "refused": len(seen.refused)}
        return {
            "streamtask_tasks_created_total": [((), seen.created)],
            "streamtask_tasks_ended_total": [((n, outcome), c) for n, of in types for outcome, c in of.ended.items()],
            "streamtask_attempts_total": [((name,), of.attempts) for name, of in types],
            "streamtask_retries_total": [((name,), of.retries) for name, of in types],
            "streamtask_dead_letters_total": [((reason,), count) for reason, count in seen.dead.items()],
            "streamtask_deaths_total": [((), seen.deaths)],
            "streamtask_late_results_total": [((), seen.late_results)],
            "streamtask_backlog_tasks": [((n,), of.tasks) for n, of in zip(bands, seen.bands, strict=False)],
            "streamtask_backlog_oldest_seconds": [
                ((name,), of.oldest_s) for name, of in zip(bands, seen.bands, strict=False)
            ],
            "streamtask_log_backlog_tasks": [
                ((name,), log_backlog(seen, logs.ends, band)) for band, name in enumerate(bands) if known
            ],
            "streamtask_log_ends_age_seconds": [((), logs.age_s)] if logs.age_s is not None else [],
            "streamtask_in_flight_tasks": [((), seen.running)],
            "streamtask_overdue_tasks": [((), seen.stragglers.overdue)],
            "streamtask_abandoned_tasks": [((), seen.stragglers.abandoned)],
            "streamtask_abandoned_total": [((), seen.stragglers.abandoned_total)],
            "streamtask_loop_blocked_seconds": [((), seen.stragglers.blocked_s)],
            "streamtask_slots": [((kind,), total) for kind, (_, total) in seen.slots.items()],
            "streamtask_slots_used": [((kind,), used) for kind, (used, _) in seen.slots.items()],
            "streamtask_memory_bytes": [(("waiting",), seen.memory.waiting), (("active",), seen.memory.active)],
            "streamtask_memory_budget_bytes": [((), seen.memory.budget)],
            "streamtask_cells_paused_for_memory": [((), seen.memory.paused)],
            "streamtask_memory_pauses_total": [((), seen.memory.pauses)],
            "streamtask_commits_total": [((), seen.commits)],
            "streamtask_commit_events_total": [((), seen.events)],
            "streamtask_shards": [((state,), count) for state, count in states.items() if state != "gone"],
            "streamtask_partition_set_aside_seconds": [
                ((state.topic, str(state.number), state.why), state.seconds) for state in seen.aside
            ],
            "streamtask_batch_bytes": [((), seen.batch_bytes)],
            "streamtask_rebalances_total": [((kind,), seen.notes.get(n, 0)) for kind, n in REBALANCES.items()],
            "streamtask_cells_reseated_total": [((), seen.notes.get("cell_reseated", 0))],
            "streamtask_notes_total": [((name, level), count) for name, level, count in notes],
            "streamtask_owner_beat_age_seconds": [((), beat_age_s)],
            "streamtask_snapshot_age_seconds": [((), max(0.0, time.monotonic() - seen.at_s))],
            "streamtask_stalled_seconds": [((), seen.stalled_s)],
            "streamtask_kafka_silent_seconds": [((), logs.silent_s)],
            "streamtask_healthy": [((), self.health()[0])],
            "streamtask_ready": [((), self.ready()[0])],
        }


class Endpoint(HasLifecycle):
    """The HTTP side of one worker, in its own threads.

    host, port  where to listen; port 0: any free one (see `url`)

    Raises ConfigError if it cannot listen there.
    """

    def __init__(self, collector: WorkerCollector, *, host: str, port: int) -> None:
        everything = Together(collector, ProcessCollector(registry=None))
        routes: dict[str, Callable[[str], _Answer]] = {
            "/metrics": lambda accept: (200, *render(everything, accept)),
            "/health": lambda _accept: _document(collector.health()),
            "/ready": lambda _accept: _document(collector.ready()),
        }
        try:
            self._server = _Server((host, port), _handler(routes))
        except (OSError, OverflowError) as error:  # OverflowError: a port plus its slot beyond 65,535
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"metrics_host={host!r}, metrics_port={port}: cannot listen there ({why}). "
                "Choose another port (each process takes one: the port plus its slot), or leave it out."
            ) from None
        address, found = self._server.server_address[:2]
        self.url = f"http://[{address!s}]:{found}" if ":" in str(address) else f"http://{address!s}:{found}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="streamtask-metrics", daemon=True)
        self._life = Lifecycle("The endpoint for metrics")

    def start(self) -> None:
        """Raises RuntimeError if it was started or stopped before."""
        self._life.start(self._thread.start)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Accept no more requests. Requests in progress are not awaited."""
        self._life.stop(self._end, timeout_s)

    def _end(self) -> None:
        if self.started:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def open_endpoint(
    observer: Observer,
    kafka: KafkaSettings,
    names: TopicNames,
    beat_age_s: Callable[[], float],
    *,
    host: str,
    port: int,
) -> tuple[str, Callable[[], None]]:
    """Start a worker's endpoint and the follower of its log ends. Returns (url, close). Raises ConfigError."""
    ends = LogEnds(kafka, names, lambda: observer.snapshot.cells)
    endpoint = Endpoint(WorkerCollector(observer, beat_age_s, ends.seen), host=host, port=port)
    ends.start()
    endpoint.start()

    def close() -> None:
        ends.stop()
        endpoint.stop()

    return endpoint.url, close


_Answer = tuple[int, str, bytes]  # status, content type, body


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def server_bind(self) -> None:
        """Skip the host name look-up of the base class: an unreachable resolver would delay the start."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects or stays silent is not our error; report everything else."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _handler(routes: Mapping[str, Callable[[str], _Answer]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_S
        server_version, sys_version = "streamtask", ""

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                text = f"Here are {', '.join(routes)}.\n"
                self._send(404, "text/plain; charset=utf-8", text.encode())
            else:
                self._send(*route(self.headers.get("Accept", "")))

        do_HEAD = do_GET

        def _send(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Do not log: probes come every few seconds."""

    return Handler


def _document(verdict: tuple[bool, dict[str, Any]]) -> _Answer:
    good, facts = verdict
    return 200 if good else 503, "application/json", json.dumps(facts).encode() + b"\n"
