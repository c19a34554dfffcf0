"""Every event that streamtask tells the operator: its name, level and meaning. No other name is ever logged.

Events of the core arrive as Notes (domain/ports.py), those of the shells through `emit`. No payload is ever a field.
Text on a terminal, JSON lines elsewhere; both on stderr, so that stdout stays for what a command is asked for.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, TextIO, cast

import structlog

EVENTS: dict[str, tuple[int, str]] = {
    # the life of a worker
    "worker_started": (logging.INFO, "joined the group; fields: app, prefix, group, worker, bootstrap, memory_mb, memory_by"),
    "metrics_listening": (logging.INFO, "/metrics, /health and /ready answer; fields: url"),
    "worker_draining": (logging.INFO, "SIGTERM: takes nothing more; fields: running, grace_s"),
    "worker_stopped": (logging.INFO, "left the group; fields: seconds"),
    "worker_stuck": (logging.CRITICAL, "one step of the owner took too long: stacks follow, the process exits"),
    "app_event": (logging.WARNING, "told by the executor about a handler; fields: what, ..."),
    "supervisor_event": (logging.INFO, "told by the parent of the worker processes; fields: what, ..."),
    # the parent removes a dead child's member from the group
    "failover_ready": (logging.INFO, "a dead process's shards move at once; fields: group"),
    "failover_off": (logging.INFO, "the extra is not installed: they move after the session timeout; fields: why, "
                     "session_timeout_s"),
    "failover_unmapped": (logging.WARNING, "off: the second client has no counterpart of a setting; fields: as above"),
    "failover_unproven": (logging.WARNING, "the second client did not connect; tried again at a death; fields: why"),
    "member_removed": (logging.INFO, "of a dead process; fields: member, known (by the group), seconds (since its end)"),
    "member_not_removed": (logging.WARNING, "its shards move after the session timeout; fields: members, why"),
    # shards
    "shards_assigned": (logging.INFO, "the group gave shards; fields: shards"),
    "shards_claimed": (logging.INFO, "they are ours; fields: shards, list_ms, fence_ms, read_ms, commit_ms (of each step), "
                       "fenced (transactional ids of earlier owners)"),
    "shards_revoked": (logging.INFO, "the group took shards; fields: shards, clean"),
    "shards_lost": (logging.WARNING, "shards were taken without asking (session over); fields: shards"),
    "shard_refused": (logging.ERROR, "cannot be claimed by this release; fields: shard, why"),
    "shard_taken": (logging.WARNING, "somebody else recorded a shard that this worker held; fields: shard, why"),
    "position_unknown": (logging.INFO, "nothing committed yet, requests are there: tasks.status is read first; fields: "
                         "band, shard, why, from"),
    "recovery_waits": (logging.WARNING, "the partition of tasks.status that a shard reads before it starts anything delivers "
                       "nothing: its leader does not answer, or a transaction that stays open holds back what may be read "
                       "(docs/runbook.md); fields: shard, topic, seconds"),
    "position_recovered": (logging.WARNING, "no metadata of ours: tasks.status is read; fields: band, shard, why, from"),
    "cell_reseated": (logging.WARNING, "a partition delivered nothing though its log goes on: assigned anew; fields: band, "
                      "shard, received (next offset), position, log_end, backlog, paused, quiet_s, held (other cells)"),
    "reader_renewed": (logging.WARNING, "tasks.control delivered nothing though its log goes on: read by a new client; "
                       "fields: topic, partition, position, log_end"),
    "member_renewed": (logging.WARNING, "a partition delivers nothing though it was assigned anew twice: leaves the group "
                       "and joins it with a new client; fields: cells (next offset of each)"),
    "records_lost": (logging.ERROR, "the log no longer holds what was open; fields: band, shard, from, to, open, why"),
    "record_passed_over": (logging.WARNING, "a record of tasks.control or tasks.status that no client or worker of ours "
                           "wrote; fields: topic, partition, offset, why, seen"),
    "claim_retried": (logging.INFO, "a claim begins again; fields: step, fault, why"),
    # transactions
    "transaction_aborted": (logging.INFO, "a batch is rebuilt from memory; fields: fault, why"),
    "partition_set_aside": (
        logging.ERROR,
        "a partition takes no records; what needs it waits, all else goes on. fields: topic, partition, why, again_ms",
    ),
    "partition_back": (logging.INFO, "it takes records again; fields: topic, partition, after_s"),
    "producer_lost": (logging.WARNING, "the transactional id is over; fields: fault, why"),
    "producer_retried": (logging.WARNING, "no new transactional producer yet; fields: fault, why"),
    "record_refused": (logging.ERROR, "the broker refuses a task's records: said shorter; fields: task_id, origin"),
    "kafka_error": (logging.WARNING, "a client heard of trouble and goes on; fields: why"),
    # what producers do
    "partitioner_differs": (logging.WARNING, "a key lies where murmur2 does not put it; fields: topic, key, partition, "
                            "offset, belongs, seen"),
    "priority_outside_band": (logging.WARNING, "run at the nearest end of its band; fields: topic, priority, seen"),
}  # fmt: skip

COUNTS: Counter[str] = Counter()  #: how often each event was told in this process; see `count` and `counted`
# Events come from the owner, the handlers' loop, the thread of the children, the watchdog: an unlocked `+= 1` loses some, and
# a first event of its name breaks an iteration under way. Reentrant: a signal handler may tell something in between.
_counting = threading.RLock()

_log = structlog.get_logger("streamtask")


def emit(name: str, fields: Mapping[str, Any]) -> None:
    """Count an event and log it at its level."""
    level, _ = EVENTS[name]
    count(name)
    _log.log(level, name, **fields)


def count(name: str) -> int:
    """Count without a log line; returns how many there are now. From any thread."""
    with _counting:
        COUNTS[name] += 1
        return COUNTS[name]


def counted() -> dict[str, int]:
    """{event: how often it was told}, as of now. From any thread."""
    with _counting:
        return {name: COUNTS[name] for name in EVENTS if name in COUNTS}


class _Stderr:
    """Whatever sys.stderr is at the moment: a program may replace it, and close the one that was there before."""

    @staticmethod
    def write(text: str) -> int:
        return sys.stderr.write(text)

    @staticmethod
    def flush() -> None:
        sys.stderr.flush()


def configure(level: int = logging.INFO, *, json: bool | None = None) -> None:
    """Log to stderr. json None: unless it is a terminal."""
    as_json = not sys.stderr.isatty() if json is None else json
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=False,
    )
