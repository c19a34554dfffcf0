"""Finds where to continue reading cells whose position is not in their log. One deadline for all cells of a turn.

Frozen brokers answer no query: one after the other, with a second each, 36 cells blocked the owner thread for 36 s, and its
watchdog ends the process after 20.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streamtask.domain.ports import Cell
from streamtask.kafka.faults import Call, fault

ASTRAY_S = 1.0  # per turn


def positions_held(
    consumer: Consumer, topics: Sequence[str], astray: dict[Cell, int], on_error: Callable[[str], None]
) -> dict[Cell, int]:
    """{cell: the position nearest to the wanted one that its log holds}, for cells that a broker answers in time.

    astray  {cell: wanted position}; cells without an answer are moved to the end, so the others come first next time
    """
    deadline, found = time.monotonic() + ASTRAY_S, {}
    for (band, shard), wanted in list(astray.items()):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        try:
            start, end = consumer.get_watermark_offsets(TopicPartition(topics[band], shard), timeout=left_s)
        except KafkaException as error:
            on_error(fault(error, Call.SEAT).text)
            astray[band, shard] = astray.pop((band, shard))
            continue
        found[band, shard] = min(max(wanted, start), end)
    return found
