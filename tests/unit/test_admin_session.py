"""One conversation with a cluster: what is asked again, and until when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streamtask.errors import Unreachable
from streamtask.kafka import admin

NOBODY = {"bootstrap.servers": "127.0.0.1:1"}
READY = SimpleNamespace(cluster_id="one", controller_id=2, brokers={2: None, 1: None})
WITHOUT_BROKERS = SimpleNamespace(cluster_id="one", controller_id=-1, brokers={})
WITHOUT_CONTROLLER = SimpleNamespace(cluster_id="one", controller_id=-1, brokers={1: None})


class Client:
    """Answers in this order, the last one for ever. It has no describe_cluster, which ends the process."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    def list_topics(self, *, timeout: float) -> Any:
        assert timeout > 0
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def poll(self, timeout: float) -> int:
        return 0


def test_a_cluster_is_asked_until_it_names_brokers_and_a_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a broker that was just thawed names neither. The client then waited for the controller for 30 s without another
    question, or, asked to describe the cluster, ended the process (`rd_kafka_admin_response_parse`: `rko_result`)."""
    client = Client(WITHOUT_BROKERS, WITHOUT_CONTROLLER, READY)
    monkeypatch.setattr(admin, "AdminClient", lambda _settings: client)
    with admin.conversation(NOBODY, 30.0) as session:
        assert session.cluster() == ("one", (1, 2))
    assert client.asked == 3


def test_it_is_asked_until_the_deadline_and_then_nobody_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "AdminClient", lambda _settings: Client(WITHOUT_CONTROLLER))
    with pytest.raises(Unreachable, match="No Kafka broker answered"), admin.conversation(NOBODY, 0.05) as session:
        session.cluster()
