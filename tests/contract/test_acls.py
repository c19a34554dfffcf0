"""The table of least ACLs (streamtask/kafka/acls.py) on a broker that enforces it: enough, nothing more, every row needed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic

from streamtask.client import Client
from streamtask.config import TopicNames, load_settings
from streamtask.config.kafka import KafkaSettings
from streamtask.errors import NotAllowed, SubmitError
from streamtask.kafka import admin, permissions
from streamtask.kafka.acls import CLUSTER_NAME, IMPLIED_BY, Acl, Operation, Resource, Role, acls_of
from streamtask.kafka.offset_queries import group_offsets
from streamtask.kafka.tail import Tail
from tests.secure_broker import SecureBroker

pytestmark = pytest.mark.broker

PASSWORD = "of the role"
ANSWER_S = 30.0


@pytest.fixture(scope="module")
def names(secured: SecureBroker) -> Iterator[TopicNames]:
    """Topics, and users named as their roles, each with exactly the ACLs of its role."""
    names = TopicNames(f"acl{secrets.token_hex(4)}")
    door = {"bootstrap.servers": secured.bootstrap}
    admin.ensure_topics(door, names, partitions=2)
    for role in Role:
        secured.add_user(user_of(role, names), PASSWORD)
        secured.allow(user_of(role, names), acls_of(role, names))
    yield names
    admin.delete_topics(door, names)


def user_of(role: Role, names: TopicNames) -> str:
    return f"{role.value}-{names.prefix}"


def as_(role: Role, secured: SecureBroker, names: TopicNames) -> KafkaSettings:
    bootstrap, settings = secured.scram(user_of(role, names), PASSWORD)
    return KafkaSettings(bootstrap, extra=settings)


def with_implied(operations: set[str]) -> set[str]:
    """What these allow, by the rules of the broker."""
    return operations | {
        operation.value for operation, by in IMPLIED_BY.items() if operations & {one.value for one in by}
    }


# --- Nothing more -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_a_role_is_allowed_what_the_table_says_and_nothing_else(
    secured: SecureBroker, names: TopicNames, role: Role
) -> None:
    """As the broker itself tells it: reading, writing, creating, deleting, altering of every topic, and of the cluster."""
    client = AdminClient(as_(role, secured, names).admin())
    rows = acls_of(role, names)
    for topic, future in client.describe_topics(
        TopicCollection(list(names.all)), include_authorized_operations=True
    ).items():
        wanted = {acl.operation.value for acl in rows if (acl.resource, acl.name) == (Resource.TOPIC, topic)}
        if wanted:
            told = {operation.name for operation in future.result(ANSWER_S).authorized_operations}
            assert told == with_implied(wanted), topic
        else:
            with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
                future.result(ANSWER_S)
    cluster = client.describe_cluster(include_authorized_operations=True).result(ANSWER_S).authorized_operations
    of_cluster = {acl.operation.value for acl in rows if acl.name == CLUSTER_NAME}
    assert {operation.name for operation in cluster or ()} == of_cluster


def _write(kafka: KafkaSettings, topic: str) -> None:
    failed: list[Any] = []
    # Idempotent it would be refused as a whole before it writes anything.
    producer = Producer(kafka.idempotent() | {"enable.idempotence": False})
    producer.produce(topic, b"{}", on_delivery=lambda error, _message: failed.append(error))
    assert producer.flush(ANSWER_S) == 0
    if failed[0] is not None:
        raise KafkaException(failed[0])


def _begin(kafka: KafkaSettings, transactional_id: str) -> None:
    Producer(kafka.transactional(transactional_id)).init_transactions(ANSWER_S)


def _join(kafka: KafkaSettings, names: TopicNames) -> None:
    consumer = Consumer(kafka.consumer(names.group))
    try:
        consumer.subscribe([names.requests[0]])
        message = None
        while message is None:
            message = consumer.poll(ANSWER_S)
        if message.error() is not None:
            raise KafkaException(message.error())
    finally:
        consumer.close()


def _delete(kafka: KafkaSettings, topic: str) -> None:
    client = AdminClient(kafka.admin())
    client.delete_topics([topic])[topic].result(ANSWER_S)


def _create(kafka: KafkaSettings, topic: str) -> None:
    client = AdminClient(kafka.admin())
    client.create_topics([NewTopic(topic, 1, 1)])[topic].result(ANSWER_S)


STARTS = (Role.WORKER, Role.SUPERVISOR, Role.VIEW)  # processes that look before they begin
Attempt = Callable[[KafkaSettings, TopicNames], object]
MUST_NOT: dict[str, tuple[Role, Attempt, str]] = {
    "a producer writes a status": (Role.PRODUCER, lambda k, n: _write(k, n.status), "TOPIC_AUTH"),
    "a producer writes a dead letter": (Role.PRODUCER, lambda k, n: _write(k, n.dead), "TOPIC_AUTH"),
    "a producer fences a worker": (Role.PRODUCER, lambda k, n: _begin(k, f"{n.group}.0.x"), "TRANSACTIONAL_ID_AUTH"),
    "a producer joins the workers": (Role.PRODUCER, lambda k, n: _join(k, n), "GROUP_AUTH"),
    "a worker deletes a topic": (Role.WORKER, lambda k, n: _delete(k, n.status), "TOPIC_AUTH"),
    "a worker creates a topic": (Role.WORKER, lambda k, n: _create(k, f"{n.prefix}.other"), "TOPIC_AUTH"),
    "a worker submits a request": (Role.WORKER, lambda k, n: _write(k, n.requests[0]), "TOPIC_AUTH"),
    "a worker cancels a task": (Role.WORKER, lambda k, n: _write(k, n.control), "TOPIC_AUTH"),
    "a worker fences another prefix": (Role.WORKER, lambda k, n: _begin(k, "x.workers.0.x"), "TRANSACTIONAL_ID_AUTH"),
    "a supervisor writes a status": (Role.SUPERVISOR, lambda k, n: _write(k, n.status), "TOPIC_AUTH"),
    "a view writes a status": (Role.VIEW, lambda k, n: _write(k, n.status), "TOPIC_AUTH"),
    "a view submits a request": (Role.VIEW, lambda k, n: _write(k, n.requests[1]), "TOPIC_AUTH"),
    "a view joins the workers": (Role.VIEW, lambda k, n: _join(k, n), "GROUP_AUTH"),
    "an operator writes a status": (Role.OPERATOR, lambda k, n: _write(k, n.status), "TOPIC_AUTH"),
    "an operator fences a worker": (Role.OPERATOR, lambda k, n: _begin(k, f"{n.group}.0.x"), "TRANSACTIONAL_ID_AUTH"),
    "an admin submits a request": (Role.ADMIN, lambda k, n: _write(k, n.requests[0]), "TOPIC_AUTH"),
    "an admin deletes a topic": (Role.ADMIN, lambda k, n: _delete(k, n.status), "TOPIC_AUTH"),
}


@pytest.mark.parametrize("what", MUST_NOT)
def test_it_is_refused_when(secured: SecureBroker, names: TopicNames, what: str) -> None:
    role, attempt, code = MUST_NOT[what]
    with pytest.raises(KafkaException) as caught:
        attempt(as_(role, secured, names), names)
    assert caught.value.args[0].name().startswith(code)


# --- Every row is needed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_each_row_that_is_missing_is_named_and_no_other(secured: SecureBroker, names: TopicNames, role: Role) -> None:
    """By `doctor --role`; and where nothing works without it, by whoever starts in that role."""
    kafka, user = as_(role, secured, names), user_of(role, names)
    whole = acls_of(role, names)
    assert permissions.granted(kafka, names, role) == permissions.Granted((), ())
    try:
        for acl in whole:
            if acl.name in names.requests[1:]:
                continue  # as the first one
            secured.allow(user, [one for one in whole if one != acl])
            found = permissions.granted(kafka, names, role)
            # A topic that may not even be seen tells nothing else about itself.
            assert {one.name for one in found.lacking} == {acl.name}
            (finding,) = [one for one in permissions.findings(found, role, names) if one.where == str(acl)]
            assert (finding.code, finding.what) == ("acl", acl.without)
            assert finding.severity.value == ("error" if acl.must else "warning")
            assert (
                finding.command == f"streamtask topics acls {role.value} --principal User:NAME --prefix {names.prefix}"
            )
            if acl.resource is Resource.TOPIC and acl.must and role in STARTS:
                with pytest.raises(NotAllowed, match=str(acl)):
                    permissions.partition_count(kafka, names, role)
    finally:
        secured.allow(user, whole)
    assert role not in STARTS or permissions.partition_count(kafka, names, role) == 2


def test_nobody_at_all_is_told_everything_that_is_lacking(secured: SecureBroker, names: TopicNames) -> None:
    secured.add_user("stranger", PASSWORD)
    bootstrap, settings = secured.scram("stranger", PASSWORD)
    kafka = KafkaSettings(bootstrap, extra=settings)
    for role in Role:
        assert permissions.granted(kafka, names, role).lacking == acls_of(role, names)


# --- What the calls of a role say when it is not allowed --------------------------------------------------------------


def test_what_is_not_allowed_is_named_with_what_to_do_and_is_no_time_out(
    secured: SecureBroker, names: TopicNames
) -> None:
    secured.add_user("stranger", PASSWORD)
    bootstrap, raw = secured.scram("stranger", PASSWORD)
    kafka = KafkaSettings(bootstrap, extra=raw)
    asked: dict[str, Callable[[], object]] = {
        names.status: lambda: Tail(kafka, [names.status]),
        names.dead: lambda: Tail(kafka, [names.dead]),
        names.group: lambda: group_offsets(kafka, names.group, [(names.requests[0], 0)], timeout_s=3.0),
        names.control: lambda: admin.topic_ids(kafka, [names.control]),
    }
    for name, ask in asked.items():
        with pytest.raises(NotAllowed, match=name) as caught:
            ask()
        assert "streamtask doctor --role" in str(caught.value)
    settings = load_settings(bootstrap_servers=bootstrap, prefix=names.prefix, kafka=raw)
    with Client(settings=settings) as client, pytest.raises(NotAllowed, match=names.requests[0]):
        client.submit("any")


def test_who_may_write_no_topic_at_all_is_told_so_when_it_submits(secured: SecureBroker, names: TopicNames) -> None:
    """Its producer cannot even be initialised: an error of the cluster, and the end of the client."""
    secured.add_user("reader", PASSWORD)
    secured.allow("reader", [Acl(Resource.TOPIC, topic, Operation.READ, "") for topic in names.all])
    bootstrap, raw = secured.scram("reader", PASSWORD)
    with Client(settings=load_settings(bootstrap_servers=bootstrap, prefix=names.prefix, kafka=raw)) as client:
        with pytest.raises((NotAllowed, SubmitError)):  # the record's own report may come a moment before the reason
            client.submit("any")
        with pytest.raises(NotAllowed, match="may not write"):
            client.submit("any")


def test_a_producer_of_one_band_is_told_which_it_may_not_write(secured: SecureBroker, names: TopicNames) -> None:
    secured.add_user("low-only", PASSWORD)
    secured.allow(
        "low-only",
        [
            Acl(Resource.TOPIC, names.requests[0], Operation.DESCRIBE, ""),
            Acl(Resource.TOPIC, names.requests[2], Operation.WRITE, ""),
            Acl(Resource.TOPIC, names.control, Operation.DESCRIBE, ""),
            Acl(Resource.TOPIC, names.status, Operation.READ, ""),
        ],
    )
    bootstrap, raw = secured.scram("low-only", PASSWORD)
    with Client(settings=load_settings(bootstrap_servers=bootstrap, prefix=names.prefix, kafka=raw)) as client:
        task_id = client.submit("any", priority=1).task_id
        with pytest.raises(NotAllowed, match="may not write"):
            client.submit("any", priority=9)
        with pytest.raises(NotAllowed, match=names.control):
            client.cancel(task_id)
