"""For your own tests: run an App's tasks in memory, in milliseconds, or by a worker on a real Kafka.

    with in_memory(app) as shop:                        # no broker; what that does not prove: in_memory.py
        assert resize.submit_sync("a.png").result() == "a.png at 800"

    with running(app, bootstrap) as shop:               # its own topics, deleted at the end
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
