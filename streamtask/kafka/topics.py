"""What the topics of a prefix need: the settings of each, with the reason for every one. Pure.

`streamtask topics create` sets `Rule.value`; `topics check` and `doctor` accept whatever `Rule.fits` accepts
(topic_checks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from streamtask.config import TopicNames

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
REQUESTS_RETENTION_MS = 7 * DAY_MS
STATUS_RETENTION_MS = 30 * DAY_MS
CONTROL_RETENTION_MS = 7 * DAY_MS
DEAD_RETENTION_MS = 30 * DAY_MS
# The last event of a running or waiting task is published again after a quarter of the status retention.
REFRESH_MS = STATUS_RETENTION_MS // 4
# A dead letter is the request's own bytes and a few headers: the limit of its topic exceeds that of the requests by this
# much.
DEAD_ROOM_BYTES = 65_536
REPLICAS, IN_SYNC = 3, 2


class Severity(Enum):
    ERROR = "error"  #: it does not work, or a guarantee does not hold
    WARNING = "warning"  #: it works; a guarantee is weaker than it could be
    INFO = "info"  #: worth knowing; nothing to do


@dataclass(frozen=True, slots=True)
class Rule:
    """One topic setting: the value that `topics create` sets, and which other values are acceptable."""

    name: str
    value: str
    fits: Callable[[str], bool]
    severity: Severity
    why: str


def _policy(wanted: str) -> Callable[[str], bool]:
    return lambda value: {part.strip() for part in value.split(",")} == set(wanted.split(","))


def _at_least(limit: int) -> Callable[[str], bool]:
    """-1 means for ever."""
    return lambda value: int(value) == -1 or int(value) >= limit


def _at_most(limit: float) -> Callable[[str], bool]:
    return lambda value: float(value) <= limit


def _retention(ms: int, why: str, *, severity: Severity = Severity.WARNING) -> Rule:
    return Rule("retention.ms", str(ms), _at_least(ms), severity, why)


_ERROR = Severity.ERROR
_KEEP_SHORT = "The active segment is never compacted; a small one keeps restarts fast."
# For every compacted topic: Kafka's defaults (7 d, 0.5, no bound) make a restart read days of old states.
_COMPACTION = (
    Rule("segment.ms", str(HOUR_MS), _at_most(DAY_MS), Severity.WARNING, _KEEP_SHORT),
    Rule("segment.bytes", str(128 << 20), _at_most(1 << 30), Severity.WARNING, _KEEP_SHORT),
    Rule("min.cleanable.dirty.ratio", "0.2", _at_most(0.5), Severity.WARNING, "Limits the share of outdated records."),
    Rule(
        "max.compaction.lag.ms",
        str(6 * HOUR_MS),
        _at_most(7 * DAY_MS),
        Severity.WARNING,
        "Limits the age of outdated records.",
    ),
    Rule(
        "delete.retention.ms",
        str(DAY_MS),
        _at_least(HOUR_MS),
        Severity.WARNING,
        "A reader that was down for longer than this misses the removal of a key.",
    ),
)
_REQUESTS = (
    Rule(
        "cleanup.policy",
        "delete",
        _policy("delete"),
        _ERROR,
        "Compaction would remove requests that share a key before they run.",
    ),
    _retention(REQUESTS_RETENTION_MS, "A request that waits or runs for longer than this is lost (and reported)."),
    Rule(
        "message.timestamp.after.max.ms",
        str(DAY_MS),
        _at_least(2 * HOUR_MS),
        Severity.WARNING,
        "Kafka's default rejects every request of a producer whose clock is an hour ahead.",
    ),
)
_STATUS = (
    Rule(
        "cleanup.policy",
        "compact,delete",
        _policy("compact,delete"),
        _ERROR,
        "Without compact the latest status of a task is forgotten early; without delete the topic grows forever.",
    ),
    _retention(STATUS_RETENTION_MS, "The latest status of a task is forgotten earlier than promised."),
    *_COMPACTION,
)
_CONTROL = (
    Rule(
        "cleanup.policy",
        "compact,delete",
        _policy("compact,delete"),
        _ERROR,
        "The topic grows forever, or cancel requests vanish.",
    ),
    _retention(CONTROL_RETENTION_MS, "A cancel must be kept for as long as its request."),
    *_COMPACTION,
)
_SCHEDULE = (
    Rule(
        "cleanup.policy",
        "compact",
        _policy("compact"),
        _ERROR,
        "With delete a scheduled task would vanish before it is due.",
    ),
    *_COMPACTION,
)
_DEAD = (
    Rule(
        "cleanup.policy",
        "delete",
        _policy("delete"),
        _ERROR,
        "With compaction Kafka rejects dead letters without a key.",
    ),
    _retention(DEAD_RETENTION_MS, "Dead letters are deleted before anyone has looked at them."),
)


def rules_of(names: TopicNames) -> dict[str, tuple[Rule, ...]]:
    """The rules of every topic, in the order in which partitions are added: status first, the lead band last."""
    lead, *others = names.requests
    return {
        names.status: _STATUS,
        names.schedule: _SCHEDULE,
        names.control: _CONTROL,
        names.dead: _DEAD,
        **dict.fromkeys(others, _REQUESTS),
        lead: _REQUESTS,
    }


def sharded(names: TopicNames) -> tuple[str, ...]:
    """The topics whose partition N belongs to shard N: their partition counts must be equal."""
    return (*names.requests, names.status, names.schedule)


def config_of(rules: Iterable[Rule]) -> dict[str, str]:
    """The settings of a topic to be created."""
    return {rule.name: rule.value for rule in rules}


def replication(brokers: int) -> tuple[int, int]:
    """(replication factor, min.insync.replicas) for a cluster of this size."""
    return (REPLICAS, IN_SYNC) if brokers >= REPLICAS else (1, 1)
