"""The pytest plugin (entry point `pytest11`): your App in your tests, in memory or by a worker on a real Kafka.

    def test_resize(streamtask_memory):
        streamtask_memory(app)
        assert resize.submit_sync("a.png").result() == "a.png at 800"

    streamtask_memory  streamtask_memory(app, **settings) runs the App without a broker until the test has ended; returns
                       a testing.InMemory
    streamtask_broker  one real local Kafka for the whole run, also under pytest-xdist; set
                       STREAMTASK_TEST_BOOTSTRAP_SERVERS to use another one
    streamtask_app     streamtask_app(app, **settings) runs a worker of the App in this process until the test has ended,
                       with its own topics; returns a testing.Running

This module imports only pytest, so it costs nothing in projects that do not use it. Turn it off with
`-p no:streamtask`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from streamtask.app import App
    from streamtask.testing import Broker, InMemory, RunApp, RunInMemory, Running, SharedBroker

_SHARED: pytest.StashKey[SharedBroker] = pytest.StashKey()
_FIXTURES = frozenset({"streamtask_app", "streamtask_memory"})
_APPS: pytest.StashKey[list[App]] = pytest.StashKey()  # that run for a test


@pytest.fixture(scope="session")
def streamtask_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Broker:
    """A real Kafka: `.bootstrap` is its address."""
    from streamtask.testing import GIVEN, Broker, SharedBroker

    given = os.environ.get(GIVEN)
    if given:
        return Broker(given, local=False)
    directory = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        directory = directory.parent
    shared = SharedBroker(directory)
    request.config.stash[_SHARED] = shared
    return shared.join()


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Not in the fixture: its end counts as part of the last test, whose time limit is not for waiting on others.
    shared = session.config.stash.get(_SHARED, None)
    if shared is not None:
        shared.leave()


@pytest.fixture
def streamtask_app(request: pytest.FixtureRequest, streamtask_broker: Broker) -> Iterator[RunApp]:
    """Run a worker of an App until the test has ended: `streamtask_app(app)`."""
    from streamtask.testing import running

    apps = request.node.stash.setdefault(_APPS, [])
    with ExitStack() as held:

        def run(app: App, **settings: Any) -> Running:
            options = {"local": streamtask_broker.local, **settings}
            one = held.enter_context(running(app, streamtask_broker.bootstrap, **options))
            apps.append(app)
            return one

        yield run


@pytest.fixture
def streamtask_memory(request: pytest.FixtureRequest) -> Iterator[RunInMemory]:
    """Run an App in memory until the test has ended: `streamtask_memory(app)`."""
    from streamtask.testing import in_memory

    apps = request.node.stash.setdefault(_APPS, [])
    with ExitStack() as held:

        def run(app: App, **settings: Any) -> InMemory:
            one = held.enter_context(in_memory(app, **settings))
            apps.append(app)
            return one

        yield run


@pytest.hookimpl
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test that uses these fixtures in its own event loop, unless another plugin runs it (those come
    first, or have wrapped it in a synchronous function)."""
    if _FIXTURES.isdisjoint(pyfuncitem.fixturenames) or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def test() -> None:
        try:
            await pyfuncitem.obj(**arguments)
        finally:
            for app in pyfuncitem.stash.get(_APPS, []):
                await app.aclose()

    asyncio.run(test())
    return True
