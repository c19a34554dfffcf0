"""The Store contract, held by the dict and by SQLite alike; what only a file can do follows at the end."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamtask.errors import ConfigError
from streamtask.projection.sqlite import SQLiteStore
from streamtask.projection.store import Cursor, Filter, MemoryStore, Row, Store, key_of, text_of

STATUSES = ("created", "running", "completed", "failed", "cancelled")


def an_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


def a_row(number: int, **changes: object) -> Row:
    row = Row(
        task_id=an_id(number),
        body=b'{"number":%d}' % number,
        status="created",
        task_type="census",
        tenant=None,
        priority=5,
        created_ms=1_000 + number,
        updated_ms=1_000 + number,
        version=0,
        origin=f"normal-0@{number}",
        partition=0,
        band=1,
    )
    return row._replace(**changes)  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "view.db")
    yield made
    made.close()


def all_rows(store: Store, filter: Filter, limit: int) -> list[Row]:
    out: list[Row] = []
    cursor: Cursor | None = None
    while True:
        page = store.list(filter, cursor, limit)
        out += page.rows
        if page.cursor is None:
            return out
        assert len(page.rows) == limit
        cursor = Cursor.parse(str(page.cursor))


def test_a_row_comes_back_as_it_was_written(store: Store) -> None:
    row = a_row(1, body='{"名":"🦆"}'.encode(), tenant="acme", priority=None, task_type=None)
    store.apply([row], {})
    assert store.get(row.task_id) == row
    assert store.body(row.task_id) == (row.body, row.version)
    assert store.get(an_id(2)) is None
    assert store.body(an_id(2)) is None


def test_a_new_store_has_no_identity_no_offset_and_no_task(store: Store) -> None:
    assert store.identity() is None
    assert store.offsets() == {}
    assert store.counts() == dict.fromkeys(STATUSES, 0)
    assert store.list(Filter(), None, 10) == ([], None)


def test_the_last_row_of_a_task_wins_within_a_batch_and_across_batches(store: Store) -> None:
    store.apply([a_row(1), a_row(1, status="running", version=4)], {})
    assert store.get(an_id(1)) == a_row(1, status="running", version=4)
    store.apply([a_row(1, status="failed", version=9)], {})
    assert store.get(an_id(1)) == a_row(1, status="failed", version=9)
    assert store.counts()["failed"] == 1
    assert sum(store.counts().values()) == 1


def test_offsets_move_with_the_rows_and_keep_what_a_batch_does_not_name(store: Store) -> None:
    store.apply([a_row(1)], {("a", 0): 5, ("a", 1): 7})
    store.apply([], {("a", 1): 8, ("b", 0): 1})
    assert store.offsets() == {("a", 0): 5, ("a", 1): 8, ("b", 0): 1}


def test_a_batch_that_cannot_be_written_moves_neither_rows_nor_offsets(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "view.db")
    store.apply([a_row(1)], {("a", 0): 1})
    broken = a_row(3, body=None)
    with pytest.raises(sqlite3.IntegrityError):
        store.apply([a_row(2), broken], {("a", 0): 2})
    assert store.get(an_id(2)) is None
    assert store.offsets() == {("a", 0): 1}
    store.apply([a_row(2)], {("a", 0): 2})
    assert store.get(an_id(2)) == a_row(2)
    store.close()


def test_an_event_without_tenant_leaves_the_tenant_that_is_known(store: Store) -> None:
    store.apply([a_row(1, tenant="acme")], {})
    store.apply([a_row(1, status="running", version=3)], {})
    row = store.get(an_id(1))
    assert row is not None
    assert row.tenant == "acme"
    store.apply([a_row(1, status="running", version=4, origin="low-0@9")], {})
    row = store.get(an_id(1))
    assert row is not None
    assert row.tenant is None, "the tenant belonged to another request"


def test_a_tenant_can_be_named_after_the_fact_and_only_for_a_known_task(store: Store) -> None:
    store.apply([a_row(1, version=2), a_row(3)], {})
    store.apply([], {}, {an_id(1): "acme", an_id(2): "acme"})
    assert store.get(an_id(1)) == a_row(1, version=2, tenant="acme")
    assert store.get(an_id(2)) is None
    assert all_rows(store, Filter(tenant="acme"), 10) == [a_row(1, version=2, tenant="acme")]


def test_known_tells_of_many_tasks_at_once_and_leaves_out_the_unknown(store: Store) -> None:
    store.apply([a_row(n, version=n) for n in range(0, 1_400, 2)], {})
    found = store.known([an_id(n) for n in range(1_400)])
    assert sorted(found) == [an_id(n) for n in range(0, 1_400, 2)]
    assert found[an_id(8)] == ("created", 1_008, 8, "normal-0@8", None)
    assert store.known([]) == {}


def test_lists_are_newest_first_and_ties_are_broken_by_task_id(store: Store) -> None:
    rows = [a_row(n, created_ms=100 if n < 4 else 200) for n in range(6)]
    store.apply(rows, {})
    assert [row.task_id for row in store.list(Filter(), None, 10).rows] == [an_id(n) for n in (5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (Filter(status="failed"), {1, 4, 7}),
        (Filter(task_type="b"), {0, 2, 4, 6, 8}),
        (Filter(tenant="t"), {0, 5}),
        (Filter(since_ms=1_007), {7, 8}),
        (Filter(status="failed", task_type="b"), {4}),
        (Filter(status="failed", task_type="b", tenant="t"), set()),
    ],
)
def test_filters_are_joined_by_and(store: Store, filter: Filter, expected: set[int]) -> None:
    store.apply(
        [
            a_row(
                n,
                status="failed" if n % 3 == 1 else "running",
                task_type="b" if n % 2 == 0 else "a",
                tenant="t" if n % 5 == 0 else None,
            )
            for n in range(9)
        ],
        {},
    )
    assert [row.task_id for row in all_rows(store, filter, 2)] == [an_id(n) for n in sorted(expected, reverse=True)]


def test_a_cursor_neither_repeats_nor_skips_when_tasks_come_and_change_between_pages(store: Store) -> None:
    store.apply([a_row(n) for n in range(6)], {})
    first = store.list(Filter(), None, 3)
    assert first.cursor is not None
    store.apply([a_row(n) for n in range(6, 9)] + [a_row(5, status="running", version=1)], {})
    second = store.list(Filter(), first.cursor, 3)
    assert [row.task_id for row in first.rows + second.rows] == [an_id(n) for n in (5, 4, 3, 2, 1, 0)]
    assert second.cursor is None


@pytest.mark.parametrize("text", ["", "x", "ä", "AAAA", "A" * 31 + "=", "A" * 64])
def test_a_cursor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (binascii.Error and UnicodeError are ValueErrors too)
        Cursor.parse(text)


def test_counts_follow_the_status(store: Store) -> None:
    store.apply([a_row(n, status=STATUSES[n % 5]) for n in range(12)], {})
    store.apply([a_row(0, status="completed", version=1)], {})
    assert store.counts() == {"created": 2, "running": 3, "completed": 3, "failed": 2, "cancelled": 2}


def test_reset_forgets_rows_and_offsets_and_remembers_the_identity(store: Store) -> None:
    store.apply([a_row(1)], {("a", 0): 5})
    store.reset("cluster-1")
    assert (store.identity(), store.offsets(), store.get(an_id(1))) == ("cluster-1", {}, None)
    assert sum(store.counts().values()) == 0
    store.reset("cluster-2")
    assert store.identity() == "cluster-2"


def test_expire_forgets_what_the_topics_have_forgotten_in_slices(store: Store) -> None:
    old = [a_row(n, status="completed", version=1, created_ms=100, updated_ms=200) for n in range(5)]
    long_lived = a_row(10, status="running", version=1, created_ms=100, updated_ms=5_000)
    backlog = [a_row(11, created_ms=400, updated_ms=6_000), a_row(12, created_ms=900)]
    store.apply([*old, long_lived, *backlog], {("a", 0): 1})
    gone = [store.expire(1_000, unstarted_before_ms=500, rows_max=4) for _ in range(3)]
    assert gone == [4, 2, 0]
    assert {row.task_id for row in all_rows(store, Filter(), 10)} == {an_id(10), an_id(12)}
    assert store.get(an_id(10)) == long_lived
    assert store.offsets() == {("a", 0): 1}


rows_strategy = st.builds(
    a_row,
    st.integers(0, 12),
    status=st.sampled_from(STATUSES),
    task_type=st.sampled_from(["a", "b", None]),
    tenant=st.sampled_from(["t", None]),
    created_ms=st.integers(0, 5),
    version=st.integers(0, 9),
    origin=st.sampled_from(["high-0@1", "low-0@2"]),
)


def test_counts_do_not_keep_a_whole_index_in_memory() -> None:
    """Bug: the view grew with its tasks for as long as a third cache of 64 MB was not full: 4 % in an hour of 120 tasks/s."""
    with contextlib.closing(SQLiteStore(None)) as store:
        kib = {
            name: -held.execute("PRAGMA cache_size").fetchone()[0]
            for name, held in vars(store).items()
            if isinstance(held, sqlite3.Connection)
        }
    assert kib == {"_writer": 65_536, "_getter": 65_536, "_scanner": 4_096}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(rows_strategy, max_size=8), max_size=6),
    filter=st.builds(
        Filter,
        status=st.sampled_from([*STATUSES, None]),
        task_type=st.sampled_from(["a", None]),
        tenant=st.sampled_from(["t", None]),
        since_ms=st.sampled_from([3, None]),
    ),
    limit=st.integers(1, 5),
)
def test_memory_and_sqlite_answer_alike(batches: list[list[Row]], filter: Filter, limit: int) -> None:
    memory, sqlite = MemoryStore(), SQLiteStore(None)
    try:
        for number, batch in enumerate(batches):
            for store in (memory, sqlite):
                store.apply(batch, {("a", 0): number}, {an_id(number): "late"})
        assert all_rows(memory, filter, limit) == all_rows(sqlite, filter, limit)
        assert memory.counts() == sqlite.counts()
        assert memory.offsets() == sqlite.offsets()
        ids = [an_id(n) for n in range(14)]
        assert memory.known(ids) == sqlite.known(ids)
    finally:
        sqlite.close()


@given(st.uuids(), st.integers(-(2**62), 2**62))
def test_keys_and_cursors_come_back_as_they_were(task_id: object, created_ms: int) -> None:
    text = str(task_id)
    assert text_of(key_of(text)) == text
    assert Cursor.parse(str(Cursor(created_ms, text))) == (created_ms, text)


# --- What only a file can do ------------------------------------------------------------------------------------------


def test_a_file_goes_on_where_it_was_closed(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "view.db")
    store.reset("cluster-1")
    store.apply([a_row(1)], {("a", 0): 5})
    store.close()
    again = SQLiteStore(tmp_path / "view.db")
    assert (again.identity(), again.offsets(), again.get(an_id(1))) == ("cluster-1", {("a", 0): 5}, a_row(1))
    again.close()


def test_a_second_query_service_on_the_same_file_is_refused(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "view.db")
    with pytest.raises(ConfigError, match="in use by another"):
        SQLiteStore(tmp_path / "view.db")
    store.close()
    SQLiteStore(tmp_path / "view.db").close()


def _text_file(path: Path) -> None:
    path.write_text("not a database at all, but long enough to be read as the header of one " * 3)


def _other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("make", [_text_file, _other_database])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "other.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="Choose another file"):
        SQLiteStore(path)
    assert path.read_bytes() == before


def test_a_file_of_another_format_is_emptied(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "view.db")
    store.reset("cluster-1")
    store.apply([a_row(1)], {("a", 0): 5})
    store.close()
    connection = sqlite3.connect(tmp_path / "view.db")
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    again = SQLiteStore(tmp_path / "view.db")
    assert (again.identity(), again.offsets(), again.get(an_id(1))) == (None, {}, None)
    again.close()


def test_readers_see_whole_batches_while_the_writer_writes(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "view.db")
    store.apply([a_row(n) for n in range(20)], {})
    seen: list[set[int]] = []
    ready, done = threading.Event(), threading.Event()

    def read() -> None:
        ready.set()
        while not done.is_set():
            seen.append({row.version for row in store.list(Filter(), None, 100).rows})

    reader = threading.Thread(target=read)
    reader.start()
    assert ready.wait(60)
    for version in range(1, 60):
        store.apply([a_row(n, status="running", version=version) for n in range(20)], {})
    done.set()
    reader.join(60)
    store.close()
    assert seen
    assert all(len(versions) == 1 for versions in seen), "half a batch was seen"
