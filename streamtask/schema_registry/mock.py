"""`mock://NAME`: a registry inside this process, for tests and experiments. It always checks full transitive compatibility.

All callers in the process that open the same name share one registry; other processes do not see it.
"""

from __future__ import annotations

import json
import threading

from streamtask.codec.compatibility import full
from streamtask.errors import ClusterError
from streamtask.schema_registry.protocol import Found, Version

_registries: dict[str, MockRegistry] = {}
_opening = threading.Lock()


def mock_registry(url: str) -> MockRegistry:
    """The registry of this name, the same for all callers."""
    with _opening:
        return _registries.setdefault(url, MockRegistry(url))


class MockRegistry:
    """protocol.Registry in memory."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._texts: list[str] = []  # the schema with id N is at N - 1
        self._subjects: dict[str, list[int]] = {}
        self._levels: dict[str, str] = {}
        self._lock = threading.Lock()

    def schema(self, schema_id: int) -> Found | None:
        if not 1 <= schema_id <= len(self._texts):
            return None
        return Found("AVRO", self._texts[schema_id - 1], False)

    def versions(self, subject: str) -> list[Version]:
        ids = self._subjects.get(subject, [])
        return [Version(number, held, self._texts[held - 1]) for number, held in enumerate(ids, 1)]

    def id_of(self, subject: str, text: str) -> int | None:
        wanted = json.loads(text)
        return next((held.schema_id for held in self.versions(subject) if json.loads(held.text) == wanted), None)

    def register(self, subject: str, text: str) -> int:
        with self._lock:
            known = self.id_of(subject, text)
            if known is not None:
                return known
            against = self.compatible(subject, text)
            if against:
                raise ClusterError(f"{self.url} refuses {subject}: {'; '.join(against)}")
            texts = [json.loads(held) for held in self._texts]
            wanted = json.loads(text)
            if wanted not in texts:
                self._texts.append(text)
                texts.append(wanted)
            schema_id = texts.index(wanted) + 1
            self._subjects.setdefault(subject, []).append(schema_id)
            return schema_id

    def compatible(self, subject: str, text: str) -> list[str]:
        wanted = json.loads(text)
        return [
            f"version {held.number}: {line}"
            for held in self.versions(subject)
            for line in full(wanted, json.loads(held.text))
        ]

    def compatibility(self, subject: str) -> str | None:
        return self._levels.get(subject)

    def set_compatibility(self, subject: str, level: str) -> None:
        self._levels[subject] = level

    def close(self) -> None:
        """There is nothing to close."""
