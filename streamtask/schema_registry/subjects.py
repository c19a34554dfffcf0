"""streamtask's subjects in a registry: `<topic>-value` for each band, the status topic and the control topic.

This is Confluent's default (TopicNameStrategy), so its clients find them without configuration. Each subject has
FULL_TRANSITIVE compatibility, which streamtask's schemas satisfy anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from streamtask.codec import avro, schema
from streamtask.codec.confluent import WriterSchema, writer_schema
from streamtask.config import TopicNames
from streamtask.errors import ClusterError, DecodeError
from streamtask.schema_registry.client import FULL_TRANSITIVE
from streamtask.schema_registry.protocol import Registry


class Registered(NamedTuple):
    """What `register` did with one subject. new: it was not registered before."""

    subject: str
    document: str
    schema_id: int
    new: bool


def documents(names: TopicNames) -> dict[str, str]:
    """{topic: document} for every topic with a schema; dead letters contain other producers' bytes and have none."""
    return {
        **dict.fromkeys(names.requests, avro.REQUEST),
        names.status: avro.RESPONSE,
        names.control: avro.CONTROL,
    }


def subject_of(topic: str) -> str:
    return f"{topic}-value"


def text_of(document: str) -> str:
    """The current schema in the form in which it is registered: on one line."""
    return json.dumps(schema.read(document), separators=(",", ":"), ensure_ascii=False)


def register(registry: Registry, names: TopicNames) -> Iterator[Registered]:
    """Registers every subject of a prefix and sets its compatibility. Raises Unreachable, ClusterError."""
    for topic, document in documents(names).items():
        subject, text = subject_of(topic), text_of(document)
        known = registry.id_of(subject, text)
        schema_id = registry.register(subject, text) if known is None else known
        if registry.compatibility(subject) != FULL_TRANSITIVE:
            registry.set_compatibility(subject, FULL_TRANSITIVE)
        yield Registered(subject, document, schema_id, known is None)


def schema_ids(registry: Registry, names: TopicNames, *, register: bool) -> dict[str, int]:
    """{topic: the id of its schema}. register: register a schema that the registry does not know; False: raise an error.

    Raises Unreachable, ClusterError.
    """
    ids: dict[str, int] = {}
    for topic, document in documents(names).items():
        subject, text = subject_of(topic), text_of(document)
        found = registry.id_of(subject, text)
        if found is None:
            if not register:
                raise ClusterError(
                    f"{registry.url} does not have streamtask's schema of {subject}, and auto.register.schemas is false. "
                    "Register it: streamtask schemas register"
                )
            found = registry.register(subject, text)
        ids[topic] = found
    return ids


def learn(registry: Registry, names: TopicNames, put: Callable[[int, WriterSchema], None]) -> None:
    """Call `put` with every version of streamtask's subjects, so that their records can be read whatever happens to the
    registry. Raises Unreachable, ClusterError."""
    for topic in documents(names):
        for version in registry.versions(subject_of(topic)):
            try:
                put(version.schema_id, writer_schema(version.schema_id, "AVRO", version.text, references=False))
            except DecodeError:
                continue  # another schema is registered under streamtask's name; its records will show that
