"""Every error code, with every flag, at every call, has a step that follows it."""

from __future__ import annotations

import itertools

import pytest
from confluent_kafka import KafkaError, KafkaException

from streamtask.domain.ports import FaultKind
from streamtask.kafka.background_close import close
from streamtask.kafka.faults import ALLOWED, Call, classify, error_of, fault

CODES = {
    name: getattr(KafkaError, name)
    for name in dir(KafkaError)
    if name.lstrip("_").isupper() and isinstance(getattr(KafkaError, name), int)
}
FLAGS = [
    dict(zip(("fatal", "retriable", "txn_requires_abort"), flags, strict=True))
    for flags in itertools.product((False, True), repeat=3)
]


def test_there_are_codes_to_judge() -> None:
    assert len(CODES) > 150


@pytest.mark.parametrize("call", Call)
def test_every_code_with_every_flag_gets_an_answer_that_the_call_may_give(call: Call) -> None:
    for code, flags in itertools.product(CODES.values(), FLAGS):
        error = KafkaError(code, "", **flags)
        assert classify(error, call) in ALLOWED[call]
        assert classify(KafkaException(error), call) is classify(error, call)


@pytest.mark.parametrize("call", [Call.PRODUCE, Call.SEND_OFFSETS, Call.COMMIT, Call.ABORT])
def test_a_fatal_error_ends_the_id_whatever_its_code(call: Call) -> None:
    assert all(classify(KafkaError(code, fatal=True), call) is FaultKind.FENCED for code in CODES.values())


@pytest.mark.parametrize(
    ("call", "code", "flags", "kind"),
    [
        (Call.PRODUCE, KafkaError.MSG_SIZE_TOO_LARGE, {}, FaultKind.RECORD),
        (Call.PRODUCE, KafkaError.MSG_SIZE_TOO_LARGE, {"txn_requires_abort": True}, FaultKind.RECORD),
        (Call.PRODUCE, KafkaError.INVALID_RECORD, {"txn_requires_abort": True}, FaultKind.RECORD),
        (Call.SEND_OFFSETS, KafkaError.INVALID_RECORD, {"txn_requires_abort": True}, FaultKind.RECORD),
        (Call.PRODUCE, KafkaError._UNKNOWN_PARTITION, {}, FaultKind.ABORT),
        (Call.PRODUCE, KafkaError._QUEUE_FULL, {}, FaultKind.ABORT),
        (Call.PRODUCE, KafkaError._MSG_TIMED_OUT, {}, FaultKind.ABORT),
        (Call.PRODUCE, KafkaError._DESTROY_BROKER, {}, FaultKind.ABORT),
        (Call.COMMIT_PLAIN, KafkaError._DESTROY_BROKER, {}, FaultKind.DOUBT),
        (Call.PRODUCE, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, {"txn_requires_abort": True}, FaultKind.ABORT),
        (Call.PRODUCE, KafkaError._FENCED, {}, FaultKind.FENCED),
        (Call.SEND_OFFSETS, KafkaError.ILLEGAL_GENERATION, {"txn_requires_abort": True}, FaultKind.STALE),
        (Call.SEND_OFFSETS, KafkaError.UNKNOWN_MEMBER_ID, {"txn_requires_abort": True}, FaultKind.STALE),
        (Call.SEND_OFFSETS, KafkaError.OFFSET_METADATA_TOO_LARGE, {"txn_requires_abort": True}, FaultKind.ABORT),
        (Call.SEND_OFFSETS, KafkaError._TIMED_OUT, {"retriable": True}, FaultKind.FENCED),
        (Call.SEND_OFFSETS, KafkaError._TRANSPORT, {"retriable": True}, FaultKind.FENCED),
        (Call.SEND_OFFSETS, KafkaError.CONCURRENT_TRANSACTIONS, {"retriable": True}, FaultKind.ABORT),
        (Call.SEND_OFFSETS, KafkaError.INVALID_PRODUCER_EPOCH, {}, FaultKind.FENCED),
        (Call.COMMIT, KafkaError._TIMED_OUT, {"retriable": True}, FaultKind.DOUBT),
        (Call.COMMIT, KafkaError._TRANSPORT, {}, FaultKind.DOUBT),
        (Call.COMMIT, KafkaError.CONCURRENT_TRANSACTIONS, {}, FaultKind.DOUBT),
        (Call.COMMIT, KafkaError.UNKNOWN, {"txn_requires_abort": True}, FaultKind.ABORT),
        (Call.COMMIT, KafkaError.PRODUCER_FENCED, {}, FaultKind.FENCED),
        (Call.ABORT, KafkaError._TIMED_OUT, {"retriable": True}, FaultKind.RETRY),
        (Call.ABORT, KafkaError._FENCED, {"fatal": True}, FaultKind.FENCED),
        (Call.COMMIT_PLAIN, KafkaError._TIMED_OUT, {}, FaultKind.DOUBT),
        (Call.COMMIT_PLAIN, KafkaError._WAIT_COORD, {}, FaultKind.DOUBT),
        (Call.COMMIT_PLAIN, KafkaError.REQUEST_TIMED_OUT, {"retriable": True}, FaultKind.DOUBT),
        (Call.COMMIT_PLAIN, KafkaError.UNKNOWN_MEMBER_ID, {}, FaultKind.STALE),
        (Call.COMMIT_PLAIN, KafkaError.REBALANCE_IN_PROGRESS, {}, FaultKind.STALE),
        (Call.COMMIT_PLAIN, KafkaError.OFFSET_METADATA_TOO_LARGE, {}, FaultKind.RETRY),
        (Call.READ_SETTLED, KafkaError.UNSTABLE_OFFSET_COMMIT, {}, FaultKind.UNSTABLE),
        (Call.READ_SETTLED, KafkaError._TIMED_OUT, {}, FaultKind.RETRY),
        (Call.LIST_OFFSETS, KafkaError.NOT_COORDINATOR, {"retriable": True}, FaultKind.RETRY),
        (Call.RENEW, KafkaError._TIMED_OUT, {"retriable": True}, FaultKind.RETRY),
    ],
    ids=lambda value: value.value if isinstance(value, Call | FaultKind) else None,
)
def test_what_an_error_means_at_a_call(call: Call, code: int, flags: dict[str, bool], kind: FaultKind) -> None:
    assert classify(KafkaError(code, "", **flags), call) is kind


