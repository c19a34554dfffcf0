"""Imports a CSV file of people into SQLite: it waits for a file that is late, gives up on one that is wrong, reports how
far it is, and may run twice.

    streamtask worker app:app
    streamtask submit import_people '{"source": "people.csv", "database": "people.db"}' --wait
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from pydantic import BaseModel

from streamtask import App, Context, GiveUp, Retry, RetryLater


class Import(BaseModel):
    source: Path
    database: Path


class Imported(BaseModel):
    rows: int
    attempt: int


@asynccontextmanager
async def lifespan() -> AsyncIterator[frozenset[str]]:
    """Opened once per worker, before its first task: here a connection pool would be made. What it yields is ctx.state."""
    yield frozenset({"root", "admin"})


app = App("people", lifespan=lifespan)


@app.task(timeout=60, retry=Retry(attempts=5, backoff=0.5, give_up_on=(UnicodeDecodeError,)))
def import_people(ctx: Context, params: Import) -> Imported:
    """A plain function: it runs in a thread."""
    if not params.source.exists():
        raise RetryLater(f"{params.source} is not there yet", after=1.0)
    rows = list(csv.DictReader(params.source.read_text(encoding="utf-8").splitlines()))
    with closing(sqlite3.connect(params.database)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS person (name TEXT PRIMARY KEY, age INTEGER)")
        for number, row in enumerate(rows, 1):
            ctx.check_cancelled()  # a thread cannot be stopped from outside; leaving here rolls back
            try:
                name, age = row["name"], int(row["age"])
            except (KeyError, TypeError, ValueError) as error:
                raise GiveUp(f"row {number}: {type(error).__name__}: {error}") from None
            if name not in ctx.state:
                # Handlers run at least once: writing the same row again changes nothing.
                database.execute("INSERT OR REPLACE INTO person VALUES (?, ?)", (name, age))
            ctx.progress(number / len(rows), f"{number} of {len(rows)} rows")
    return Imported(rows=len(rows), attempt=ctx.attempt)
