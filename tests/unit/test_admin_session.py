"""One conversation with a cluster: what is asked again, and until when."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streamtask.errors import ClusterError, Unreachable
from streamtask.kafka import admin_session

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
    monkeypatch.setattr(admin_session, "AdminClient", lambda _settings: client)
    with admin_session.conversation(NOBODY, 30.0) as session:
        assert session.cluster() == ("one", (1, 2))
    assert client.asked == 3


def test_it_is_asked_until_the_deadline_and_then_nobody_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_session, "AdminClient", lambda _settings: Client(WITHOUT_CONTROLLER))
    with (
        pytest.raises(Unreachable, match="No Kafka broker answered"),
        admin_session.conversation(NOBODY, 0.05) as session,
    ):
        session.cluster()


class Describing(Client):
    """Answers descriptions of topics: each with this error, then with a topic."""

    def __init__(self, *codes: int) -> None:
        super().__init__(READY)
        self.codes = list(codes)

    def describe_topics(self, wanted: Any, **_: Any) -> dict[str, Future[Any]]:
        future: Future[Any] = Future()
        if self.codes:
            future.set_exception(KafkaException(KafkaError(self.codes.pop(0))))
        else:
            future.set_result(SimpleNamespace(topic_id="id", partitions=[]))
        return {"one": future}


PASSING = (KafkaError._DESTROY_BROKER, KafkaError.NOT_CONTROLLER, KafkaError.LEADER_NOT_AVAILABLE)


def test_a_question_to_a_broker_that_left_the_cluster_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a worker that started while a broker left ended for good, with exit code 2: "Failed while waiting for response
    from broker: Local: Broker handle destroyed without termination"."""
    client = Describing(*PASSING)
    monkeypatch.setattr(admin_session, "AdminClient", lambda _settings: client)
    with admin_session.conversation(NOBODY, 30.0) as session:
        assert list(session.topics(["one"])) == ["one"]
    assert client.codes == []


@pytest.mark.parametrize("code", PASSING)
def test_what_passes_is_unreachable_at_the_deadline(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(admin_session, "AdminClient", lambda _settings: Describing(*[code] * 100))
    with pytest.raises(Unreachable), admin_session.conversation(NOBODY, 0.05) as session:
        session.topics(["one"])


def test_a_refusal_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Describing(KafkaError.POLICY_VIOLATION, KafkaError.POLICY_VIOLATION)
    monkeypatch.setattr(admin_session, "AdminClient", lambda _settings: client)
    with pytest.raises(ClusterError, match="POLICY_VIOLATION"), admin_session.conversation(NOBODY, 30.0) as session:
        session.topics(["one"])
    assert len(client.codes) == 1