def test_a_record_that_is_refused_locally_never_ends_the_producer() -> None:
    """Errors of produce() carry none of the three flags."""
    for name in (
        "MSG_SIZE_TOO_LARGE",
        "_INVALID_ARG",
        "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "_QUEUE_FULL",
        "_BAD_MSG",
    ):
        assert classify(KafkaError(CODES[name]), Call.PRODUCE) in (FaultKind.RECORD, FaultKind.ABORT)


def test_the_fault_says_where_and_what() -> None:
    answer = fault(KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too big")), Call.PRODUCE)
    assert answer.text == "produce: MSG_SIZE_TOO_LARGE: too big"


def test_a_kafka_error_is_found_wherever_it_hides() -> None:
    error = KafkaError(KafkaError._FENCED)
    assert error_of(error) is error
    assert error_of(KafkaException(error)) is error
    wrapped = SystemError("returned a result with an exception set")
    wrapped.__cause__ = KafkaException(error)
    assert error_of(wrapped) is error
    assert error_of(SystemError("another")) is None
    assert classify(KafkaException("no KafkaError inside"), Call.COMMIT) is FaultKind.DOUBT


def test_a_close_that_breaks_inside_the_binding_ends_all_the_same() -> None:
    """Bug: its thread died of a SystemError that confluent-kafka makes of an exception whose parts it mixed up."""

    class Broken:
        def close(self) -> None:
            raise SystemError("_PyErr_SetObject: exception <class 'str'> is not a BaseException subclass")

    close(Broken())  # type: ignore[arg-type]
