"""Schemas by their ids. Each is requested once, and no reader waits long for one that is not available.

There are three methods, for three kinds of readers. `get` never waits: it raises SchemaPending until the answer is there
(the owner thread of a worker). `wait` waits (threads that only read). `insist` waits, and raises RegistryUnreachable where
the others would call the record unreadable (readers that may not guess, and that try again).

Always true:
- A schema that was found is kept, because ids never change their meaning.
- An id that the registry does not know is answered at once, without another request for MISSING_S.
- Readers wait for an id wait_s in total, however many records have it. After that it is given up, and becomes known only
  when one of the requests that continue in the background (one a second) succeeds. When the registry has answered no
  request for wait_s it is *away*, and readers wait for no id.
- The cache's own thread makes the requests; it ends when there are none left.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from streamtask.codec.confluent import WriterSchema, writer_schema
from streamtask.errors import ClusterError, DecodeError, RegistryUnreachable, SchemaPending, SchemaUnavailable
from streamtask.schema_registry.protocol import Registry

MISSING_S = 30.0
AGAIN_S = 0.25  # between two attempts when requests fail
PROBE_S = 1.0  # between two requests while the registry is away
KNOWN_MAX = 10_000
MISSING_MAX = 10_000


class SchemaCache:
    """What is known of one registry's ids. Any thread may call it.

    wait_s  how long readers wait for one id, in total
    """

    def __init__(self, registry: Registry, wait_s: float) -> None:
        self.registry = registry
        self._wait_s = wait_s
        self._known: OrderedDict[int, WriterSchema] = OrderedDict()
        self._missing: OrderedDict[int, tuple[DecodeError, float]] = OrderedDict()  # the error, and until when it holds
        self._wanted: dict[int, float] = {}  # id → when it was first wanted; the first one is requested next
        self._given_up: OrderedDict[int, None] = OrderedDict()
        self._changed = threading.Condition()
        self._asking = False
        self._probe: int | None = None
        self._away_since: float | None = None  # start of the first of the requests that have all failed since
        self._why = ""
        self._asked_at = self._answered_at = 0.0
        self._closed = False

    def close(self) -> None:
        """Make no more requests."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def put(self, schema_id: int, schema: WriterSchema) -> None:
        """Store a schema that is known without a request."""
        with self._changed:
            self._keep(schema_id, schema)

    # --- Asking -------------------------------------------------------------------------------------------------------

    def get(self, schema_id: int) -> WriterSchema:
        """Never waits. Raises SchemaPending, SchemaUnavailable, or DecodeError: no record with this id can be read."""
        found = self._known.get(schema_id)
        if found is not None:
            return found
        with self._changed:
            return self._get(schema_id)

    def wait(self, schema_id: int) -> WriterSchema:
        """`get`, after waiting. Raises SchemaUnavailable, DecodeError."""
        while True:
            try:
                return self.get(schema_id)
            except SchemaPending:
                with self._changed:
                    self._changed.wait_for(lambda: self._left_s(schema_id) <= 0, self._left_s(schema_id))

    def insist(self, schema_id: int) -> WriterSchema:
        """`wait`, with RegistryUnreachable in place of SchemaUnavailable."""
        try:
            return self.wait(schema_id)
        except SchemaUnavailable as error:
            raise RegistryUnreachable(str(error)) from None

    def _get(self, schema_id: int) -> WriterSchema:
        now = time.monotonic()
        found = self._known.get(schema_id)
        if found is not None:
            return found
        held = self._missing.get(schema_id)
        if held is not None:
            if now < held[1]:
                # A new error each time: one that is raised again keeps every frame that it has passed, with its record.
                raise DecodeError(str(held[0]))
            del self._missing[schema_id]
        if schema_id not in self._given_up and not self._away(now):
            since = self._wanted.setdefault(schema_id, now)
            if since == now:
                self._begin()
            if since == now or now - since < self._wait_s:
                raise SchemaPending(f"schema {schema_id} is being fetched", lambda: self._left_s(schema_id) <= 0)
        self._give_up(schema_id)
        if now - self._asked_at >= PROBE_S:
            self._probe = schema_id
            self._begin()
        why = self._why or f"The schema registry {self.registry.url} has not answered"
        raise SchemaUnavailable(f"schema {schema_id} of these bytes is unknown: {why}")

    def _away(self, now: float) -> bool:
        return self._away_since is not None and now - self._away_since >= self._wait_s

    def _give_up(self, schema_id: int) -> None:
        """Let no reader wait for this id until it is known. If the registry answered no request while readers waited for it,
        the registry has been away since then, whether its first request has already failed or still hangs."""
        since = self._wanted.pop(schema_id, None)
        if since is not None and self._answered_at < since:
            self._away_since = since if self._away_since is None else min(self._away_since, since)
        self._given_up[schema_id] = None
        while len(self._given_up) > MISSING_MAX:
            self._given_up.popitem(last=False)

    def _left_s(self, schema_id: int) -> float:
        """How long readers still wait for this id."""
        since = self._wanted.get(schema_id)
        now = time.monotonic()
        return 0.0 if since is None or self._away(now) else max(since + self._wait_s - now, 0.0)

    # --- The cache's thread -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._asking and not self._closed:
            self._asking = True
            threading.Thread(target=self._ask_all, name="schema-registry", daemon=True).start()

    def _ask_all(self) -> None:
        while True:
            with self._changed:
                schema_id = self._next()
                if schema_id is None:
                    self._asking = False
                    return
                self._asked_at = time.monotonic()
            self._ask(schema_id)

    def _next(self) -> int | None:
        """The next id to request. Pauses after a failure, so that a registry that is away is not flooded."""
        if self._away_since is not None and self._wanted:
            self._changed.wait(AGAIN_S)
        now = time.monotonic()
        for schema_id in [held for held, since in self._wanted.items() if now - since >= self._wait_s]:
            self._give_up(schema_id)
        if self._closed:
            return None
        if self._wanted:
            return next(iter(self._wanted))
        probe, self._probe = self._probe, None
        return probe

    def _ask(self, schema_id: int) -> None:
        began = time.monotonic()
        found: WriterSchema | None = None
        wrong: DecodeError | None = None
        try:
            held = self.registry.schema(schema_id)
            if held is None:
                wrong = DecodeError(f"the schema registry {self.registry.url} knows no schema {schema_id}")
            else:
                found = writer_schema(schema_id, held.kind, held.text, references=held.references)
        except DecodeError as error:
            wrong = error
        except Exception as error:  # noqa: BLE001 the thread's last frame: no error of the client is an answer
            why = str(error) if isinstance(error, ClusterError) else f"{type(error).__name__}: {error}"
            with self._changed:
                self._why = why.rstrip(".")
                self._away_since = began if self._away_since is None else self._away_since
                if schema_id in self._wanted:
                    self._wanted[schema_id] = self._wanted.pop(schema_id)  # move it to the end
                self._changed.notify_all()
            return
        with self._changed:
            self._away_since, self._why, self._answered_at = None, "", time.monotonic()
            self._wanted.pop(schema_id, None)
            self._given_up.pop(schema_id, None)
            if found is not None:
                self._keep(schema_id, found)
            elif wrong is not None:
                self._missing[schema_id] = (wrong, time.monotonic() + MISSING_S)
                while len(self._missing) > MISSING_MAX:
                    self._missing.popitem(last=False)
            self._changed.notify_all()

    def _keep(self, schema_id: int, schema: WriterSchema) -> None:
        self._known[schema_id] = schema
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        self._changed.notify_all()
