"""AsyncAPI 3 of streamtask: the topics of a prefix and `/ws`, what goes over them, and who sends it.

The application that is documented is streamtask itself, its workers and its query service: it receives requests and
control messages, and sends status events and dead letters. Its clients do the opposite. The schedule topic is internal
to the workers and is left out.
"""

from __future__ import annotations

from typing import Any

from streamtask.codec import schema as avro
from streamtask.codec.avro import CONTROL, REQUEST, RESPONSE, fingerprint_of
from streamtask.config import TopicNames
from streamtask.documents import examples, schemas
from streamtask.domain.model import PRIORITY_DEFAULT
from streamtask.kafka.topics import config_of, rules_of

SCHEMAS = "#/components/schemas/"
AVRO_FORMAT = "application/vnd.apache.avro+json;version=1.9.0"
JSON, AVRO, CONFLUENT = "application/json", "avro/binary", "application/vnd.confluent.avro"
KAFKA_BINDING, WS_BINDING = "0.5.0", "0.1.0"  # versions of the bindings' own specifications
_NUMBERS = ("retention.ms", "delete.retention.ms")
_ABOUT_FORMAT = {
    JSON: "JSON in UTF-8.",
    AVRO: "Avro, single-object encoding: C3 01, the fingerprint {fingerprint} of the schema, the body.",
    CONFLUENT: "Confluent wire format: 00, the id of the schema in the registry, the body in Avro.",
}
_SUFFIX = {JSON: "", AVRO: "Avro", CONFLUENT: "Confluent"}

Part = dict[str, Any]


def document(names: TopicNames, *, kafka: str, service: str) -> Part:
    """The AsyncAPI document of this prefix. kafka, service: their addresses as HOST:PORT."""
    used = _used()
    return {
        "asyncapi": "3.0.0",
        "id": f"urn:streamtask:{names.prefix}",
        "info": {
            "title": "streamtask",
            "version": schemas.VERSION,
            "description": __doc__.partition("\n\n")[2].strip(),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": JSON,
        "servers": {
            "kafka": {"host": kafka, "protocol": "kafka", "description": "Read status events read committed."},
            "service": {"host": service, "protocol": "ws", "description": "The query service (`streamtask serve`)."},
        },
        "channels": _channels(names),
        "operations": _operations(names),
        "components": {
            "messages": _messages(),
            "schemas": {name: part for name, part in schemas.components(SCHEMAS).items() if name in used} | _avro(),
        },
    }


# --- Channels ---------------------------------------------------------------------------------------------------------


def _channels(names: TopicNames) -> Part:
    bands = ", ".join(f"`{band.name}` takes {band.priority_min}-{band.priority_max}" for band in names.bands)
    requests = _topic(
        names,
        names.requests[0],
        "Requests from producers. The topic decides the band; use the partitioner murmur2_random, Java's default.",
        ("taskRequest", "taskRequestAvro", "taskRequestConfluent"),
    )
    return {
        "requests": requests
        | {
            "address": f"{names.prefix}.requests.{{band}}",
            "parameters": {
                "band": {
                    "description": f"The band of the priority; 10 is most urgent: {bands}.",
                    "enum": [band.name for band in names.bands],
                    "default": names.bands[names.band_of(PRIORITY_DEFAULT)].name,
                }
            },
        },
        "status": _topic(
            names,
            names.status,
            "Every status change of every task. The partition is that of the request, not the hash of the key.",
            ("taskResponse", "taskResponseAvro", "taskResponseConfluent"),
        ),
        "control": _topic(
            names,
            names.control,
            "Cancel requests; they also apply to task requests that arrive later.",
            ("controlMessage", "controlMessageAvro", "controlMessageConfluent"),
        ),
        "dead": _topic(
            names, names.dead, "Every request that failed, and every record that could not be read.", ("deadLetter",)
        ),
        "live": {
            "address": "/ws",
            "title": "Live status events",
            "description": "Subscriptions by task or by filter over one WebSocket, in text frames.",
            "servers": [{"$ref": "#/servers/service"}],
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in ("liveAsk", "liveFrame")},
            "bindings": {"ws": {"method": "GET", "bindingVersion": WS_BINDING}},
        },
    }


