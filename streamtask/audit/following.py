"""The audit of a running system: round after round, reporting each violation when it is found, until it is stopped.

An unfinished request is no violation. When a broker does not answer, it reports that and waits. It keeps no state between
two runs.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any, Protocol

from streamtask.audit.judge import Judge
from streamtask.audit.reading import Rounds, Waiting
from streamtask.audit.report import Report, Violation
from streamtask.codec.reader import PLAIN, Reader
from streamtask.codec.wire import time_text
from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import Unreachable

ROUND_S = 1.0  # minimum time between the starts of two rounds


class AuditListener(Protocol):
    """Gets the findings of an audit that follows a system."""

    def violation(self, violation: Violation, /) -> None:
        """Called for each violation, as soon as it is found."""

    def figures(self, figures: dict[str, Any], /) -> None:
        """Called with rounds, requests, events, letters, open, ended, violations, behind."""

    def trouble(self, text: str, /) -> None:
        """Called with the reason why a round was interrupted; the next one is tried."""


def follow_audit(
    settings: KafkaSettings,
    names: TopicNames,
    stop: threading.Event,
    *,
    reader: Reader = PLAIN,
    since_ms: int | None = None,
    every_s: float = 10.0,
    listener: AuditListener | None = None,
) -> Report:
    """Judge until `stop` is set, then end with one more round and the report.

    since_ms  where to begin; None: at the beginning of the topics
    every_s   interval of calling `listener.figures`

    Raises Unreachable and TopicsMissing only at the start; later it keeps trying.
    """
    judge = Judge(names, reader, since_ms=since_ms, on_violation=None if listener is None else listener.violation)
    told_at = time.monotonic()
    count = 0

    def tick() -> None:
        nonlocal told_at
        if listener is not None and time.monotonic() - told_at >= every_s:
            told_at = time.monotonic()
            listener.figures({"rounds": count} | judge.figures() | {"behind": rounds.behind()})

    waiting = Waiting(math.inf, tick=tick, stop=stop)
    with Rounds(settings, names, judge, waiting, reader=reader, since_ms=since_ms) as rounds:
        last = False
        while not last:
            last = stop.is_set()
            began = time.monotonic()
            try:
                rounds.round()
                count += rounds.whole
            except Unreachable as error:
                if listener is not None:
                    listener.trouble(str(error))
            tick()
            if not last:
                stop.wait(max(0.0, began + ROUND_S - time.monotonic()))
        if not rounds.whole:
            judge.unread("The last round was interrupted, so the report is incomplete. Run the audit again.")
    report = judge.report()
    report.since = None if since_ms is None else time_text(since_ms)
    return report
