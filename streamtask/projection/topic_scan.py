"""Answers without a query service: reads the topics of a prefix to their ends, once, and folds them as the view does.

For the command line, and for a client that asks about a task without a query service. It costs a whole read of the
topics: up to a million records a second are read, and some hundred thousand are folded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime

from streamtask.codec import DeadRecord, RequestDecoder, decode_dead, decode_status
from streamtask.config import Settings
from streamtask.domain.model import RequestRecord, TaskResponse, to_ms
from streamtask.errors import DecodeError
from streamtask.kafka.admin import cluster_id
from streamtask.kafka.tail import Tail, TailRecord
from streamtask.projection.materialize import Materializer, created_row
from streamtask.projection.sqlite import SQLiteStore
from streamtask.projection.store import Filter, Row
from streamtask.schema_registry import Formats

RECORDS_MAX = 5_000
POLL_S = 0.1


def list_tasks(
    settings: Settings,
    *,
    status: str | None = None,
    task_type: str | None = None,
    tenant: str | None = None,
    since: datetime | None = None,
    limit: int = 20,
) -> tuple[list[TaskResponse], bool]:
    """The newest `limit` tasks that match, and whether there are more. Raises Unreachable, TopicsMissing.

    The rows are in a temporary file, so that memory use does not grow with the number of tasks.
    """
    kafka, names = settings.kafka_for("reader"), settings.topics
    formats, store = Formats(settings), SQLiteStore(None)
    try:
        materializer = Materializer(
            store,
            names,
            cluster_id(kafka),
            locale=settings.locale,
            reader=formats.insisting,
            lenient=formats.waiting,
        )
        with Tail(kafka, (*names.requests, names.status), with_headers=True) as tail:
            for records in _to_the_end(tail):
                materializer.apply(records, tail.positions())
        since_ms = None if since is None else to_ms(since)
        page = store.list(Filter(status, task_type, tenant, since_ms), None, limit)
        return [task for row in page.rows if (task := _task(row)) is not None], page.cursor is not None
    finally:
        store.close()
        formats.close()


def _task(row: Row) -> TaskResponse | None:
    """None: the event has a task_id and a status, but is not what workers write otherwise. The audit reports it."""
    try:
        return decode_status(row.body)
    except DecodeError:
        return None


def find_request(settings: Settings, task_id: str) -> TaskResponse | None:
    """The task as CREATED, if a request with this (canonical) id is in the bands."""
    kafka, names = settings.kafka_for("reader"), settings.topics
    bands = {topic: band for band, topic in enumerate(names.requests)}
    with closing(Formats(settings)) as formats, Tail(kafka, names.requests, with_headers=True) as tail:
        decoder = RequestDecoder(names, cluster_id(kafka), formats.insisting)
        for records in _to_the_end(tail):
            for record in records:
                found = _decoded(decoder, bands[record.topic], record)
                if found.task_id == task_id:
                    return decode_status(created_row(found, names, settings.locale).body)
    return None


def read_dead(settings: Settings) -> list[DeadRecord]:
    """Every dead letter, newest first; other records are left out."""
    letters: list[DeadRecord] = []
    with Tail(settings.kafka_for("reader"), (settings.topics.dead,), with_headers=True) as tail:
        for records in _to_the_end(tail):
            for record in records:
                try:
                    letters.append(decode_dead(*record[1:]))
                except DecodeError:
                    continue  # not a dead letter; the audit reports it
    return sorted(letters, key=lambda letter: letter.timestamp_ms, reverse=True)


def _to_the_end(tail: Tail) -> Iterator[list[TailRecord]]:
    """Batches up to the current ends of the topics."""
    goal = tail.ends()
    while not tail.caught_up(goal):
        records = tail.poll(RECORDS_MAX, POLL_S)
        if records:
            yield records


def _decoded(decoder: RequestDecoder, band: int, record: TailRecord) -> RequestRecord:
    return decoder.decode(band, *record[1:])
