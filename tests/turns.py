"""In which order tests run, which of them side by side, and on which of pytest-xdist's workers.

Acceptance tests mostly wait: for a session to end, a backoff, a drain. Beside one of them the other worker always has
something to do: another acceptance test, or files of other tests. Only the slow ones, which measure times and memory,
or take processes away by the dozen, have the machine to themselves. So, under pytest-xdist:

- acceptance tests come first, one by one to whichever worker is free: they take up to half a minute each, and begun last
  one worker would end long before the other;
- then come the other tests, file by file, so that the brokers and registries of a file are started once;
- slow acceptance tests come last, each alone.

Without pytest-xdist the acceptance tests are last: what fails fast, fails first.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

ACCEPTANCE = "tests/acceptance/"


def distributed() -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return bool(os.environ.get("PYTEST_XDIST_WORKER"))


def _marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None


def alone(item: pytest.Item) -> bool:
    """It has the machine to itself."""
    return _marked(item, "acceptance") and _marked(item, "slow")


def order(items: list[pytest.Item]) -> None:
    """Sort the tests, each file's as they stand in it."""
    if distributed():
        items.sort(key=lambda item: (alone(item), not _marked(item, "acceptance"), not _marked(item, "broker")))
    else:
        items.sort(key=lambda item: _marked(item, "acceptance"))


@contextmanager
def turn(item: pytest.Item) -> Iterator[None]:
    """Wait until the test may run: nothing runs beside one that is alone. Counts towards no test's time limit."""
    cache = getattr(item.config, "cache", None)
    if not distributed() or cache is None:
        yield
        return
    with (cache.mkdir("turns") / "turn").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone(item) else fcntl.LOCK_SH)
        yield


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Acceptance tests one by one, other tests by their files, both in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(ACCEPTANCE) else nodeid.partition("::")[0]
