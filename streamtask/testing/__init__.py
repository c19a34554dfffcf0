"""For your own tests: run an App's worker on a real Kafka, in the process of the test.

    with running(app, bootstrap) as shop:               # its own topics, deleted at the end
        assert resize.submit_sync("a.png").result(timeout=30) == "a.png at 800"

The pytest plugin (streamtask/pytest_plugin.py) provides it as fixtures: `streamtask_broker`, `streamtask_app`.
"""

from __future__ import annotations

from streamtask.testing.broker import GIVEN, Broker, SharedBroker
from streamtask.testing.running import RunApp, Running, running

__all__ = ["GIVEN", "Broker", "RunApp", "Running", "SharedBroker", "running"]
