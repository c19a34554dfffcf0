"""The audit of a running system: round after round, reporting each violation when it is found, until it is stopped.

What is open is no breach. A broker that does not answer is told and waited for. Nothing is kept between two runs.
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

ROUND_S = 1.0  # at least so long from the beginning of one round to that of the next


class AuditListener(Protocol):
    """Told what an audit that follows a system finds."""

    def violation(self, violation: Violation, /) -> None:
        """Each breach, the moment it is found."""

    def figures(self, figures: dict[str, Any], /) -> None:
        """Rounds, requests, events, letters, open, ended, violations, behind."""

    def trouble(self, text: str, /) -> None:
        """Why a round was broken off; the next one is tried."""


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

    since_ms  where it begins; None: at the beginning of the topics
    every_s   how often the listener is told the figures

    Raises Unreachable and TopicsMissing at the start; then it goes on trying.
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
