"""What the view stores: the latest status of every task, and how far each topic was read, in one local transaction.

Invariant: rows and offsets change together. A crash between two `apply` leaves both as the first one left them, so a
restart that continues from `offsets()` folds every record exactly as if the view had never stopped. The store has no
rules about statuses (core/fold.py has them): it stores the rows that it is given, and the last one wins.

Two classes implement the protocol: MemoryStore here (tests, throw-away views) and SQLiteStore (sqlite.py). One contract
suite, tests/contract/test_store.py, tests both.
"""

from __future__ import annotations

import base64
import heapq
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from streamtask.domain.model import TaskStatus

Partition = tuple[str, int]  # (topic, partition)

LIST_MAX = 1_000  # rows of one page
_CURSOR_BYTES = 24


class Row(NamedTuple):
    """One task as the view knows it.

    task_id        canonical UUID text
    body           the TaskResponse as JSON bytes: look-ups serve them as they are
    status         wire name; task_type, tenant: None when unknown
    created_ms, updated_ms   milliseconds since the epoch, as in the body
    version        offset of the status event + 1; 0 = only the request is known
    origin         the request record of this history, `high-3@12345`; "" when the event does not contain it
    partition, band   the shard, and the index of the band (-1: not known)
    """

    task_id: str
    body: bytes
    status: str
    task_type: str | None
    tenant: str | None
    priority: int | None
    created_ms: int
    updated_ms: int
    version: int
    origin: str
    partition: int
    band: int


class Known(NamedTuple):
    """The part of a row that folding needs, without the body, which may be a megabyte."""

    status: str
    updated_ms: int
    version: int
    origin: str
    tenant: str | None


class Filter(NamedTuple):
    """Which tasks to list; None = any. `since_ms`: created at or after."""

    status: str | None = None
    task_type: str | None = None
    tenant: str | None = None
    since_ms: int | None = None


