"""A dead owner's transactional id is fenced by the first client that gets an answer, not by the one that asked first."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streamtask.config.kafka import KafkaSettings
from streamtask.domain.ports import FaultKind
from streamtask.kafka import fencing
from streamtask.kafka.fencing import TRIES_MAX, fence_ids

SETTINGS = KafkaSettings("127.0.0.1:1")


class Clients:
    """Producers by the order in which they are made: what init_transactions of each does."""

    def __init__(self, *does: Any) -> None:
        self.does = list(does)
        self.made: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, properties: dict[str, Any]) -> Any:
        with self._lock:
            self.made.append(properties["transactional.id"])
            does = self.does[min(len(self.made), len(self.does)) - 1]
        return type("Client", (), {"init_transactions": lambda _self, timeout: does(timeout)})()


def at_once(_timeout: float) -> None:
    return None


def stuck(timeout: float) -> None:
    threading.Event().wait(timeout)
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "stuck", retriable=True))


def refused(_timeout: float) -> None:
    raise KafkaException(KafkaError(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "no", fatal=True))


def broken(_timeout: float) -> None:
    raise KafkaException(KafkaError(KafkaError.INVALID_TXN_STATE, "broken"))


def test_an_id_that_one_client_is_slow_to_fence_is_fenced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: half a second of every take-over was librdkafka's wait before it asks again."""
    clients = Clients(stuck, at_once)
    monkeypatch.setattr(fencing, "Producer", clients)
    assert fence_ids(SETTINGS, ("dead",), timeout_s=20.0) is None
    assert clients.made == ["dead", "dead"]


def test_a_fence_that_is_told_to_ask_again_does(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [3]

    def busy(_timeout: float) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise KafkaException(KafkaError(KafkaError.CONCURRENT_TRANSACTIONS, "markers", retriable=True))

    monkeypatch.setattr(fencing, "Producer", Clients(busy))
    assert fence_ids(SETTINGS, ("dead",), timeout_s=20.0) is None
    assert left[0] < 0


def test_markers_that_cannot_be_written_hold_no_claim_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a dead owner's transaction on a partition below its min ISR kept all of its shards from their next owner."""

    def for_ever(timeout: float) -> None:
        threading.Event().wait(timeout)
        raise KafkaException(KafkaError(KafkaError.CONCURRENT_TRANSACTIONS, "markers", retriable=True))

    monkeypatch.setattr(fencing, "Producer", Clients(for_ever))
    began = time.monotonic()
    assert fence_ids(SETTINGS, ("dead",), timeout_s=600.0) is None
    assert time.monotonic() - began < 300


def test_an_id_that_may_not_be_used_is_told_once_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(fencing, "Producer", Clients(refused))
    assert fence_ids(SETTINGS, ("a", "b"), timeout_s=20.0, on_refused=told.append) is None
    assert sorted(text.split()[5] for text in told) == ["a:", "b:"]


def test_ids_without_an_answer_are_a_fault_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = Clients(stuck)
    monkeypatch.setattr(fencing, "Producer", clients)
    answer = fence_ids(SETTINGS, ("a", "b"), timeout_s=0.7)
    assert answer is not None
    assert answer.kind is FaultKind.RETRY
    assert len(clients.made) <= 2 * TRIES_MAX


def test_an_error_that_asking_again_does_not_mend_is_a_fault_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "Producer", Clients(broken))
    assert fence_ids(SETTINGS, ("a",), timeout_s=600.0) is not None


def test_a_client_that_was_made_too_late_to_ask_has_fenced_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def late(properties: dict[str, Any]) -> Any:
        threading.Event().wait(0.12)
        return type("Client", (), {"init_transactions": lambda _self, timeout: asked.append(timeout)})()

    monkeypatch.setattr(fencing, "Producer", late)
    for _ in range(5):
        answer = fence_ids(SETTINGS, ("a",), timeout_s=0.119)
        assert asked or answer is not None
        asked.clear()
