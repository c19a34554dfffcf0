"""The generated documents at work: every record, answer and frame is held to what they say of it.

Documents are open, since a reader ignores what it does not know. Here they are closed: what this release sends has no
field, header or answer that they do not name. Whatever does not hold is a Breach; `seen` counts what did.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, NamedTuple

import fastavro
import jsonschema
from fastavro.schema import fingerprint, to_parsing_canonical_form

from streamtask.codec.avro import json_of
from streamtask.documents.schemas import closed
from streamtask.domain.model import ErrorCode

Part = dict[str, Any]
Headers = Iterable[tuple[str, bytes]]
ALWAYS = {"created_at", "updated_at", "message", "worker", "origin"}  # in every status event on its topic
_AVRO_NAMES = {"TaskRequest": "task_request", "TaskResponse": "task_response", "ControlMessage": "task_control"}


class Breach(AssertionError):
    """Something was sent that the documents do not describe."""


class Answer(NamedTuple):
    """What came over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Contract:
    """AsyncAPI and OpenAPI of one prefix."""

    def __init__(self, asyncapi: Part, openapi: Part) -> None:
        self.asyncapi, self.openapi = asyncapi, openapi
        self._topics = _Schemas(asyncapi)
        self._http = _Schemas(openapi)
        self._channels = {
            name: _pattern(channel["address"], channel.get("parameters", {}))
            for name, channel in asyncapi["channels"].items()
        }
        self._paths = {path: _pattern(path) for path in openapi["paths"]}
        self.seen: Counter[tuple[str, ...]] = Counter()
        self.fields: Counter[tuple[str, str]] = Counter()  # (schema, field) that some document had

    # --- Topics -------------------------------------------------------------------------------------------------------

    def record(
        self, topic: str, key: bytes | None, value: bytes, headers: Headers = (), *, foreign: bool = False
    ) -> Part | None:
        """Hold a record to its channel; returns its document, None for a dead letter.

        foreign  somebody else has written it: fields and headers beside ours are theirs
        """
        name = next((name for name, pattern in self._channels.items() if pattern.fullmatch(topic)), None)
        if name is None:
            raise Breach(f"no channel has the address {topic}")
        messages = {
            message["contentType"]: message
            for message in (self._resolved(held) for held in self.asyncapi["channels"][name]["messages"].values())
        }
        media_type = next(iter(messages)) if len(messages) == 1 else _media_type(value)
        message = messages[media_type]
        where = f"{topic}: {message['name']}"
        texts = {header: held.decode() for header, held in headers}
        self._headers(message, texts, foreign or name == "requests", where)  # of a request they are its caller's
        if key is not None:
            self._topics.check(message["bindings"]["kafka"]["key"], key.decode(), f"{where}: key")
        self.seen[name, message["name"]] += 1
        if name == "dead":
            return None
        if key is None and not foreign:
            raise Breach(f"{where} has no key")
        document = self._document(messages, message, value, where)
        self._topics.check(messages["application/json"]["payload"], document, where, closed=not foreign)
        self._count(messages["application/json"]["payload"], document)
        if name == "status":
            _promises(document, where)
        if name in ("status", "control") and document["task_id"] != (key or b"").decode():
            raise Breach(f"{where}: its key is not its task_id")
        return document

    def _resolved(self, held: Part) -> Part:
        found: Any = self.asyncapi
        for step in held["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return dict(found)

    def _headers(self, message: Part, texts: Mapping[str, str], foreign: bool, where: str) -> None:
        schema = message.get("headers")
        if schema is None:
            if texts and not foreign:
                raise Breach(f"{where} has headers that nobody told of: {sorted(texts)}")
            return
        if message["name"] == "deadLetter":  # the record's own headers stand beside ours
            texts = {header: held for header, held in texts.items() if header.startswith("streamtask-")}
        self._topics.check(schema, texts, f"{where}: headers", closed=not foreign)
        self._count(schema, texts)

    def _document(self, messages: Mapping[str, Part], message: Part, value: bytes, where: str) -> Part:
        """The JSON that a record means. Avro is read by nothing but the schema that stands in the document."""
        if message["contentType"] == "application/json":
            try:
                found = json.loads(value)
            except ValueError as error:
                raise Breach(f"{where}: no JSON: {error}") from None
            if not isinstance(found, dict):
                raise Breach(f"{where}: no object")
            return found
        written = self._resolved(message["payload"])["schema"]
        body = BytesIO(value)
        if message["contentType"] == "avro/binary":
            print_ = fingerprint(to_parsing_canonical_form(written), "CRC-64-AVRO")
            if body.read(10) != b"\xc3\x01" + bytes.fromhex(print_):
                raise Breach(f"{where}: another schema than the one that stands here")
        elif body.read(5)[:1] != b"\0":
            raise Breach(f"{where}: no wire format")
        try:
            held = fastavro.schemaless_reader(body, fastavro.parse_schema(written), None)
        except Exception as error:  # noqa: BLE001 whatever fastavro raises, it is not by this schema
            raise Breach(f"{where}: {error}") from None
        if body.read():
            raise Breach(f"{where}: bytes behind the document")
        name = messages["application/json"]["payload"]["$ref"].rsplit("/", 1)[1]
        document: Part = json.loads(json_of(_AVRO_NAMES[name], dict(held)))  # type: ignore[arg-type]
        return document

    # --- The query service --------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, answer: Answer) -> Any:
        """Hold an answer to its route; returns its JSON, or its text."""
        route = next((route for route, pattern in self._paths.items() if pattern.fullmatch(path)), None)
        if route is None:
            raise Breach(f"no route {path}")
        operation = self.openapi["paths"][route].get(method.lower())
        where = f"{method} {route} {answer.status}"
        if operation is None:
            raise Breach(f"{where}: no such method")
        told = operation["responses"].get(str(answer.status))
        if told is None:
            raise Breach(f"{where} is not among its answers: {answer.body[:300]!r}")
        for name, header in told.get("headers", {}).items():
            header = self.openapi["components"]["headers"][header["$ref"].rsplit("/", 1)[1]]
            if answer.headers.get(name) is None:
                raise Breach(f"{where}: no header {name}")
            self._http.check(header["schema"], answer.headers[name], f"{where}: {name}")
        self.seen[operation["operationId"], str(answer.status)] += 1
        content = told.get("content")
        if content is None:
            if answer.body:
                raise Breach(f"{where} has a body")
            return None
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        if media_type not in content:
            raise Breach(f"{where}: {media_type} is not among {sorted(content)}")
        if not media_type.endswith("json"):
            return answer.body.decode()
        document = json.loads(answer.body)
        self._http.check(content[media_type]["schema"], document, where, closed=True)
        self._count(content[media_type]["schema"], document)
        if media_type == "application/problem+json" and document["status"] != answer.status:
            raise Breach(f"{where}: its document says {document['status']}")
        return document

    def event(self, kind: str, data: str) -> Part:
        """What a stream of events says. kind: `message`, or `gap`."""
        schema = {"message": "TaskResponse", "gap": "Gap"}.get(kind)
        if schema is None:
            raise Breach(f"an event of the kind {kind}")
        document: Part = json.loads(data)
        self._http.check({"$ref": f"#/components/schemas/{schema}"}, document, f"event: {kind}", closed=True)
        self.seen["event", kind] += 1
        return document

    def frame(self, text: str, *, asked: bool = False) -> Part:
        """A frame of the WebSocket; asked: from the subscriber."""
        message = self.asyncapi["components"]["messages"]["liveAsk" if asked else "liveFrame"]
        document: Part = json.loads(text)
        kind = str(document.get("action" if asked else "type"))
        self._topics.check(message["payload"], document, f"/ws: {kind}", closed=True)
        self.seen[message["name"], kind] += 1
        return document

    def _count(self, schema: Part, document: Any) -> None:
        if isinstance(document, dict) and "$ref" in schema:
            self.fields.update((schema["$ref"].rsplit("/", 1)[1], field) for field in document)


class _Schemas:
    """Validation by the schemas of one document, as they are and closed."""

    def __init__(self, document: Part) -> None:
        held = document["components"]["schemas"]
        self._open = {"components": {"schemas": held}}
        self._closed = {"components": {"schemas": {name: closed(schema) for name, schema in held.items()}}}

    def check(self, schema: Part, document: Any, where: str, *, closed: bool = False) -> None:
        whole = {**(self._closed if closed else self._open), **schema}
        checker = jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker(["uuid"]))
        errors = sorted(checker.iter_errors(document), key=lambda error: error.json_path)
        if errors:
            told = "; ".join(f"{error.json_path}: {error.message[:300]}" for error in errors[:5])
            raise Breach(f"{where}: {told}")


