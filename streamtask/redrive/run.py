"""Redrives on Kafka: reads dead letters, finds out which tasks are known, sends the others. Everything here blocks."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing

from streamtask.codec import DeadRecord, RequestDecoder, decode_dead
from streamtask.config import Settings, TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.domain.model import ErrorCode
from streamtask.domain.partitioner import partition_of
from streamtask.errors import DecodeError, SubmitError
from streamtask.kafka.admin import cluster_id, partition_count
from streamtask.kafka.offset_queries import group_offsets
from streamtask.kafka.producer import ClientProducer, Delivery
from streamtask.kafka.tail import Place, Tail, TailRecord
from streamtask.projection.topic_scan import read_dead
from streamtask.redrive.build import Builder, Choice, Plan, Redrive, plan
from streamtask.schema_registry import Formats

CHUNK_MAX = 500  # records in flight at once: an interrupted run does not know the outcome of these
ACKNOWLEDGED_S = 45.0  # more than the producer's delivery timeout: every record has been reported by then
RECORDS_MAX = 5_000
POLL_S = 0.1
_BEGINNING = -1  # for a Tail, a negative offset means the beginning


def read_plan(settings: Settings, choice: Choice, now_ms: int) -> Plan:
    """Read the dead letters, build the tasks, mark those that are known. Raises ClusterError."""
    kafka, names = settings.kafka_for("redrive"), settings.topics
    letters = read_dead(settings)
    with closing(Formats(settings)) as formats:
        builder = Builder(names, cluster_id(kafka), partition_count(kafka, names), formats.waiting)
        found = plan(letters, choice, builder, now_ms)
    known = known_ids(kafka, names, found.ready)
    found.known = [item for item in found.ready if item.task_id in known]
    found.ready = [item for item in found.ready if item.task_id not in known]
    return found


def known_ids(kafka: KafkaSettings, names: TopicNames, items: Sequence[Redrive]) -> set[str]:
    """The ids of those tasks whose request or status exists.

    Reads only where one can be: the partition of its band from the offset that the workers have committed, and the same
    partition of the status topic, which has the statuses of everything below that. Also reads uncommitted records: the
    open transaction of another producer must not hide a request of ours. Raises Unreachable, TopicsMissing.
    """
    wanted: dict[Place, set[str]] = defaultdict(set)
    for item in items:
        wanted[item.topic, item.partition].add(item.task_id)
        wanted[names.status, item.partition].add(item.task_id)
    if not wanted:
        return set()
    bands = [place for place in wanted if place[0] != names.status]
    # Asked before the status topic is read to its end, so that requests finished below it have their events there.
    begin = dict.fromkeys(wanted, _BEGINNING) | group_offsets(kafka, names.group, bands)
    decoder = RequestDecoder(names, "")  # redrives are JSON and contain their task_id: no registry, no cluster id
    of_topic = {topic: band for band, topic in enumerate(names.requests)}
    known: set[str] = set()
    with Tail(kafka, begin, read_committed=False, with_headers=True) as tail:
        for record in _to_the_end(tail):
            if record.topic == names.status:
                task_id = (record.key or b"").decode("latin-1")
            else:
                topic, partition, offset, timestamp_ms, key, value, headers = record
                task_id = decoder.decode(of_topic[topic], partition, offset, timestamp_ms, key, value, headers).task_id
            if task_id in wanted[record.topic, record.partition]:
                known.add(task_id)
    return known


def find_letter(kafka: KafkaSettings, names: TopicNames, task_id: str, origin: str) -> DeadRecord | None:
    """The dead letter of the FAILED task with this history. origin "": the task's newest letter that is no duplicate.

    Letters are placed by their task_id: its partition is read first, and the others only if the letter is not there (the
    topic may have got more partitions since). Raises Unreachable, TopicsMissing.
    """
    with Tail(kafka, (names.dead,), with_headers=True) as tail:
        places = sorted(tail.positions())
    own = (names.dead, partition_of(task_id.encode(), len(places)))
    for part in ([own], [place for place in places if place != own]):
        found: DeadRecord | None = None
        with Tail(kafka, part, with_headers=True) as tail:
            for record in _to_the_end(tail):
                try:
                    letter = decode_dead(*record[1:])
                except DecodeError:
                    continue  # not a dead letter; the audit reports it
                matches = letter.origin == origin if origin else letter.reason != ErrorCode.DUPLICATE
                if letter.task_id == task_id and matches:
                    found = letter
        if found is not None:
            return found
    return None


def send(
    kafka: KafkaSettings,
    items: Sequence[Redrive],
    *,
    rate: float | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> Generator[tuple[Redrive, Delivery]]:
    """Send the redrives in order; yields each with its delivery. When the caller stops iterating, sending stops.

    rate  at most this many per second

    Ends early, after the chunk, when Kafka refuses a record of it for another reason than its size.
    """
    began = time.monotonic()
    chunk = CHUNK_MAX if rate is None else max(1, min(CHUNK_MAX, int(rate / 10)))
    with ClientProducer(kafka, linger_ms=0) as producer:
        for at in range(0, len(items), chunk):
            if rate is not None and (early_s := began + at / rate - time.monotonic()) > 0:
                wait(early_s)
            part = items[at : at + chunk]
            reports = _deliver(producer, part)
            yield from zip(part, reports, strict=True)
            if any(one.error is not None and not too_large(one) for one in reports):
                return


def too_large(delivery: Delivery) -> bool:
    """True when the broker will never accept this record."""
    return "MSG_SIZE_TOO_LARGE" in delivery.code or "MSG_SIZE_TOO_LARGE" in (delivery.error or "")


def _deliver(producer: ClientProducer, part: Sequence[Redrive]) -> list[Delivery]:
    reports: dict[int, Delivery] = {}
    all_reported = threading.Event()

    def reporter(index: int) -> Callable[[Delivery], None]:
        def report(delivery: Delivery) -> None:
            reports[index] = delivery
            if len(reports) == len(part):
                all_reported.set()

        return report

    for index, item in enumerate(part):
        try:
            producer.send(
                item.topic, item.key, item.value, item.headers, partition=item.partition, on_delivery=reporter(index)
            )
        except SubmitError as error:
            reporter(index)(Delivery(item.topic, item.partition, -1, str(error)))
    if not all_reported.wait(ACKNOWLEDGED_S):
        raise SubmitError("Kafka did not acknowledge what was sent. Repeat the command; it skips those already sent.")
    return [reports[index] for index in range(len(part))]


def _to_the_end(tail: Tail) -> Iterator[TailRecord]:
    """Records up to the current ends of the logs."""
    goal: Mapping[Place, int] = tail.ends()
    while not tail.caught_up(goal):
        yield from tail.poll(RECORDS_MAX, POLL_S)
