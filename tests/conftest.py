"""The real Kafka that tests share, and topics of their own on it.

`broker`  one local Apache Kafka for the whole run, also under pytest-xdist, where the worker that needs it first starts
          it and the last one to need it sees it end. STREAMTASK_TEST_BOOTSTRAP_SERVERS names another one instead.
`prefix`  a random topic prefix, one per test.
`make_topics(partitions)` and `topics` (4 partitions): the topics of that prefix, deleted after the test.

Tests that kill, freeze or configure brokers start a DevBroker of their own. tests/turns.py says what runs side by side.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers as _providers
from hypothesis.internal.constants_ast import Constants

from streamtask.config import TopicNames
from streamtask.devbroker.cluster import QUICK, DevBroker
from streamtask.kafka import admin
from streamtask.testing import GIVEN, Broker, SharedBroker
from tests import parts, skips, turns
from tests.parts import MARKS, Collected

if TYPE_CHECKING:
    from tests.secure_broker import SecureBroker

# Property tests draw the same examples in every run, on every machine: a change that breaks one is seen where it is made,
# and a fresh clone does not fail by chance. `make fuzz` is what looks for new ones. No deadline: on a shared machine the
# time that an example took says nothing.
settings.register_profile(
    "house",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "fuzz", settings.get_profile("house"), derandomize=False, max_examples=300, suppress_health_check=list(HealthCheck)
)
settings.load_profile("house")
# hypothesis mixes in constants that it finds in whatever modules happen to be imported: under pytest-xdist, or with one
# test alone, others than in a whole run, and with them other examples for the same seed.
_NO_CONSTANTS = Constants()
_providers._get_local_constants = lambda: _NO_CONSTANTS

# A run that was started in the background (`make test &`, some CI) ignores SIGINT, and so would every process that it
# starts: tests that send one would wait for ever. A handler of our own is reset to the default in them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_SHARED = pytest.StashKey[SharedBroker]()
_EVERYTHING = pytest.StashKey[list[Collected]]()


def warm_up(bootstrap: str) -> None:
    """Have Kafka make its internal topics (1-3 s), so that no test's deadline pays for it."""
    name = f"warm.{secrets.token_hex(4)}"
    Producer({"bootstrap.servers": bootstrap, "transactional.id": name}).init_transactions(60)
    names = TopicNames(name)
    admin.ensure_topics({"bootstrap.servers": bootstrap}, names, partitions=1)
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": name})
    part = TopicPartition(names.requests[0], 0, 0)
    try:
        consumer.assign([part])
        consumer.commit(offsets=[part], asynchronous=False)
    finally:
        consumer.close()
    admin.delete_topics({"bootstrap.servers": bootstrap}, names)


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    given = os.environ.get(GIVEN)
    if given:
        yield Broker(given)
    elif os.environ.get("PYTEST_XDIST_WORKER"):
        shared = SharedBroker(tmp_path_factory.getbasetemp().parent, warm_up=warm_up)
        request.config.stash[_SHARED] = shared
        yield shared.join()
    else:
        with DevBroker(config=QUICK) as kafka:
            warm_up(kafka.bootstrap)
            yield Broker(kafka.bootstrap)


@pytest.fixture(scope="session")
def secured() -> Iterator[SecureBroker]:
    """A Kafka of its own that lets nobody in who is not known, and nobody do what is not allowed."""
    from tests.secure_broker import Identities, SecureBroker

    with Identities() as identities, SecureBroker(identities) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the runs of mypy in this process: the first one takes 8 s, those after it 2."""
    return tmp_path_factory.mktemp("mypy")


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Not in the fixture: its end counts as part of the last test, whose time limit is not for waiting on others.
    shared = session.config.stash.get(_SHARED, None)
    if shared is not None:
        shared.leave()


@pytest.hookimpl(tryfirst=True)  # before anything is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    turns.order(items)
    if config.args == config.getini("testpaths") and not config.getoption("ignore"):
        config.stash[_EVERYTHING] = found = [
            Collected(item.nodeid, frozenset(mark.name for mark in item.iter_markers()) & MARKS) for item in items
        ]
        parts.note("collected", *map(str, found))


@pytest.fixture(scope="session")
def everything(request: pytest.FixtureRequest) -> list[Collected]:
    """Every test that there is, selected in this run or not."""
    found = request.config.stash.get(_EVERYTHING, None)
    return parts.collect() if found is None else found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    skips.refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    skips.refuse(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    parts.note("ran", item.nodeid)
    with turns.turn(item):
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    return turns.Scheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture
def prefix() -> str:
    return f"t{secrets.token_hex(5)}"


@pytest.fixture
def make_topics(broker: Broker, prefix: str) -> Iterator[Callable[[int], TopicNames]]:
    settings = {"bootstrap.servers": broker.bootstrap}
    names = TopicNames(prefix)

    def make(partitions: int) -> TopicNames:
        admin.ensure_topics(settings, names, partitions=partitions)
        return names

    yield make
    admin.delete_topics(settings, names)


@pytest.fixture
def topics(make_topics: Callable[[int], TopicNames]) -> TopicNames:
    return make_topics(4)
