"""What a client is really allowed, as the brokers report it, compared with the table of its role (acls.py).

A broker reports a client's permissions on topics, groups and the cluster, but not on transactional ids: to check those,
a random one of the role is initialised once. Nothing else is written or changed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition

from streamtask.config import TopicNames
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import NotAllowed
from streamtask.kafka import takeover
from streamtask.kafka.acls import CLUSTER_NAME, IMPLIED_BY, Acl, Resource, Role, acls_command, acls_of
from streamtask.kafka.admin import TIMEOUT_S
from streamtask.kafka.admin_session import Session, asked_again, conversation
from streamtask.kafka.connection_errors import DENIED, hidden_topics, missing_topics
from streamtask.kafka.faults import error_of
from streamtask.kafka.topic_checks import Finding
from streamtask.kafka.topics import Severity, sharded
from streamtask.kafka.transaction import new_transactional_id

ASK_S = 0.5
_QUIET = logging.Logger("streamtask.quiet", logging.CRITICAL + 1)
_ABSENT = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND})


@dataclass(frozen=True, slots=True)
class Granted:
    """lacking: permissions that the role needs and this client does not have; unknown: what could not be checked."""

    lacking: tuple[Acl, ...]
    unknown: tuple[Acl, ...]


def granted(settings: KafkaSettings, names: TopicNames, role: Role, *, timeout_s: float = TIMEOUT_S) -> Granted:
    """Compare what this client may do with the whole table of a role. Raises Unreachable, ClusterError."""
    wanted = acls_of(role, names)
    with conversation(settings, timeout_s) as session:
        allowed = _of_topics(session, _names(wanted, Resource.TOPIC))
        for group in _names(wanted, Resource.GROUP):
            allowed[Resource.GROUP, group] = _of_group(session, settings, names, group)
        if _names(wanted, Resource.CLUSTER):
            allowed[Resource.CLUSTER, CLUSTER_NAME] = _of_cluster(session)
    for prefix in _names(wanted, Resource.TRANSACTIONAL_ID):
        allowed[Resource.TRANSACTIONAL_ID, prefix] = _of_transactional_ids(settings, names, timeout_s)
    return _compared(wanted, allowed)


def partition_count(settings: KafkaSettings, names: TopicNames, role: Role, *, timeout_s: float = TIMEOUT_S) -> int:
    """The number of complete shards. Checks first that the client has every required permission of its role on the topics.

    Raises NotAllowed, TopicsMissing, Unreachable.
    """
    wanted = [acl for acl in acls_of(role, names) if acl.resource is Resource.TOPIC and acl.must]
    with conversation(settings, timeout_s) as session:
        found = _describe(session, names.all)
    allowed: dict[tuple[Resource, str], frozenset[str] | None] = {
        (Resource.TOPIC, name): _operations(one) for name, one in found.items()
    }
    lacking = _compared(wanted, allowed).lacking
    if lacking:
        raise not_allowed(role, names, lacking)
    hidden = [name for name in names.all if found[name] is _HIDDEN]
    if hidden:
        raise hidden_topics(hidden)
    missing = [name for name in names.all if found[name] is None]
    if missing:
        raise missing_topics(missing)
    return min(len(found[name].partitions) for name in sharded(names))


def not_allowed(role: Role, names: TopicNames, lacking: Iterable[Acl]) -> NotAllowed:
    """The error that names the missing ACLs and the command that prints them."""
    what = ", ".join(map(str, lacking))
    return NotAllowed(
        f"Kafka does not allow this client what a {role.value} needs: {what}. "
        f"Print the commands that allow it: {acls_command(role, names)}"
    )


def findings(found: Granted, role: Role, names: TopicNames, principal: str = "User:NAME") -> list[Finding]:
    """Findings about what is missing, and about what could not be checked."""
    command = acls_command(role, names, principal)
    out = [
        Finding(
            severity=Severity.ERROR if acl.must else Severity.WARNING,
            code="acl",
            what=acl.without,
            where=str(acl),
            value="not allowed",
            needed=f"allowed for a {role.value}",
            command=command,
        )
        for acl in found.lacking
    ]
    unknown = "Not checked: it does not exist yet, or the broker does not report its ACLs."
    return out + [Finding(severity=Severity.INFO, code="acl", what=unknown, where=str(acl)) for acl in found.unknown]


def _names(wanted: Iterable[Acl], resource: Resource) -> tuple[str, ...]:
    return tuple(dict.fromkeys(acl.name for acl in wanted if acl.resource is resource))


def _compared(wanted: Iterable[Acl], allowed: dict[tuple[Resource, str], frozenset[str] | None]) -> Granted:
    """None in `allowed` means that it could not be determined."""
    lacking, unknown = [], []
    for acl in wanted:
        operations = allowed[acl.resource, acl.name]
        if operations is None:
            unknown.append(acl)
        elif not operations & {acl.operation.value, *(one.value for one in IMPLIED_BY.get(acl.operation, ()))}:
            lacking.append(acl)
    return Granted(tuple(lacking), tuple(unknown))


# --- The questions ----------------------------------------------------------------------------------------------------

_Allowed = dict[tuple[Resource, str], "frozenset[str] | None"]


def _operations(found: Any) -> frozenset[str] | None:
    """The operations in a description; empty if it may not even be seen. None: it does not exist, or the broker hides them."""
    if found is None or found is _HIDDEN:
        return None if found is None else frozenset()
    reported = found.authorized_operations
    return None if reported is None else frozenset(operation.name for operation in reported)


_HIDDEN: Any = object()  # in place of a description: we may not see it


@asked_again
def _describe(session: Session, topics: Collection[str]) -> dict[str, Any]:
    """{topic: its description, _HIDDEN, or None when it does not exist}."""
    futures = session.client.describe_topics(
        TopicCollection(list(topics)), include_authorized_operations=True, request_timeout=session.left()
    )
    return {name: _answer(session, future) for name, future in futures.items()}


def _answer(session: Session, future: Any) -> Any:
    try:
        return session.answer(future, ignore=tuple(_ABSENT))
    except KafkaException as error:
        if error.args[0].code() in DENIED:
            return _HIDDEN
        raise


def _of_topics(session: Session, topics: Collection[str]) -> _Allowed:
    return {(Resource.TOPIC, name): _operations(found) for name, found in _describe(session, topics).items()}


@asked_again
def _of_group(session: Session, settings: KafkaSettings, names: TopicNames, group: str) -> frozenset[str] | None:
    """Query an offset first: a cluster that has never had a group answers only that query."""
    asker = takeover.reader(settings, group)
    try:
        if not _may_describe(session, asker, names.requests[0]):
            return frozenset()
    finally:
        asker.close()
    futures = session.client.describe_consumer_groups(
        [group], include_authorized_operations=True, request_timeout=session.left()
    )
    return _operations(_answer(session, futures[group]))


def _may_describe(session: Session, asker: Consumer, topic: str) -> bool:
    """A hidden group is not refused: the query waits, and only an event in place of a record reports it."""
    while True:
        try:
            asker.committed([TopicPartition(topic, 0)], timeout=min(ASK_S, session.left()))
            return True
        except KafkaException as error:
            event = asker.poll(0)
            reported = error.args[0] if event is None else event.error()
            if reported is not None and reported.code() in DENIED:
                return False
            if not session.in_time:
                raise


@asked_again
def _of_cluster(session: Session) -> frozenset[str] | None:
    session.cluster()
    future = session.client.describe_cluster(include_authorized_operations=True, request_timeout=session.left())
    return _operations(_answer(session, future)) or frozenset()  # the cluster exists: none reported means none allowed


def _of_transactional_ids(settings: KafkaSettings, names: TopicNames, timeout_s: float) -> frozenset[str] | None:
    properties = settings.transactional(new_transactional_id(names.group, "doctor"))
    producer = Producer(properties, logger=_QUIET)  # else librdkafka prints a refusal, whatever its log level
    try:
        producer.init_transactions(timeout_s)
    except KafkaException as error:
        held = error_of(error)
        return frozenset() if held is not None and held.code() in DENIED else None
    return frozenset({"WRITE"})
