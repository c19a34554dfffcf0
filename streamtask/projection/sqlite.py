"""The view's store in one SQLite file: WAL, synchronous=NORMAL, one writing connection and two reading ones.

A power cut may lose the last transactions (NORMAL), but never half of one: rows and offsets are then both older, and the
topics still have what is missing. So the file is a cache: a file of another format version is emptied and rebuilt.

There are three connections, because a reader must not wait: the tail thread writes, `get` and `body` read one row on the
event loop (7 and 3.5 µs), `list` and `counts` scan in other threads. A file belongs to one process: an flock on
`<file>.lock` keeps a second process out, which would move the offsets under the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamtask.domain.model import TaskStatus
from streamtask.errors import ConfigError
from streamtask.projection.store import LIST_MAX, Cursor, Filter, Known, Page, Partition, Row, key_of, page_of, text_of

APPLICATION_ID = 0x73747677  # "stvw", in the file's header: marks a streamtask view
FORMAT = 1  # version of the tables below; a file with another one is emptied and rebuilt from the topics
KEYS_PER_SELECT = 500  # bounds the number of different statements, and of variables in each (SQLite: 32,766)
CACHE_KIB = 65_536
CHECKPOINT_PAGES = 16_000  # 64 MB of log; with SQLite's default of 1,000 every index page is written for every batch
SCAN_CACHE_KIB = 4_096  # the counts read a whole index, so a larger cache would grow with the tasks until it is full

_TABLES = """
CREATE TABLE task (
    task_id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, status TEXT NOT NULL, task_type TEXT, tenant TEXT,
    priority INTEGER, created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, version INTEGER NOT NULL,
    origin TEXT NOT NULL, partition INTEGER NOT NULL, band INTEGER NOT NULL
);
CREATE INDEX task_created ON task (created_ms, task_id);
CREATE INDEX task_status ON task (status, created_ms, task_id);
CREATE INDEX task_type ON task (task_type, created_ms, task_id);
CREATE INDEX task_tenant ON task (tenant, created_ms, task_id) WHERE tenant IS NOT NULL;
CREATE TABLE position (topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE identity (only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1), text TEXT NOT NULL);
"""
_DROP = "DROP TABLE IF EXISTS task; DROP TABLE IF EXISTS position; DROP TABLE IF EXISTS identity;"

_COLUMNS = (
    "task_id, body, status, task_type, tenant, priority, created_ms, updated_ms, version, origin, partition, band"
)
# Rows per statement. Each statement releases the GIL and waits to get it back, which takes longer than the row if another
# thread is busy; and a row costs 6.5 µs instead of 7.7. The largest uses as many variables as SQLite has (32,766).
_ROWS_PER_INSERT = (2_048, 256, 32, 4, 1)
_UPSERT = f"""
INSERT INTO task ({_COLUMNS}) VALUES {{}}
ON CONFLICT (task_id) DO UPDATE SET
    body = excluded.body, status = excluded.status, task_type = excluded.task_type,
    tenant = CASE WHEN excluded.tenant IS NULL AND excluded.origin = origin THEN tenant ELSE excluded.tenant END,
    priority = excluded.priority, created_ms = excluded.created_ms,
    updated_ms = excluded.updated_ms, version = excluded.version, origin = excluded.origin,
    partition = excluded.partition, band = excluded.band
"""
_UPSERTS = {size: _UPSERT.format(",".join(["(?,?,?,?,?,?,?,?,?,?,?,?)"] * size)) for size in _ROWS_PER_INSERT}
_MOVE = """
INSERT INTO position (topic, partition, offset) VALUES (?,?,?)
ON CONFLICT (topic, partition) DO UPDATE SET offset = excluded.offset
"""
_GET = f"SELECT {_COLUMNS} FROM task WHERE task_id = ?"
_BODY = "SELECT body, version FROM task WHERE task_id = ?"
_KNOWN = "SELECT task_id, status, updated_ms, version, origin, tenant FROM task WHERE task_id IN ({})"
# created_ms <= updated_ms in every row, so the index on created_ms finds all candidates; only long-lived tasks among them
# are skipped. A task known only by its request is CREATED: the index on status finds it.
_EXPIRE = "DELETE FROM task WHERE rowid IN (SELECT rowid FROM task WHERE created_ms < ? AND updated_ms < ? LIMIT ?)"
_EXPIRE_UNSTARTED = """
DELETE FROM task WHERE rowid IN
    (SELECT rowid FROM task WHERE status = 'created' AND created_ms < ? AND version = 0 LIMIT ?)
