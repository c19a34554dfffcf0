"""What streamtask asks of a schema registry: one that is reached over HTTP (client.py), or one in memory (mock.py)."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Found(NamedTuple):
    """A schema as a registry keeps it. kind: AVRO, JSON or PROTOBUF; references: it leans on other subjects."""

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
        """The schema of an id; None when the registry knows none."""
        ...

    def versions(self, subject: str) -> list[Version]:
        """All versions of a subject, the oldest first; [] when there is no such subject."""
        ...

    def id_of(self, subject: str, text: str) -> int | None:
        """The id of exactly this schema under this subject, None when it is not registered there."""
        ...

    def register(self, subject: str, text: str) -> int:
        """The id of this schema, registered under this subject unless it was. ClusterError: not compatible."""
        ...

    def compatible(self, subject: str, text: str) -> list[str]:
        """What the registry has against this schema as the next version; [] when nothing."""
        ...

    def compatibility(self, subject: str) -> str | None:
        """The subject's own rule, None when it has none."""
        ...

    def set_compatibility(self, subject: str, level: str) -> None: ...

    def close(self) -> None: ...
