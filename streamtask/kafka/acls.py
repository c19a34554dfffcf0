"""The least permissions that each role needs on a broker that enforces ACLs: one table, with the reason for every row.

Pure. docs/security.md is written from it, `streamtask topics acls` prints it as commands, `streamtask doctor --role` compares
it with what a client is really allowed (permissions.py), and an acceptance test gives each role exactly this. READ, WRITE and
ALTER imply DESCRIBE, and ALTER_CONFIGS implies DESCRIBE_CONFIGS, so those are not repeated.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from streamtask.config import TopicNames


class Role(Enum):
    """A kind of Kafka client. The value is its name on the command line."""

    PRODUCER = "producer"  #: submits, waits for tasks to end, cancels: a service, the client library
    WORKER = "worker"  #: runs handlers
    SUPERVISOR = "supervisor"  #: parent of the workers, `workers list|evict`; a worker's permissions include these
    VIEW = "view"  #: the query service, without what POST writes
    OPERATOR = (
        "operator"  #: audit, dead letters and their redrive, `status`, `list` and `watch` without a query service
    )
    ADMIN = "admin"  #: `topics create`, `doctor`


class Resource(Enum):
    TOPIC = "TOPIC"
    GROUP = "GROUP"
    TRANSACTIONAL_ID = "TRANSACTIONAL_ID"
    CLUSTER = "BROKER"  #: the clients' term; its only name is kafka-cluster


class Operation(Enum):
    READ = "READ"
    WRITE = "WRITE"
    CREATE = "CREATE"
    DESCRIBE = "DESCRIBE"
    ALTER = "ALTER"
    DESCRIBE_CONFIGS = "DESCRIBE_CONFIGS"
    ALTER_CONFIGS = "ALTER_CONFIGS"


IMPLIED_BY = {
    Operation.DESCRIBE: frozenset({Operation.READ, Operation.WRITE, Operation.ALTER}),
    Operation.DESCRIBE_CONFIGS: frozenset({Operation.ALTER_CONFIGS}),
}
CLUSTER_NAME = "kafka-cluster"


@dataclass(frozen=True, slots=True)
class Acl:
    """One permission.

    without  what happens when it is missing
    must     False: the role works without it, with limits
    """

    resource: Resource
    name: str
    operation: Operation
    without: str
    prefixed: bool = False
    must: bool = True

    def __str__(self) -> str:
        where = "" if self.resource is Resource.CLUSTER else f" {self.name}{'*' if self.prefixed else ''}"
        kind = "cluster" if self.resource is Resource.CLUSTER else self.resource.value.lower().replace("_", " ")
        return f"{self.operation.value} on {kind}{where}"


def acls_of(role: Role, names: TopicNames) -> tuple[Acl, ...]:
    """Exactly what this role needs under this prefix."""
    return tuple(_ROWS[role](names))


def transactional_ids(names: TopicNames) -> str:
    """The common start of every transactional id of this prefix."""
    return f"{names.group}."


# --- The table --------------------------------------------------------------------------------------------------------

_R, _W, _D = Operation.READ, Operation.WRITE, Operation.DESCRIBE


def _topics(topics: Iterable[str], operation: Operation, without: str, *, must: bool = True) -> Iterator[Acl]:
    for topic in topics:
        yield Acl(Resource.TOPIC, topic, operation, without, must=must)


def _group(names: TopicNames, operation: Operation, without: str, *, must: bool = True) -> Acl:
    return Acl(Resource.GROUP, names.group, operation, without, must=must)


def _producer(names: TopicNames) -> Iterator[Acl]:
    yield from _topics(names.requests, _W, "Its requests of that priority are rejected.")
    yield from _topics([names.control], _W, "It cannot cancel.", must=False)
    yield from _topics([names.status], _R, "It cannot wait for tasks to end.", must=False)


def _worker(names: TopicNames) -> Iterator[Acl]:
    yield from _topics(names.requests, _R, "It does not start.")
    yield from _topics([names.status], _R, "It does not start: it could not recover a lost position.")
    yield from _topics([names.status], _W, "It does not start.")
    yield from _topics([names.control], _R, "It does not start: it could miss cancel requests.")
    yield from _topics([names.schedule], _D, "It does not start: it cannot tell which shards are complete.")
    yield from _topics([names.dead], _W, "It does not start: it could not write dead letters.")
    yield from _topics(
        [names.status, names.dead],
        Operation.DESCRIBE_CONFIGS,
        "It assumes Kafka's default max.message.bytes; if the real one is lower, each larger event aborts batches.",
        must=False,
    )
    yield _group(names, _R, "It does not start: it cannot join the group.")
    yield Acl(
        Resource.TRANSACTIONAL_ID,
        transactional_ids(names),
        _W,
        "It does not start. With a narrower prefix it may be unable to fence others: see below.",
        prefixed=True,
    )


def _supervisor(names: TopicNames) -> Iterator[Acl]:
    yield from _topics(names.all, _D, "It does not start its workers.")
    yield _group(names, _R, "Shards of a dead process move after the session timeout; no `workers evict`.", must=False)


def _view(names: TopicNames) -> Iterator[Acl]:
    yield from _topics(names.requests, _R, "It does not start.")
    yield from _topics([names.status, names.control], _R, "It does not start.")
    yield from _topics([names.schedule, names.dead], _D, "It does not start.")
    yield _group(names, _D, "It cannot fill an empty store, so it does not become ready.")
    yield from _topics(
        [*names.requests, names.status],
        Operation.DESCRIBE_CONFIGS,
        "It does not know the retention, so it never forgets tasks.",
        must=False,
    )


def _operator(names: TopicNames) -> Iterator[Acl]:
    yield from _topics(names.requests, _R, "No audit and no `list`; no redrive, which could repeat a task.")
    yield from _topics(names.requests, _W, "No redrive.")
    yield from _topics([names.status], _R, "No audit, `status`, `watch` or `list`.")
    yield from _topics([names.dead], _R, "No dead letters, redrive or audit.")
    yield from _topics([names.control, names.schedule], _D, "No redrive: it cannot describe the topics.")
    yield _group(names, _D, "No audit and no redrive: it cannot read positions.")


def _admin(names: TopicNames) -> Iterator[Acl]:
    yield from _topics(names.all, Operation.CREATE, "`topics create` cannot create it.")
    yield from _topics(names.all, Operation.ALTER, "`--grow` cannot add partitions.")
    yield from _topics(
        names.all, Operation.ALTER_CONFIGS, "`--fix` cannot change its settings, and they are not checked."
    )
    yield _group(names, _D, "`doctor` does not see the members of the group.", must=False)
    unseen = "`doctor` does not see other groups that read the same topics."
    yield Acl(Resource.CLUSTER, CLUSTER_NAME, _D, unseen, must=False)
    unchecked = "`doctor` does not check the brokers' settings."
    yield Acl(Resource.CLUSTER, CLUSTER_NAME, Operation.DESCRIBE_CONFIGS, unchecked, must=False)


_ROWS = {
    Role.PRODUCER: _producer,
    Role.WORKER: _worker,
    Role.SUPERVISOR: _supervisor,
    Role.VIEW: _view,
    Role.OPERATOR: _operator,
    Role.ADMIN: _admin,
}
assert set(_ROWS) == set(Role), "every role needs rows"


# --- As commands ------------------------------------------------------------------------------------------------------


def acls_command(role: Role, names: TopicNames, principal: str = "User:NAME") -> str:
    """The streamtask command that prints these ACLs."""
    prefix = f" --prefix {names.prefix}" if names.prefix != "tasks" else ""
    return f"streamtask topics acls {role.value} --principal {principal}{prefix}"


def commands(acls: Iterable[Acl], principal: str, bootstrap: str) -> list[str]:
    """Commands for Kafka's own tool, one for all resources of a kind with the same permissions."""
    by_resource: dict[tuple[Resource, str, bool], list[str]] = {}
    for acl in acls:
        operations = by_resource.setdefault((acl.resource, acl.name, acl.prefixed), [])
        if acl.operation.value not in operations:
            operations.append(acl.operation.value)
    alike: dict[tuple[Resource, bool, tuple[str, ...]], list[str]] = {}
    for (resource, name, prefixed), operations in by_resource.items():
        alike.setdefault((resource, prefixed, tuple(operations)), []).append(name)
    out = []
    for (resource, prefixed, allowed), found in alike.items():
        words = ["kafka-acls.sh", "--bootstrap-server", bootstrap, "--add", "--allow-principal", principal]
        words += [word for operation in allowed for word in ("--operation", operation)]
        words += [word for name in found for word in _named(resource, name)]
        words += ["--resource-pattern-type", "prefixed"] if prefixed else []
        out.append(shlex.join(words))
    return out


def _named(resource: Resource, name: str) -> tuple[str, ...]:
    if resource is Resource.CLUSTER:
        return ("--cluster",)
    return (f"--{resource.value.lower().replace('_', '-')}", name)
