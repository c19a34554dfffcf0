"""What streamtask needs from a schema registry, over HTTP (client.py) or in memory (mock.py)."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Found(NamedTuple):
    """A schema as a registry stores it. kind: AVRO, JSON or PROTOBUF; references: it refers to other subjects."""

    kind: str
    text: str
    references: bool


class Version(NamedTuple):
    """One version of a subject."""

    number: int
    schema_id: int
    text: str


class Registry(Protocol):
    """A schema registry. Every call raises RegistryUnreachable or ClusterError."""

    @property
    def url(self) -> str:
        """Without user and password."""
        ...

    def schema(self, schema_id: int) -> Found | None:
        """The schema with this id; None when the registry does not know it."""
        ...

    def versions(self, subject: str) -> list[Version]:
        """All versions of a subject, oldest first; [] when the subject does not exist."""
        ...

    def id_of(self, subject: str, text: str) -> int | None:
        """The id of exactly this schema under this subject; None when it is not registered there."""
        ...

    def register(self, subject: str, text: str) -> int:
        """The id of this schema, registered under this subject if necessary. Raises ClusterError when it is incompatible."""
        ...

    def compatible(self, subject: str, text: str) -> list[str]:
        """The registry's objections to this schema as the next version; [] when there are none."""
        ...

    def compatibility(self, subject: str) -> str | None:
        """The subject's own compatibility level; None when it has none."""
        ...

    def set_compatibility(self, subject: str, level: str) -> None: ...

    def close(self) -> None: ...
