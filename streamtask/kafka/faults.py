"""What a Kafka error means for the call that received it: a table from error codes to ports.FaultKind.

Order of judgement: fatal errors end the transactional id; then the tables by code; then the three flags that librdkafka sets
on transactional errors; then the call's own default. Each call returns only the kinds in ALLOWED, so a flow never receives
one that it has no step for (tested over every code and flag).

Errors of a local produce() have none of the three flags and never end the producer: the record is the reason.
"""

from __future__ import annotations

from enum import Enum

from confluent_kafka import KafkaError

from streamtask.domain.ports import Fault, FaultKind


class Call(Enum):
    """The calls that can fail, with their names in fault texts."""

    LIST_OFFSETS = "list offsets"
    FENCE = "fence"
    READ_SETTLED = "read settled"
    COMMIT_PLAIN = "plain commit"
    SEAT = "seat"
    PRODUCE = "produce"
    SEND_OFFSETS = "send offsets"
    COMMIT = "commit transaction"
    ABORT = "abort transaction"
    RENEW = "renew producer"


_RETRY, _UNSTABLE, _ABORT, _RECORD = FaultKind.RETRY, FaultKind.UNSTABLE, FaultKind.ABORT, FaultKind.RECORD
_STALE, _FENCED, _DOUBT = FaultKind.STALE, FaultKind.FENCED, FaultKind.DOUBT

# What each call may return. A refused record may show only at the next call of its transaction.
ALLOWED: dict[Call, frozenset[FaultKind]] = {
    Call.LIST_OFFSETS: frozenset({_RETRY}),
    Call.FENCE: frozenset({_RETRY}),
    Call.READ_SETTLED: frozenset({_RETRY, _UNSTABLE}),
    Call.COMMIT_PLAIN: frozenset({_RETRY, _STALE, _DOUBT}),
    Call.SEAT: frozenset({_RETRY}),
    Call.PRODUCE: frozenset({_ABORT, _RECORD, _FENCED}),
    Call.SEND_OFFSETS: frozenset({_ABORT, _RECORD, _STALE, _FENCED}),
    Call.COMMIT: frozenset({_ABORT, _RECORD, _STALE, _FENCED, _DOUBT}),
    Call.ABORT: frozenset({_RETRY, _FENCED}),
    Call.RENEW: frozenset({_RETRY}),
}
assert set(ALLOWED) == set(Call), "every call needs a row"

# When neither a flag nor a code says more: the safe assumption. For transactional calls librdkafka's INTRODUCTION says: with
# none of the three flags, discard the producer; a commit may have taken effect.
_DEFAULT: dict[Call, FaultKind] = {
    Call.LIST_OFFSETS: _RETRY,
    Call.FENCE: _RETRY,
    Call.READ_SETTLED: _RETRY,
    Call.COMMIT_PLAIN: _RETRY,
    Call.SEAT: _RETRY,
    Call.PRODUCE: _RECORD,
    Call.SEND_OFFSETS: _FENCED,
    Call.COMMIT: _DOUBT,
    Call.ABORT: _FENCED,
    Call.RENEW: _RETRY,
}
assert set(_DEFAULT) == set(Call), "every call needs a row"

# No answer came, or none from the right broker: the call may have arrived.
_NO_ANSWER: dict[Call, FaultKind] = _DEFAULT | {
    Call.COMMIT_PLAIN: _DOUBT,
    Call.PRODUCE: _ABORT,
    Call.SEND_OFFSETS: _FENCED,  # an abort would do, but the producer would keep asking the dead coordinator
    Call.COMMIT: _DOUBT,
    Call.ABORT: _RETRY,
}
# A broker answered and asks us to retry: the producer knows the right one.
_COME_AGAIN: dict[Call, FaultKind] = _NO_ANSWER | {Call.SEND_OFFSETS: _ABORT}

