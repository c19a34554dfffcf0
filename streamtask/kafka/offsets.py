"""What a group has committed and where logs begin: plain questions, nothing claimed, nothing changed."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streamtask.kafka.settings import KafkaSettings
from streamtask.kafka.tail import Place, asking, log_offsets
from streamtask.kafka.trouble import Heard, failed


def group_offsets(
    settings: KafkaSettings, group: str, places: Iterable[Place], *, timeout_s: float = 10.0
) -> dict[Place, int]:
    """{place: committed offset}; places without one are left out.

    Offsets of open transactions are not seen: what is returned is the last committed state. Raises Unreachable,
    NotAllowed.
    """
    wanted = [TopicPartition(*place) for place in places]
    if not wanted:
        return {}
    # A consumer that never joins, and not the admin client: on a broker that has never had a group that one waits for
    # an answer which does not come, and crashed the process (SIGSEGV in 3 of 16 runs) when it ended with the question
    # open. Reading uncommitted is what makes the question an unstable one.
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
        # A group that may not be seen is not refused: the question waits, and only an event in place of a record tells.
        event = consumer.poll(0)
        told = error if event is None else event.error() or error
        raise failed(f"no offsets of group {group} from {settings.bootstrap}", told, heard) from None
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
