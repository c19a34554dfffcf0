"""Where topics end now: asked of the brokers, without reading a record."""

from __future__ import annotations

import time
from collections.abc import Iterable

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamtask.kafka.faults import error_of
from streamtask.kafka.settings import KafkaSettings
from streamtask.kafka.tail import MOVING, MOVING_WAIT_S, Place, log_offsets
from streamtask.kafka.trouble import Heard, failed, refuse_absent


def topic_ends(settings: KafkaSettings, topics: Iterable[str], *, timeout_s: float = 10.0) -> dict[Place, int]:
    """{(topic, partition): high watermark}. Whatever is written from now on lies there or behind.

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
            # A leader that moved, or whose topic is a moment old: the next look at the metadata tells.
            if held is None or held.code() not in MOVING or time.monotonic() > deadline:
                admin.poll(0)  # serves error_cb
                raise failed(f"no broker of {settings.bootstrap} answered", error, heard) from None
            time.sleep(MOVING_WAIT_S)