def _pattern(address: str, parameters: Part | None = None) -> re.Pattern[str]:
    """What an address with `{parameters}` matches; a value is one of its `enum`, else anything."""

    def text(part: str) -> str:
        if not part.startswith("{"):
            return re.escape(part)
        return f"({'|'.join((parameters or {}).get(part[1:-1], {}).get('enum', ['[^/]+']))})"

    return re.compile("".join(text(part) for part in re.split(r"(\{\w+\})", address)))


def _media_type(value: bytes) -> str:
    return {b"\xc3": "avro/binary", b"\0": "application/vnd.confluent.avro"}.get(value[:1], "application/json")


def _promises(document: Part, where: str) -> None:
    """What docs/wire.md says of status events and no JSON Schema of ours does."""
    missing = ALWAYS - set(document)
    if missing:
        raise Breach(f"{where}: {sorted(missing)} are in every event")
    status = document["status"]
    if status == "completed" and document.get("progress") != 1:
        raise Breach(f"{where}: completed with progress {document.get('progress')}")
    if (status in ("failed", "cancelled")) != ("error_details" in document):
        raise Breach(f"{where}: {status}, and error_details is {document.get('error_details')}")
    if "error_details" in document and document["error_details"]["code"] not in set(ErrorCode):
        raise Breach(f"{where}: an unknown code {document['error_details']['code']}")