class Cursor(NamedTuple):
    """The last row of a page: the next page starts below it, whatever is added or changed meanwhile."""

    created_ms: int
    task_id: str

    def __str__(self) -> str:
        raw = self.created_ms.to_bytes(8, "big", signed=True) + key_of(self.task_id)
        return base64.urlsafe_b64encode(raw).decode()

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor that `text` spells. Raises ValueError."""
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        if len(raw) != _CURSOR_BYTES:
            raise ValueError(f"a cursor has {_CURSOR_BYTES} bytes, not {len(raw)}")
        return cls(int.from_bytes(raw[:8], "big", signed=True), text_of(raw[8:]))


class Page(NamedTuple):
    """Rows, newest first, and the cursor of the next page; None on the last page."""

    rows: list[Row]
    cursor: Cursor | None


class Store(Protocol):
    """Used by one writer (the tail thread) and any number of readers in other threads."""

    def identity(self) -> str | None:
        """The source of these rows (cluster id and topic ids as text), or None for a store that was never used."""

    def reset(self, identity: str) -> None:
        """Forget every row and offset, then remember `identity`."""

    def offsets(self) -> dict[Partition, int]:
        """Next offset to read per partition, as of the last `apply`."""

    def known(self, task_ids: Collection[str]) -> dict[str, Known]:
        """What is known of these tasks; unknown ones are left out."""

    def apply(
        self, rows: Sequence[Row], offsets: Mapping[Partition, int], tenants: Mapping[str, str] | None = None
    ) -> None:
        """Write rows (the last one of a task_id wins), set the tenants of known tasks, move the offsets: all or nothing. A row
        without a tenant keeps the tenant known for the same origin."""

    def get(self, task_id: str) -> Row | None:
        """The row of a canonical task_id, or None."""

    def body(self, task_id: str) -> tuple[bytes, int] | None:
        """The body and the version of that row; takes half the time of `get`."""

    def list(self, filter: Filter, cursor: Cursor | None, limit: int) -> Page:
        """At most `limit` rows (1..LIST_MAX) below `cursor`, newest first (created_ms, then task_id)."""

    def counts(self) -> dict[str, int]:
        """{status: number of tasks}, for every status."""

    def expire(self, before_ms: int, *, unstarted_before_ms: int, rows_max: int) -> int:
        """Delete up to rows_max tasks that were last updated before `before_ms`, or are known only by their request and were
        created before `unstarted_before_ms`. Returns how many; call again while it is rows_max."""

    def close(self) -> None: ...


def key_of(task_id: str) -> bytes:
    """The 16 bytes of a canonical task_id."""
    return bytes.fromhex(task_id.replace("-", ""))


def text_of(key: bytes) -> str:
    """The canonical task_id of 16 bytes."""
    text = key.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class MemoryStore:
    """The Store contract in a dict."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._offsets: dict[Partition, int] = {}
        self._identity: str | None = None

    def identity(self) -> str | None:
        return self._identity

    def reset(self, identity: str) -> None:
        with self._lock:
            self._rows.clear()
            self._offsets.clear()
            self._identity = identity

    def offsets(self) -> dict[Partition, int]:
        with self._lock:
            return dict(self._offsets)

    def known(self, task_ids: Collection[str]) -> dict[str, Known]:
        with self._lock:
            found = ((task_id, self._rows.get(task_id)) for task_id in task_ids)
            return {t: Known(r.status, r.updated_ms, r.version, r.origin, r.tenant) for t, r in found if r is not None}

    def apply(
        self, rows: Sequence[Row], offsets: Mapping[Partition, int], tenants: Mapping[str, str] | None = None
    ) -> None:
        with self._lock:
            for row in rows:
                before = self._rows.get(row.task_id)
                if row.tenant is None and before is not None and before.origin == row.origin:
                    row = row._replace(tenant=before.tenant)
                self._rows[row.task_id] = row
            for task_id, tenant in (tenants or {}).items():
                if task_id in self._rows:
                    self._rows[task_id] = self._rows[task_id]._replace(tenant=tenant)
            self._offsets.update(offsets)

    def get(self, task_id: str) -> Row | None:
        return self._rows.get(task_id)

    def body(self, task_id: str) -> tuple[bytes, int] | None:
        row = self._rows.get(task_id)
        return None if row is None else (row.body, row.version)

    def list(self, filter: Filter, cursor: Cursor | None, limit: int) -> Page:
        assert 1 <= limit <= LIST_MAX, f"limit={limit}"
        with self._lock:
            rows = [row for row in self._rows.values() if _matches(row, filter, cursor)]
        return page_of(heapq.nlargest(limit + 1, rows, key=lambda row: (row.created_ms, row.task_id)), limit)

    def counts(self) -> dict[str, int]:
        with self._lock:
            found = Counter(row.status for row in self._rows.values())
        return {status.value: found[status.value] for status in TaskStatus}

    def expire(self, before_ms: int, *, unstarted_before_ms: int, rows_max: int) -> int:
        with self._lock:
            old = [
                row.task_id
                for row in self._rows.values()
                if row.updated_ms < before_ms or (row.version == 0 and row.created_ms < unstarted_before_ms)
            ][:rows_max]
            for task_id in old:
                del self._rows[task_id]
        return len(old)

    def close(self) -> None:
        """There is nothing to close."""


def page_of(rows: list[Row], limit: int) -> Page:
    """A page of at most `limit` rows out of up to limit + 1: the extra one only shows that there are more."""
    if len(rows) <= limit:
        return Page(rows, None)
    last = rows[limit - 1]
    return Page(rows[:limit], Cursor(last.created_ms, last.task_id))


def _matches(row: Row, filter: Filter, cursor: Cursor | None) -> bool:
    return (
        (filter.status is None or row.status == filter.status)
        and (filter.task_type is None or row.task_type == filter.task_type)
        and (filter.tenant is None or row.tenant == filter.tenant)
        and (filter.since_ms is None or row.created_ms >= filter.since_ms)
        and (cursor is None or (row.created_ms, row.task_id) < (cursor.created_ms, cursor.task_id))
    )
