"""Queries about offsets: where logs begin and end, where they were at a time, what a group has committed.

They read no record, and claim or change nothing. Each query raises Unreachable if no broker answers in time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamtask.config.kafka import KafkaSettings
from streamtask.errors import Unreachable
from streamtask.kafka.connection_errors import Heard, failed, refuse_absent
from streamtask.kafka.faults import error_of
from streamtask.kafka.tail import MOVING, MOVING_WAIT_S, Place, asking, log_offsets, result_of


def topic_ends(settings: KafkaSettings, topics: Iterable[str], *, timeout_s: float = 10.0) -> dict[Place, int]:
    """{(topic, partition): high watermark}. Whatever is written from now on is there or after it.

    Raises Unreachable, TopicsMissing or NotAllowed.
    """
    wanted = tuple(topics)
    heard = Heard(settings.on_error)
    admin = AdminClient(settings.admin() | {"error_cb": heard})
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            known = admin.list_topics(timeout=timeout_s).topics
            refuse_absent(known, wanted, admin)
            places = [(topic, partition) for topic in wanted for partition in known[topic].partitions]
            return log_offsets(admin, places, earliest=False, timeout_s=timeout_s)
        except KafkaException as error:
            held = error_of(error)
            # The leader has moved, or the topic is very new: the next look at the metadata shows it.
            if held is None or held.code() not in MOVING or time.monotonic() > deadline:
                admin.poll(0)  # serves error_cb
                raise failed(f"no broker of {settings.bootstrap} answered", error, heard) from None
            time.sleep(MOVING_WAIT_S)


def offsets_at(
    settings: KafkaSettings, topics: Iterable[str], timestamp_ms: int, *, timeout_s: float = 10.0
) -> dict[Place, int]:
    """{place: first offset whose record has this time or a later one}; the end of the log if there is none.

    Raises Unreachable or TopicsMissing.
    """
    ends = topic_ends(settings, topics, timeout_s=timeout_s)  # queried first: what is written meanwhile is newer
    admin = AdminClient(settings.admin())
    spec = OffsetSpec.for_timestamp(timestamp_ms)
    deadline = time.monotonic() + timeout_s
    try:
        futures = admin.list_offsets({TopicPartition(*place): spec for place in ends}, request_timeout=timeout_s)
        found = {(part.topic, part.partition): int(result_of(futures[part], deadline).offset) for part in futures}
    except KafkaException as error:
        raise Unreachable(f"No offsets of a time from {settings.bootstrap}: {error_of(error)}") from None
    return {place: end if found[place] < 0 else found[place] for place, end in ends.items()}


def group_offsets(
    settings: KafkaSettings, group: str, places: Iterable[Place], *, timeout_s: float = 10.0
) -> dict[Place, int]:
    """{place: committed offset}; places without one are left out.

    Offsets of open transactions are not visible: it returns the last committed state. Raises Unreachable, NotAllowed.
    """
    wanted = [TopicPartition(*place) for place in places]
    if not wanted:
        return {}
    # A consumer that never joins, not the admin client: on a broker that has never had a group the latter waits for an
    # answer that does not come, and crashed the process (SIGSEGV in 3 of 16 runs) when it ended with the query open.
    # Reading uncommitted makes the query an unstable one.
    heard = Heard(settings.on_error)
    properties = settings.tail(read_committed=False) | {"group.id": group, "error_cb": heard}
    consumer = Consumer(properties)
    try:
        parts = consumer.committed(wanted, timeout=timeout_s)
        for part in parts:
            if part.error is not None:
                raise KafkaException(part.error)
        return {(part.topic, part.partition): part.offset for part in parts if part.offset >= 0}
    except KafkaException as error:
        # A hidden group is not refused: the query waits, and only an event in place of a record reports it.
        event = consumer.poll(0)
        reported = error if event is None else event.error() or error
        raise failed(f"no offsets of group {group} from {settings.bootstrap}", reported, heard) from None
    finally:
        consumer.close()


def log_starts(settings: KafkaSettings, places: Iterable[Place], *, timeout_s: float = 10.0) -> dict[Place, int]:
    """{place: first offset that its log holds}. Raises Unreachable."""
    heard, places = Heard(settings.on_error), list(places)
    admin = asking(settings.admin() | {"error_cb": heard}, (topic for topic, _ in places), timeout_s)
    try:
        return log_offsets(admin, places, earliest=True, timeout_s=timeout_s)
    except KafkaException as error:
        admin.poll(0)  # serves error_cb
        raise failed(f"no log starts from {settings.bootstrap}", error, heard) from None
