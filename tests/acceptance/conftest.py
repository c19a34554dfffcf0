"""`bench`: a prefix of 4 partitions on the shared broker, and the means to start workers on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamtask.config import TopicNames
from streamtask.testing import Broker
from tests.acceptance import harness
from tests.acceptance.harness import Bench


@pytest.fixture
def bench(broker: Broker, topics: TopicNames, tmp_path: Path) -> Iterator[Bench]:
    with harness.bench(broker.bootstrap, topics, tmp_path) as one:
        yield one
