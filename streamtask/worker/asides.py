"""What the owner loop of a worker passes on between the engine and the broker beside the transactions, once a turn.

Probes answer whether a partition that is set aside takes records again (core/set_aside.py, kafka/probe.py); a broker that
enforces a quota says for how long it lets our records wait.
"""

from __future__ import annotations

from streamtask.core import set_aside
from streamtask.core.engine import Engine
from streamtask.domain.ports import Now
from streamtask.kafka.broker_adapter import BrokerAdapter


def ask_around(engine: Engine, adapter: BrokerAdapter, now: Now) -> None:
    """Answers of probes, and the broker's wait, into the engine."""
    for place, why in adapter.probes.answers():
        set_aside.probed(engine, place, why, now)
    if throttled_s := adapter.throttled_s:
        engine.hold(int(throttled_s * 1_000), now)