"""


class SQLiteStore:
    """The Store contract in a file. With `path` None it is a temporary file, which `close` deletes.

    Raises ConfigError when the file is not a streamtask view or another process uses it.
    """

    def __init__(self, path: Path | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="streamtask-view-") if path is None else None
        self.path = Path(self._temporary.name) / "view.db" if self._temporary else Path(str(path))
        self._hold = _hold(self.path)
        try:
            _check_ours(self.path)
            self._writer = _connect(self.path, CACHE_KIB)
            self._writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            _prepare(self._writer)
            self._getter, self._scanner = _connect(self.path, CACHE_KIB), _connect(self.path, SCAN_CACHE_KIB)
            self._looker = self._getter.cursor()  # kept, because a new cursor costs half a microsecond
        except sqlite3.DatabaseError as error:
            os.close(self._hold)
            raise ConfigError(f"store={str(self.path)!r} cannot be used: {error}. Choose another file.") from None
        except BaseException:
            os.close(self._hold)
            raise
        # Python's sqlite3 runs one statement per connection at a time, but the steps of a cursor are many statements.
        self._write_lock, self._get_lock, self._scan_lock = threading.Lock(), threading.Lock(), threading.Lock()

    def identity(self) -> str | None:
        with self._write_lock:
            row = self._writer.execute("SELECT text FROM identity").fetchone()
        return None if row is None else str(row[0])

    def reset(self, identity: str) -> None:
        with self._writing() as writer:
            writer.execute("DELETE FROM task")
            writer.execute("DELETE FROM position")
            writer.execute("INSERT OR REPLACE INTO identity (only, text) VALUES (1, ?)", (identity,))

    def offsets(self) -> dict[Partition, int]:
        with self._write_lock:
            rows = self._writer.execute("SELECT topic, partition, offset FROM position").fetchall()
        return {(topic, partition): offset for topic, partition, offset in rows}

    def known(self, task_ids: Collection[str]) -> dict[str, Known]:
        named = {key_of(task_id): task_id for task_id in task_ids}
        keys = list(named)
        out: dict[str, Known] = {}
        with self._write_lock:
            for first in range(0, len(keys), KEYS_PER_SELECT):
                part = keys[first : first + KEYS_PER_SELECT]
                # Padded with NULL (which equals nothing) to one of few lengths, so that batches share prepared statements.
                values: list[bytes | None] = [*part, *[None] * (_padded(len(part)) - len(part))]
                found = self._writer.execute(_KNOWN.format(",".join("?" * len(values))), values)
                for key, status, updated_ms, version, origin, tenant in found.fetchall():
                    out[named[key]] = Known(status, updated_ms, version, origin, tenant)
        return out

    def apply(
        self, rows: Sequence[Row], offsets: Mapping[Partition, int], tenants: Mapping[str, str] | None = None
    ) -> None:
        with self._writing() as writer:
            at = 0
            for size in _ROWS_PER_INSERT:
                while len(rows) - at >= size:
                    values: list[Any] = []
                    for row in rows[at : at + size]:
                        values += row
                    values[:: len(Row._fields)] = [key_of(row[0]) for row in rows[at : at + size]]
                    writer.execute(_UPSERTS[size], values)
                    at += size
            if tenants:
                named = [(tenant, key_of(task_id)) for task_id, tenant in tenants.items()]
                writer.executemany("UPDATE task SET tenant = ? WHERE task_id = ?", named)
            writer.executemany(_MOVE, [(topic, partition, at) for (topic, partition), at in offsets.items()])

    def get(self, task_id: str) -> Row | None:
        with self._get_lock:
            row = self._getter.execute(_GET, (key_of(task_id),)).fetchone()
        return None if row is None else Row(task_id, *row[1:])

    def body(self, task_id: str) -> tuple[bytes, int] | None:
        with self._get_lock:
            found: tuple[bytes, int] | None = self._looker.execute(_BODY, (key_of(task_id),)).fetchone()
        return found

    def list(self, filter: Filter, cursor: Cursor | None, limit: int) -> Page:
        assert 1 <= limit <= LIST_MAX, f"limit={limit}"
        terms: list[str] = []
        values: list[Any] = []
        for term, value in (
            ("status = ?", filter.status),
            ("task_type = ?", filter.task_type),
            ("tenant = ?", filter.tenant),
            ("created_ms >= ?", filter.since_ms),
        ):
            if value is not None:
                terms.append(term)
                values.append(value)
        if cursor is not None:
            terms.append("(created_ms, task_id) < (?, ?)")
            values += [cursor.created_ms, key_of(cursor.task_id)]
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        text = f"SELECT {_COLUMNS} FROM task {where} ORDER BY created_ms DESC, task_id DESC LIMIT ?"
        with self._scan_lock:
            rows = self._scanner.execute(text, [*values, limit + 1]).fetchall()
        return page_of([Row(text_of(row[0]), *row[1:]) for row in rows], limit)

    def counts(self) -> dict[str, int]:
        with self._scan_lock:
            found = dict(self._scanner.execute("SELECT status, count(*) FROM task GROUP BY status").fetchall())
        return {status.value: found.get(status.value, 0) for status in TaskStatus}

    def expire(self, before_ms: int, *, unstarted_before_ms: int, rows_max: int) -> int:
        with self._writing() as writer:
            gone = writer.execute(_EXPIRE, (before_ms, before_ms, rows_max)).rowcount
            if gone < rows_max:
                gone += writer.execute(_EXPIRE_UNSTARTED, (unstarted_before_ms, rows_max - gone)).rowcount
        return gone

    def close(self) -> None:
        """Close the connections and unlock the file; idempotent."""
        for connection in (self._getter, self._scanner, self._writer):
            connection.close()
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1
        if self._temporary is not None:
            self._temporary.cleanup()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")


def _padded(count: int) -> int:
    """The next of the few allowed lengths: 1, 4, 16, 64, 256, 500."""
    size = 1
    while size < count:
        size *= 4
    return min(size, KEYS_PER_SELECT)


def _hold(path: Path) -> int:
    """The descriptor of `<path>.lock`, which this process has locked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"store={str(path)!r} cannot be opened: {error.strerror}. Choose another file.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(
            f"store={str(path)!r} is in use by another query service. Give each one its own file."
        ) from None
    return descriptor


def _connect(path: Path, cache_kib: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    return connection


def _check_ours(path: Path) -> None:
    """Raise ConfigError when the file holds something else. It is only read, because WAL would write into its header."""
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigError(f"store={str(path)!r} is not a database of the query service. Choose another file.")


def _prepare(connection: sqlite3.Connection) -> None:
    """Create the tables; a file of another format is emptied first."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (fmt,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, fmt) != (APPLICATION_ID, FORMAT):
        pragmas = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
        connection.executescript(f"BEGIN IMMEDIATE; {_DROP} {_TABLES} {pragmas} COMMIT;")
