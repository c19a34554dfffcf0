"""Every event that streamtask logs for operators: its name, level and meaning. No other name is ever logged.

Events of the core arrive as Notes (domain/ports.py); other modules call `emit`. A field never contains a payload. Logs are
text on a terminal and JSON lines elsewhere, always on stderr, so that stdout is free for the output of commands.
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
    "worker_started": (logging.INFO, "the worker joined the group; fields: app, prefix, group, worker, bootstrap, "
                                     "tasks, memory_mb, memory_by"),
    "metrics_listening": (logging.INFO, "/metrics, /health and /ready are served; fields: url"),
    "worker_draining": (logging.INFO, "SIGTERM received: starts no more tasks; fields: running, grace_s"),
    "worker_stopped": (logging.INFO, "the worker left the group; fields: seconds"),
    "worker_stuck": (logging.CRITICAL, "one step of the owner thread took too long: stack traces follow, and the "
                                       "process exits"),
    "app_event": (logging.WARNING, "reported by the executor about a handler; fields: what, ..."),
    "supervisor_event": (logging.INFO, "reported by the supervisor of the worker processes; fields: what, ..."),
    # the parent removes a dead child's member from the group
    "failover_ready": (logging.INFO, "the shards of a dead process will move at once; fields: group"),
    "failover_off": (logging.INFO, "the extra failover is not installed: shards move after the session timeout; "
                                   "fields: why, session_timeout_s"),
    "failover_unmapped": (logging.WARNING, "failover is off: its client does not support a setting; fields: why, "
                                           "session_timeout_s"),
    "failover_unproven": (logging.WARNING, "the failover client could not connect; retried when a process dies; "
                                           "fields: why"),
    "member_removed": (logging.INFO, "a dead process was removed from the group; fields: member, known (by the "
                                     "group), seconds (since its end)"),
    "member_not_removed": (logging.WARNING, "a dead process was not removed: its shards move after the session "
                                            "timeout; fields: members, why"),
    # shards
    "shards_assigned": (logging.INFO, "the group assigned shards; fields: shards"),
    "shards_claimed": (logging.INFO, "this worker owns the shards; fields: shards, list_ms, fence_ms, read_ms, "
                                     "commit_ms (of each step), fenced (transactional ids of earlier owners)"),
    "shards_revoked": (logging.INFO, "the group revoked shards; fields: shards, clean"),
    "shards_lost": (logging.WARNING, "shards were lost without a revoke (session expired); fields: shards"),
    "shard_refused": (logging.ERROR, "this release cannot claim the shard; fields: shard, why"),
    "claim_waits": (logging.WARNING, "request partitions have no leader: their shard is claimed when they have one, and "
                                     "other shards go on; fields: shard, bands"),
    "shard_taken": (logging.WARNING, "another worker claimed a shard that this one held; fields: shard, why"),
    "position_unknown": (logging.INFO, "requests exist but no offset is committed: reads tasks.status first; fields:"
                                       " band, shard, why, from"),
    "recovery_waits": (logging.WARNING, "the partition of tasks.status that a shard reads before it starts anything delivers "
                       "nothing: its leader does not answer, or a transaction that stays open holds back what may be read "
                       "(docs/runbook.md); fields: shard, topic, seconds"),
    "position_recovered": (logging.WARNING, "the committed offset has no streamtask metadata: recovers from "
                                            "tasks.status; fields: band, shard, why, from"),
    "cell_reseated": (logging.WARNING, "a partition delivered nothing although its log grew: reassigned; fields: "
                                       "band, shard, received (next offset), position, log_end, backlog, paused, "
                                       "quiet_s, held (other cells)"),
    "reader_renewed": (logging.WARNING, "tasks.control delivered nothing although its log grew: read by a new "
                                        "client; fields: topic, partition, position, log_end"),
    "member_renewed": (logging.WARNING, "a partition delivered nothing after two reassignments: leaves the group and"
                                        " rejoins with a new client; fields: cells (next offset of each)"),
    "records_lost": (logging.ERROR, "open requests are no longer in the log; fields: band, shard, from, to, open, why"),
    "record_passed_over": (logging.WARNING, "skipped a record of tasks.control or tasks.status that streamtask did "
                                            "not write; fields: topic, partition, offset, why, seen"),
    "claim_retried": (logging.INFO, "claiming shards starts over; fields: step, fault, why"),
    # transactions
    "transaction_aborted": (logging.INFO, "a transaction was aborted and is rebuilt from memory; fields: fault, why"),
    "partition_set_aside": (logging.ERROR, "a partition accepts no records; tasks that need it wait, all others go "
                                           "on; fields: topic, partition, why, again_ms"),
    "partition_back": (logging.INFO, "the partition accepts records again; fields: topic, partition, after_s"),
    "producer_lost": (logging.WARNING, "the transactional producer can no longer be used; fields: fault, why"),
    "producer_retried": (logging.WARNING, "creating a new transactional producer failed and is retried; fields: "
                                          "fault, why"),
    "record_refused": (logging.ERROR, "the broker rejected the records; retrying with a truncated message; fields: "
                                      "task_id, origin"),
    "kafka_error": (logging.WARNING, "a Kafka client reported an error and continues; fields: why"),
    # what producers do
    "partitioner_differs": (logging.WARNING, "a key is in another partition than murmur2 gives; fields: topic, key, "
                                             "partition, offset, belongs, seen"),
    "priority_outside_band": (logging.WARNING, "the priority was clamped to the range of its band; fields: topic, "
                                               "priority, seen"),
}  # fmt: skip

COUNTS: Counter[str] = Counter()  #: how often each event occurred in this process; see `count` and `counted`
# The owner, the handlers' loop, the children's thread and the watchdog emit events: an unlocked `+= 1` loses some, and the
# first event of a name breaks an iteration in progress. Reentrant: a signal handler may emit an event in between.
_counting = threading.RLock()

_log = structlog.get_logger("streamtask")


def emit(name: str, fields: Mapping[str, Any]) -> None:
    """Count an event and log it at its level."""
    level, _ = EVENTS[name]
    count(name)
    _log.log(level, name, **fields)


def count(name: str) -> int:
    """Count the event without a log line; returns the count so far. From any thread."""
    with _counting:
        COUNTS[name] += 1
        return COUNTS[name]


def counted() -> dict[str, int]:
    """{event: how often it has occurred so far}. From any thread."""
    with _counting:
        return {name: COUNTS[name] for name in EVENTS if name in COUNTS}


class _Stderr:
    """The current sys.stderr: a program may replace it and close the previous one."""

    @staticmethod
    def write(text: str) -> int:
        return sys.stderr.write(text)

    @staticmethod
    def flush() -> None:
        sys.stderr.flush()


def configure(level: int = logging.INFO, *, json: bool | None = None) -> None:
    """Log to stderr. json None: JSON unless stderr is a terminal."""
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