def _topic(names: TopicNames, topic: str, description: str, messages: tuple[str, ...]) -> Part:
    given = config_of(rules_of(names)[topic])
    settings: Part = {name: int(given[name]) for name in _NUMBERS if name in given}
    settings["cleanup.policy"] = given["cleanup.policy"].split(",")
    return {
        "address": topic,
        "description": description,
        "servers": [{"$ref": "#/servers/kafka"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": {"topicConfiguration": settings, "bindingVersion": KAFKA_BINDING}},
    }


# --- Operations -------------------------------------------------------------------------------------------------------


def _operations(names: TopicNames) -> Part:
    group = {"type": "string", "const": names.group}
    workers = {"bindings": {"kafka": {"groupId": group, "bindingVersion": KAFKA_BINDING}}}
    answer = {"channel": {"$ref": "#/channels/status"}, "messages": _of("status", "taskResponse")}
    return {
        "receiveRequest": {
            **_operation("receive", "requests", "Run a task", "taskRequest"),
            **workers,
            "reply": answer,
        },
        "sendStatus": _operation("send", "status", "Publish the status of a task", "taskResponse"),
        "receiveControl": _operation("receive", "control", "Cancel a task", "controlMessage"),
        "sendDeadLetter": _operation("send", "dead", "Keep failed requests", "deadLetter", ("",)),
        "receiveLiveAsk": _operation("receive", "live", "Subscribe, unsubscribe, ping", "liveAsk", ("",)),
        "sendLiveFrame": _operation("send", "live", "Status events of the subscriptions", "liveFrame", ("",)),
    }


def _of(channel: str, message: str, suffixes: tuple[str, ...] = tuple(_SUFFIX.values())) -> list[Part]:
    return [{"$ref": f"#/channels/{channel}/messages/{message}{suffix}"} for suffix in suffixes]


def _operation(
    action: str, channel: str, summary: str, message: str, suffixes: tuple[str, ...] = tuple(_SUFFIX.values())
) -> Part:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": _of(channel, message, suffixes),
    }


# --- Messages ---------------------------------------------------------------------------------------------------------


def _messages() -> Part:
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    told = (examples.CREATED, examples.RUNNING, examples.COMPLETED, examples.FAILED, examples.CANCELLED)
    asked = (("long_inference", examples.LONG_INFERENCE), ("smallest", examples.SMALLEST))
    uuid = schemas.components()["TaskResponse"]["properties"]["task_id"]
    key = {"type": "string", "format": "uuid", "pattern": uuid["pattern"], "description": "The task_id."}
    request_key = {"type": "string", "description": "`ordering_key` if there is one, else `task_id`."}
    return {
        **_formats(
            "taskRequest",
            "TaskRequest",
            REQUEST,
            {"title": "A request", "headers": {"$ref": f"{SCHEMAS}TaskHeaders"}},
            key=request_key,
            cases=[{"name": name, "headers": trace, "payload": payload} for name, payload in asked],
        ),
        **_formats(
            "taskResponse",
            "TaskResponse",
            RESPONSE,
            {"title": "A status event", "headers": {"$ref": f"{SCHEMAS}StatusHeaders"}, **_correlated("task_id")},
            key=key,
            cases=[{"name": payload["status"], "headers": trace, "payload": payload} for payload in told],
        ),
        **_formats(
            "controlMessage",
            "ControlMessage",
            CONTROL,
            {"title": "A control message", **_correlated("task_id")},
            key=key,
            cases=[{"name": "cancel", "payload": examples.CONTROL}],
        ),
        "deadLetter": {
            "name": "deadLetter",
            "title": "A dead letter",
            "summary": "The original bytes, even if invalid; headers have the reason and the position.",
            "contentType": "application/octet-stream",
            "headers": {"$ref": f"{SCHEMAS}DeadLetterHeaders"},
            "payload": {"description": "The value of the request record; empty if the dead letter only refers to it."},
            "bindings": _binding({"type": "string", "description": "The task_id, else the record's own key."}),
            "examples": [
                {"name": "failed", "headers": examples.DEAD_HEADERS, "payload": examples.LONG_INFERENCE},
            ],
        },
        "liveAsk": _frame("liveAsk", "LiveAsk", "A frame from the client", examples.LIVE_ASKS),
        "liveFrame": _frame("liveFrame", "LiveFrame", "A frame from the service", examples.LIVE_FRAMES),
    }


def _formats(name: str, schema: str, document: str, more: Part, *, key: Part, cases: list[Part]) -> Part:
    """One document as three messages, one per format: the first bytes of a record say which it is."""
    text = avro.read(document)
    made = {}
    for media_type, about in _ABOUT_FORMAT.items():
        summary = about.format(fingerprint=fingerprint_of(text).hex())
        payload: Part = {"$ref": SCHEMAS + schema}
        if media_type != JSON:
            payload = {"$ref": f"{SCHEMAS}{schema}Avro"}
        message = {"name": name + _SUFFIX[media_type], **more, "summary": summary, "contentType": media_type}
        message |= {"payload": payload, "bindings": _binding(key, registry=media_type == CONFLUENT)}
        if media_type == JSON:
            message["examples"] = cases
        else:
            message.pop("correlationId", None)  # its location refers to JSON
        made[message["name"]] = message
    return made


def _avro() -> Part:
    return {
        f"{name}Avro": {"schemaFormat": AVRO_FORMAT, "schema": avro.read(document)}
        for name, document in schemas.AVRO.items()
    }


def _correlated(field: str) -> Part:
    return {"correlationId": {"location": f"$message.payload#/{field}"}}


def _binding(key: Part, *, registry: bool = False) -> Part:
    binding: Part = {"key": key, "bindingVersion": KAFKA_BINDING}
    if registry:
        binding |= {
            "schemaIdLocation": "payload",
            "schemaIdPayloadEncoding": "confluent",
            "schemaLookupStrategy": "TopicNameStrategy",
        }
    return {"kafka": binding}


def _frame(name: str, schema: str, title: str, cases: dict[str, Part]) -> Part:
    return {
        "name": name,
        "title": title,
        "contentType": JSON,
        "payload": {"$ref": SCHEMAS + schema},
        "examples": [{"name": case, "payload": payload} for case, payload in cases.items()],
    }


def _used() -> set[str]:
    """The schemas that the messages refer to, directly or through other schemas."""
    roots = ("TaskRequest", "TaskResponse", "ControlMessage", "TaskHeaders", "StatusHeaders", "DeadLetterHeaders")
    return {name for root in (*roots, "LiveAsk", "LiveFrame") for name in (root, *schemas.needed_by(root))}
