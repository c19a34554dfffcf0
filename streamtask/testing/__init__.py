"""For the tests of those who use streamtask: an App's worker on a real Kafka, in the process of the test.

    with running(app, bootstrap) as shop:               # topics of its own, gone at the end
        assert resize.submit_sync("a.png").result(timeout=30) == "a.png at 800"

The pytest plugin (streamtask/pytest_plugin.py) makes fixtures of it: `streamtask_broker`, `streamtask_app`.
"""

from __future__ import annotations

from streamtask.testing.broker import GIVEN, Broker, SharedBroker
from streamtask.testing.running import RunApp, Running, running

__all__ = ["GIVEN", "Broker", "RunApp", "Running", "SharedBroker", "running"]
