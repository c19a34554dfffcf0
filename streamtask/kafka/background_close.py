"""Closes clients in background threads, because closing one waits for brokers that may be gone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaException


def in_background(name: str, step: Callable[[], None]) -> threading.Thread:
    """Run `step` in a daemon thread, which ends with the process at the latest."""
    thread = threading.Thread(target=step, name=name, daemon=True)
    thread.start()
    return thread


def close(consumer: Consumer) -> None:
    try:
        consumer.close()
    except (KafkaException, RuntimeError, SystemError):
        # The group's session timeout does the rest. SystemError: confluent-kafka 2.16, seen once in some thousand closes,
        # restores something that is not an exception (`<class 'str'> is not a BaseException subclass`).
        pass


def drop_later(holder: list[Consumer], after_s: float) -> None:
    """Drop the last reference to the consumer in `holder` after a while, which destroys it."""
    threading.Event().wait(after_s)
    holder.clear()