_K = KafkaError
# Another client initialised this id, or the producer can never be used again.
FENCED_CODES = frozenset(
    {
        _K._FENCED,
        _K._FATAL,
        _K._GAPLESS_GUARANTEE,
        _K._STATE,
        _K._DESTROY,
        _K.PRODUCER_FENCED,
        _K.INVALID_PRODUCER_EPOCH,
        _K.INVALID_PRODUCER_ID_MAPPING,
        _K.INVALID_TXN_STATE,
        _K.TRANSACTION_COORDINATOR_FENCED,
        _K.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
# The group no longer knows this member, or not in this generation.
STALE_CODES = frozenset(
    {
        _K.ILLEGAL_GENERATION,
        _K.UNKNOWN_MEMBER_ID,
        _K.FENCED_MEMBER_EPOCH,
        _K.STALE_MEMBER_EPOCH,
        _K.FENCED_INSTANCE_ID,
        _K.UNRELEASED_INSTANCE_ID,
        _K.REBALANCE_IN_PROGRESS,
        _K.MEMBER_ID_REQUIRED,
        _K._ASSIGNMENT_LOST,
    }
)
# The broker would refuse the same record again.
RECORD_CODES = frozenset(
    {
        _K.MSG_SIZE_TOO_LARGE,
        _K.RECORD_LIST_TOO_LARGE,
        _K.INVALID_RECORD,
        _K.INVALID_MSG,
        _K.INVALID_MSG_SIZE,
        _K.INVALID_TIMESTAMP,
        _K.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        _K._BAD_MSG,
        _K._INVALID_ARG,
        _K._KEY_SERIALIZATION,
        _K._VALUE_SERIALIZATION,
    }
)
# Timeouts and connections.
NO_ANSWER_CODES = frozenset(
    {
        _K._TIMED_OUT,
        _K._TIMED_OUT_QUEUE,
        _K._MSG_TIMED_OUT,
        _K._TRANSPORT,
        _K._ALL_BROKERS_DOWN,
        _K._DESTROY_BROKER,  # the broker left the cluster's list; the client itself lives
        _K._UNKNOWN_BROKER,
        _K._RESOLVE,
        _K._SSL,
        _K._AUTHENTICATION,
        _K._WAIT_COORD,
        _K._WAIT_CACHE,
        _K._IN_PROGRESS,
        _K._PREV_IN_PROGRESS,
        _K._RETRY,
        _K._INTR,
        _K.REQUEST_TIMED_OUT,
        _K.NETWORK_EXCEPTION,
        _K.BROKER_NOT_AVAILABLE,
        _K.COORDINATOR_NOT_AVAILABLE,
        _K.COORDINATOR_LOAD_IN_PROGRESS,
        _K.NOT_COORDINATOR,
        _K.UNKNOWN,
    }
)
# Neither the record's fault nor the end of the producer: the cluster has a problem at the moment. The same batch may pass
# later (a leader moves, metadata is refreshed, an ACL is granted).
CLUSTER_CODES = frozenset(
    {
        _K._QUEUE_FULL,
        _K._PURGE_QUEUE,
        _K._PURGE_INFLIGHT,
        _K._UNKNOWN_TOPIC,
        _K._UNKNOWN_PARTITION,
        _K._NOENT,
        _K._ISR_INSUFF,
        _K.UNKNOWN_TOPIC_OR_PART,
        _K.UNKNOWN_TOPIC_ID,
        _K.TOPIC_EXCEPTION,
        _K.LEADER_NOT_AVAILABLE,
        _K.NOT_LEADER_FOR_PARTITION,
        _K.NOT_ENOUGH_REPLICAS,
        _K.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        _K.KAFKA_STORAGE_ERROR,
        _K.OUT_OF_ORDER_SEQUENCE_NUMBER,  # the transaction after a refused record may see it once
        _K.DUPLICATE_SEQUENCE_NUMBER,
        _K.UNKNOWN_PRODUCER_ID,
        _K.CONCURRENT_TRANSACTIONS,
        _K.TRANSACTION_ABORTABLE,
        _K.THROTTLING_QUOTA_EXCEEDED,
        _K.POLICY_VIOLATION,
        _K.TOPIC_AUTHORIZATION_FAILED,
        _K.GROUP_AUTHORIZATION_FAILED,
        _K.CLUSTER_AUTHORIZATION_FAILED,
        _K.OFFSET_METADATA_TOO_LARGE,
        _K.INVALID_COMMIT_OFFSET_SIZE,
    }
)
_TABLES = (FENCED_CODES, STALE_CODES, RECORD_CODES, NO_ANSWER_CODES, CLUSTER_CODES)
assert sum(map(len, _TABLES)) == len(frozenset().union(*_TABLES)), "a code stands in two tables"

# A pending offset of another client's open transaction.
UNSTABLE_CODE = _K.UNSTABLE_OFFSET_COMMIT

_TRANSACTIONAL = frozenset({Call.PRODUCE, Call.SEND_OFFSETS, Call.COMMIT})


def error_of(error: KafkaError | BaseException) -> KafkaError | None:
    """The KafkaError inside, or None if there is none.

    Also looks inside a SystemError: the binding raises a fatal error from whatever is served next, and if a delivery report
    runs in the same call, Python finds an exception set where none is allowed.
    """
    if isinstance(error, KafkaError):
        return error
    if isinstance(error, SystemError) and error.__cause__ is not None:
        return error_of(error.__cause__)
    if error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return None


def is_lost(error: BaseException) -> bool:
    """Whether the binding had an error to raise and lost it: "returned NULL without setting an exception" (confluent-kafka
    2.16; seen once in some thousand flushes, of a fenced producer). The original error is unknown.
    """
    return isinstance(error, SystemError) and error_of(error) is None and "without setting an exception" in str(error)


def classify(error: KafkaError | BaseException, call: Call) -> FaultKind:
    """What may be done next, one of ALLOWED[call]."""
    held = error_of(error)
    if held is None:
        return _DEFAULT[call]
    kind = _judge(held, call)
    assert kind in ALLOWED[call], f"{held.name()} at {call.value} was judged {kind}: no step follows it"
    return kind


def _judge(error: KafkaError, call: Call) -> FaultKind:
    allowed, code = ALLOWED[call], error.code()
    if error.fatal() and _FENCED in allowed:
        return _FENCED
    if code in NO_ANSWER_CODES:
        return _ABORT if error.txn_requires_abort() and _ABORT in allowed else _NO_ANSWER[call]
    if code == UNSTABLE_CODE and _UNSTABLE in allowed:
        return _UNSTABLE
    for kind, codes in ((_FENCED, FENCED_CODES), (_STALE, STALE_CODES), (_RECORD, RECORD_CODES)):
        if code in codes and kind in allowed:
            return kind
    if call in _TRANSACTIONAL and (error.txn_requires_abort() or code in CLUSTER_CODES):
        # CLUSTER_CODES without the flag come from produce() itself, or from a commit that was refused by name.
        return _ABORT if call is not Call.COMMIT or error.txn_requires_abort() else _DOUBT
    if error.retriable():
        return _COME_AGAIN[call]
    return _DEFAULT[call]


def fault(error: KafkaError | BaseException, call: Call) -> Fault:
    """The answer to an ask that failed with this error."""
    held = error_of(error)
    text = f"{held.name()}: {held.str()}" if held is not None else str(error)
    return Fault(classify(error, call), f"{call.value}: {text}")
