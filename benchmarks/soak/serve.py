"""`streamtask serve` with its clients watched: `python -m benchmarks.soak.serve`, arguments as there."""

from __future__ import annotations

import os
import sys

from benchmarks.soak import queues
from streamtask.cli import main
from streamtask.projection import sqlite

CACHE_KIB = "SOAK_CACHE_KIB"  # of SQLite's pages, for each connection; unset: as it is


def run() -> None:
    """A run of two minutes cannot fill three caches of 64 MB: until they are full, growth is what they are for."""
    queues.watch_if_wanted()
    sqlite.CACHE_KIB = int(os.environ.get(CACHE_KIB, sqlite.CACHE_KIB))
    sys.argv[1:1] = ["serve"]
    main()


if __name__ == "__main__":
    run()
