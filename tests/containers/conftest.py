"""`host`: a Docker daemon that answers, or the test is skipped, saying what to install."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containers import daemon
from tests.containers import host as hosts
from tests.containers.host import Host


@pytest.fixture
def host() -> Iterator[Host]:
    # One a test: under pytest-xdist nobody shares it, and whatever a test does with it ends with the test.
    before = daemon.bridges()
    try:
        with hosts.host() as found:
            yield found
    except daemon.Missing as missing:
        pytest.skip(str(missing))
    if found.own:
        assert daemon.left() == [], "what the daemon of our own leaves"
        assert daemon.bridges() == before, "what the daemon of our own leaves"
