"""Where in their logs topics were at a time: asked of the brokers, without reading a record."""

from __future__ import annotations

import time
from collections.abc import Iterable

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamtask.errors import Unreachable
from streamtask.kafka.ends import topic_ends
from streamtask.kafka.faults import error_of
from streamtask.kafka.settings import KafkaSettings
from streamtask.kafka.tail import Place, result_of


def offsets_at(
    settings: KafkaSettings, topics: Iterable[str], timestamp_ms: int, *, timeout_s: float = 10.0
) -> dict[Place, int]:
    """{place: first offset whose record is of that time or younger}; the end of the log where there is none.

    Raises Unreachable or TopicsMissing.
    """
    ends = topic_ends(settings, topics, timeout_s=timeout_s)  # asked first: what is written meanwhile is younger
    admin = AdminClient(settings.admin())
    spec = OffsetSpec.for_timestamp(timestamp_ms)
    deadline = time.monotonic() + timeout_s
    try:
        futures = admin.list_offsets({TopicPartition(*place): spec for place in ends}, request_timeout=timeout_s)
        found = {(part.topic, part.partition): int(result_of(futures[part], deadline).offset) for part in futures}
    except KafkaException as error:
        raise Unreachable(f"No offsets of a time from {settings.bootstrap}: {error_of(error)}") from None
    return {place: end if found[place] < 0 else found[place] for place, end in ends.items()}
