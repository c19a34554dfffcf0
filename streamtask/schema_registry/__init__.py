"""The formats of one process, by its settings: readers, the encoder, and a schema registry if one is configured.

client.py talks to a registry, mock.py is one in memory, cache.py keeps known schemas, subjects.py names streamtask's
subjects. Without registry_url nothing here does any I/O, and only JSON and Avro single-object encoding can be read.
"""

from __future__ import annotations

from streamtask.codec.formats import Encoder, avro_encoder, confluent_encoder
from streamtask.codec.reader import PLAIN, Reader
from streamtask.config import Settings
from streamtask.errors import ConfigError
from streamtask.schema_registry.cache import SchemaCache
from streamtask.schema_registry.client import open_registry
from streamtask.schema_registry.protocol import Registry
from streamtask.schema_registry.subjects import documents, learn, schema_ids

__all__ = ["Formats", "Registry", "open_registry"]


class Formats:
    """What one process reads and writes. Raises ConfigError when the settings contradict each other.

    reader       never waits for the registry: raises SchemaPending (for the owner thread of a worker)
    waiting      waits for each id at most registry_wait_s, once (for threads that only read)
    insisting    raises Unreachable where the others would treat a record as unreadable
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._encoder: Encoder | None = None
        self._cache: SchemaCache | None = None
        self.reader = self.waiting = self.insisting = PLAIN
        if settings.registry_url:
            registry = open_registry(settings.registry_url, settings.registry)
            self._cache = cache = SchemaCache(registry, settings.registry_wait_s)
            self.reader, self.waiting, self.insisting = Reader(cache.get), Reader(cache.wait), Reader(cache.insist)
        elif settings.format == "confluent":
            raise ConfigError("format=confluent needs a schema registry: set registry_url (STREAMTASK_REGISTRY_URL).")

    @property
    def encoder_ready(self) -> Encoder | None:
        """The encoder, if it is available without asking a registry."""
        if self._encoder is None and self._settings.format != "confluent":
            self._encoder = self._local_encoder()
        return self._encoder

    def encoder(self) -> Encoder:
        """Writes in the format of the setting `format`. For the Confluent wire format it asks the registry once for the ids,
        and registers streamtask's schemas there unless that is disabled. Raises Unreachable, ClusterError."""
        ready = self.encoder_ready
        if ready is not None:
            return ready
        assert self._cache is not None, "format=confluent without a registry was refused"
        register = bool(self._settings.registry.get("auto.register.schemas", True))
        ids = schema_ids(self._cache.registry, self._settings.topics, register=register)
        learn(self._cache.registry, self._settings.topics, self._cache.put)
        self._encoder = confluent_encoder(ids)
        return self._encoder

    def _local_encoder(self) -> Encoder:
        if self._settings.format == "avro":
            return avro_encoder(documents(self._settings.topics))
        return Encoder()

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache.registry.close()
