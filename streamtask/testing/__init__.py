"""Run an App's tasks in your tests: in memory, in milliseconds, or with a worker on a real Kafka.

    with in_memory(app) as shop:                        # no broker; in_memory.py lists what that does not prove
        assert resize.submit_sync("a.png").result() == "a.png at 800"

    with running(app, bootstrap) as shop:               # with its own topics, which are deleted at the end
        assert resize.submit_sync("a.png").result(timeout=30) == "a.png at 800"

The pytest plugin (streamtask/pytest_plugin.py) provides them as fixtures: `streamtask_memory`, `streamtask_app`,
`streamtask_broker`.
"""

from __future__ import annotations

from streamtask.testing.broker import GIVEN, Broker, SharedBroker
from streamtask.testing.in_memory import InMemory, RunInMemory, in_memory
from streamtask.testing.running import RunApp, Running, running

__all__ = [
    "GIVEN",
    "Broker",
    "InMemory",
    "RunApp",
    "RunInMemory",
    "Running",
    "SharedBroker",
    "in_memory",
    "running",
]
