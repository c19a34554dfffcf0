"""One conversation with a cluster: what is asked again, and until when."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streamtask.errors import Unreachable
from streamtask.kafka import admin

NOBODY = {"bootstrap.servers": "127.0.0.1:1"}


class Forgetful:
    """A client that waits for the controller until it has listed the topics."""

    def __init__(self, *, ever: bool) -> None:
        self.ever, self.knows = ever, False
        self.asked: list[float] = []

    def describe_cluster(self, *, request_timeout: float) -> Future[Any]:
        self.asked.append(request_timeout)
        answer: Future[Any] = Future()
        if self.knows:
            answer.set_result(SimpleNamespace(cluster_id="one", nodes=[SimpleNamespace(id=2), SimpleNamespace(id=1)]))
        else:
            answer.set_exception(
                KafkaException(KafkaError(KafkaError._TIMED_OUT, "Failed while waiting for controller"))
            )
        return answer

    def list_topics(self, *, timeout: float) -> None:
        assert timeout > 0
        self.knows = self.ever

    def poll(self, timeout: float) -> int:
        return 0


def test_a_controller_that_was_not_known_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a broker that was just thawed named none, and the client waited for 30 s without another question."""
    client = Forgetful(ever=True)
    with admin.conversation(NOBODY, 30.0) as session:
        monkeypatch.setattr(session, "client", client)
        assert session.cluster() == ("one", (1, 2))
    assert client.asked == [admin.CONTROLLER_S, admin.CONTROLLER_S]


def test_it_is_asked_for_until_the_deadline_and_then_nobody_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    session = admin.Session(NOBODY, 0.05)
    monkeypatch.setattr(session, "client", Forgetful(ever=False))
    with pytest.raises(KafkaException, match="waiting for controller") as caught:
        session.cluster()
    assert isinstance(session.translated(caught.value), Unreachable)
