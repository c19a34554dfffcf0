"""The documents for machines: committed as they are generated, valid by their own standards, and able to fail.

Committed are schemas/json/*.json, docs/asyncapi.json and docs/openapi.json; `python -m tests.unit.test_documents` writes
them anew.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from typer.testing import CliRunner

from streamtask.cli import app
from streamtask.cli.export import ASYNCAPI, OPENAPI, documents
from streamtask.codec import encode_control, encode_dead, encode_request, encode_status, status_headers, status_key
from streamtask.codec.formats import Encoder, avro_encoder, confluent_encoder
from streamtask.config import TopicNames
from streamtask.documents import schemas
from streamtask.domain.model import (
    ControlAction,
    ControlMessage,
    DeadLetter,
    RequestRecord,
    StatusEvent,
    TaskRequest,
    TaskStatus,
    from_ms,
)
from streamtask.query_service.live import Push
from streamtask.query_service.past import Gap
from streamtask.query_service.socket import _frame
from streamtask.query_service.sse import block
from tests.documents import Answer, Breach, Contract
from tests.unit.view_bench import bench

ROOT = Path(__file__).resolve().parents[2]
DOCS, JSON = ROOT / "docs", ROOT / "schemas" / "json"
SAMPLES = ROOT / "schemas" / "samples" / "v1"
META = json.loads((ROOT / "tests" / "data" / "asyncapi" / "3.0.0.json").read_text())
NAMES = TopicNames()
TASK_ID = "0192f0c1-2b3c-7d4e-8f50-112233445566"
TRACE = (("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", b"a=b"))
MADE = documents()
ASYNC: dict[str, Any] = json.loads(MADE[ASYNCAPI])
OPEN: dict[str, Any] = json.loads(MADE[OPENAPI])


def committed(name: str) -> Path:
    return (DOCS if name in (ASYNCAPI, OPENAPI) else JSON) / name


def write() -> None:
    JSON.mkdir(exist_ok=True)
    for name, text in MADE.items():
        committed(name).write_text(text, encoding="utf-8")


# --- Generated, and valid ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_what_is_committed_is_what_is_generated(name: str) -> None:
    held = committed(name)
    assert held.exists(), f"{held.relative_to(ROOT)} is missing. Run: python -m tests.unit.test_documents"
    same = held.read_text(encoding="utf-8") == MADE[name]
    assert same, f"{held.relative_to(ROOT)} is not what the models say. Run: python -m tests.unit.test_documents"


def test_nothing_else_lies_beside_the_generated_schemas() -> None:
    assert {path.name for path in JSON.iterdir()} == set(MADE) - {ASYNCAPI, OPENAPI}


@pytest.mark.parametrize("name", [name for name in MADE if name not in (ASYNCAPI, OPENAPI)])
def test_a_schema_is_json_schema_and_needs_no_other_file(name: str) -> None:
    schema = json.loads(MADE[name])
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(_references(schema)) <= {f"#/$defs/{one}" for one in schema.get("$defs", {})}


def test_the_asyncapi_document_is_valid_by_the_official_schema() -> None:
    jsonschema.Draft7Validator(META).validate(ASYNC)


def test_the_official_schema_sees_a_fault() -> None:
    broken = copy.deepcopy(ASYNC)
    broken["operations"]["sendStatus"]["action"] = "publish"  # a word of AsyncAPI 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(META).validate(broken)


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    for target in _references(ASYNC):
        found: Any = ASYNC
        for step in target.removeprefix("#/").split("/"):
            assert step in found, f"{target} leads nowhere"
            found = found[step]
    used = {target.rsplit("/", 1)[1] for target in _references(ASYNC) if "/components/" in target}
    there = set(ASYNC["components"]["schemas"]) | set(ASYNC["components"]["messages"])
    assert used == there, "nothing stands there for nobody"


def test_the_openapi_document_is_valid() -> None:
    openapi_spec_validator.validate(OPEN)


def test_the_openapi_validator_sees_a_fault() -> None:
    broken = copy.deepcopy(OPEN)
    del broken["paths"]["/tasks"]["get"]["responses"]
    broken["paths"]["/tasks"]["get"]["parameters"][0]["in"] = "body"  # a word of OpenAPI 2
    with pytest.raises(OpenAPIValidationError):
        openapi_spec_validator.validate(broken)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for held in part.values():
            yield from _references(held)
    elif isinstance(part, list):
        for held in part:
            yield from _references(held)


# --- Examples, and what the encoders write ----------------------------------------------------------------------------


def _messages(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name of the channel, its message, an example)."""
    for name, channel in document["channels"].items():
        for message in channel["messages"]:
            held = document["components"]["messages"][message]
            for example in held.get("examples", ()):
                yield name, held, example


def hold_examples(asyncapi: dict[str, Any], openapi: dict[str, Any]) -> int:
    """Every example of both documents to the schemas beside it; returns how many there are."""
    contract, count = Contract(asyncapi, openapi), 0
    for channel, message, example in _messages(asyncapi):
        count += 1
        if channel == "live":
            contract.frame(json.dumps(example["payload"]), asked=message["name"] == "liveAsk")
            continue
        headers = [(name, held.encode()) for name, held in example.get("headers", {}).items()]
        topic = asyncapi["channels"][channel]["address"].replace("{band}", "high")
        contract._headers(message, {name: held.decode() for name, held in headers}, False, topic)
        if channel != "dead":
            contract._topics.check(message["payload"], example["payload"], message["name"], closed=True)
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            asked = operation.get("requestBody", {}).get("content", {})
            answered = [told.get("content", {}) for told in operation["responses"].values()]
            for content in (asked, *answered):
                for media_type, held in content.items():
                    shown = [one["value"] for one in held.get("examples", {}).values()]
                    for example in (*shown, *([held["example"]] if "example" in held else ())):
                        count += 1
                        where = f"{method} {path} {media_type}"
                        contract._http.check(held["schema"], example, where, closed=media_type.endswith("json"))
    return count


def test_every_example_is_valid_by_the_schema_beside_it() -> None:
    assert hold_examples(ASYNC, OPEN) > 25
    for operations in OPEN["paths"].values():
        for operation in operations.values():
            for status, told in operation["responses"].items():
                content = told.get("content", {}).get("application/json", {})
                if status < "300" and content.get("schema", {}).get("$ref", "").endswith(("TaskResponse", "TaskPage")):
                    assert "example" in content or "examples" in content, operation["operationId"]


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.name)
def test_the_golden_samples_are_valid(path: Path) -> None:
    name = path.name.partition(".")[0]
    jsonschema.Draft202012Validator(json.loads(MADE[f"{name}.json"])).validate(json.loads(path.read_text()))


def full_request() -> TaskRequest:
    at = from_ms(1_795_505_160_123)
    return TaskRequest(
        task_type="census",
        description="all of them",
        parameters={"path": "a.py", "deep": [1, {"x": None}]},
        priority=8,
        timeout_seconds=1.5,
        task_id=TASK_ID,
        created_at=at,
        expires_at=at,
        not_before=at,
        tenant="acme",
        idempotency_key="i",
        labels={"a": "b"},
    )


def full_event(status: TaskStatus, **more: Any) -> StatusEvent:
    event = StatusEvent(TASK_ID, 3, status, 1_795_505_160_123, 1_795_505_161_123, "high-3@12345", headers=TRACE)
    given = {"task_type": "census", "priority": 8, "attempt": 2, "progress": 0.5, "labels": {"a": "b"}}
    given |= {"started_ms": 1_795_505_161_000, **more}
    for name, held in given.items():
        setattr(event, name, held)
    return event


def events() -> list[StatusEvent]:
    end = {"finished_ms": 1_795_505_162_000}
    wrong = {**end, "error": "no", "error_code": "handler_error", "exception": "ValueError", "traceback": "line 1"}
    return [
        full_event(TaskStatus.CREATED, attempt=None, started_ms=None, progress=None),
        full_event(TaskStatus.RUNNING, message="half"),
        full_event(TaskStatus.COMPLETED, result=b'{"a": [1, 2]}', **end),
        full_event(TaskStatus.FAILED, **wrong),
        full_event(TaskStatus.CANCELLED, **{**wrong, "error_code": "cancelled"}),
    ]


def letters() -> list[DeadLetter]:
    record = RequestRecord(
        0,
        3,
        7,
        1,
        TASK_ID,
        full_request(),
        8,
        1,
        b"{",
        b"k",
        (("traceparent", b"x"), ("own", b"1"), ("big", b"x" * 9_000)),
    )
    return [
        DeadLetter(record, "handler_error", "no", "high-3@7", TASK_ID, 2, traceback="Traceback …"),
        DeadLetter(record, "invalid_request", "no", "high-3@7", reference=True),
    ]


def hold_records(contract: Contract, encoder: Encoder | None = None) -> None:
    """What the writers of this release write, to the documents."""
    encoder = encoder or Encoder()
    request = full_request()
    for asked in (request, request.model_copy(update={"not_before": None, "ordering_key": "k"})):
        for topic in NAMES.requests:
            key = (asked.ordering_key or TASK_ID).encode()
            contract.record(topic, key, encoder.request(topic, asked), (*TRACE, ("task_id", TASK_ID.encode())))
    for event in events():
        value = encoder.status(NAMES.status, event, locale="zh", worker="w@h:1")
        contract.record(NAMES.status, status_key(event), value, status_headers(event) or ())
    wish = ControlMessage(
        task_id=TASK_ID, action=ControlAction.CANCEL, created_at=from_ms(1_795_505_160_123), reason="no longer needed"
    )
    contract.record(NAMES.control, TASK_ID.encode(), encoder.control(NAMES.control, wish))
    for letter in letters():
        dead = encode_dead(letter, NAMES, value_bytes_max=9_000, worker="w@h:1", failed_at_ms=1, traceback=True)
        contract.record(NAMES.dead, *dead)


DOCUMENTS = {
    **dict.fromkeys(NAMES.requests, "task_request"),
    NAMES.status: "task_response",
    NAMES.control: "task_control",
}
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "json": Encoder,
    "avro": lambda: avro_encoder(DOCUMENTS),
    "confluent": lambda: confluent_encoder(dict.fromkeys(DOCUMENTS, 7)),
}


@pytest.mark.parametrize("output", ENCODERS)
def test_what_is_written_in_every_format_is_what_the_asyncapi_document_says(output: str) -> None:
    contract = Contract(ASYNC, OPEN)
    hold_records(contract, ENCODERS[output]())
    suffix = "" if output == "json" else output.title()
    assert contract.seen["status", f"taskResponse{suffix}"] == 5
    for name in ("TaskRequest", "TaskResponse", "ControlMessage", "DeadLetterHeaders", "StatusHeaders"):
        told = set(ASYNC["components"]["schemas"][name]["properties"])
        assert told == {field for held, field in contract.fields if held == name}, f"each field of {name} is written"


def test_the_plain_writers_are_those_of_the_encoder() -> None:
    assert Encoder().request("t", full_request()) == encode_request(full_request())
    event = events()[2]
    assert Encoder().status("t", event, locale="en", worker="w") == encode_status(event, locale="en", worker="w")
    wish = ControlMessage(task_id=TASK_ID, action=ControlAction.CANCEL)
    assert Encoder().control("t", wish) == encode_control(wish)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"priority": 11}, "priority"),
        ({"priority": "5"}, "priority"),
        ({"priority": 5.5}, "priority"),
        ({"task_type": ""}, "task_type"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"task_id": "x"}, "task_id"),
        ({"labels": {"a": 1}}, "labels"),
        ({"ordering_key": "k", "not_before": "2026-11-24T07:26:00Z"}, "not"),
        ({"parameters": []}, "parameters"),
    ],
)
def test_what_a_worker_refuses_is_not_valid(change: dict[str, Any], why: str) -> None:
    schema = jsonschema.Draft202012Validator(json.loads(MADE["task_request.json"]))
    schema.validate({"task_type": "census", "priority": 5.0, "labels": None, "zzz": 1})
    errors = list(schema.iter_errors({"task_type": "census", **change}))
    assert errors
    assert any(why in (*error.absolute_path, *error.absolute_schema_path) for error in errors)


# --- Able to fail -----------------------------------------------------------------------------------------------------

WRITTEN = ("TaskRequest", "TaskResponse", "ErrorDetails", "ControlMessage", "StatusHeaders", "DeadLetterHeaders")


def _remove(field: str, schema: dict[str, Any]) -> None:
    schema["properties"].pop(field)


def _make_null(field: str, schema: dict[str, Any]) -> None:
    schema["properties"][field] = {"type": "null"}


def _mutations() -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    for name in WRITTEN:
        part = ASYNC["components"]["schemas"][name]
        for field in part["properties"]:
            yield f"{name} without {field}", partial(_remove, field)
            if field != "result":  # anything
                yield f"{name} with another {field}", partial(_make_null, field)
        yield f"{name} with something that nobody writes", lambda held: held.update(required=["nonsense"])


@pytest.mark.parametrize(
    ("name", "change"), list(_mutations()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_schema_that_says_something_else_is_found_by_what_is_written(
    name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    mutated = copy.deepcopy(ASYNC)
    change(mutated["components"]["schemas"][name.split()[0]])
    with pytest.raises(Breach):
        hold_records(Contract(mutated, OPEN))


def test_an_avro_schema_that_says_something_else_is_found() -> None:
    for name in ("TaskRequestAvro", "TaskResponseAvro", "ControlMessageAvro"):
        mutated = copy.deepcopy(ASYNC)
        fields = mutated["components"]["schemas"][name]["schema"]["fields"]
        fields[0], fields[1] = fields[1], fields[0]
        with pytest.raises(Breach, match="another schema"):
            hold_records(Contract(mutated, OPEN), ENCODERS["avro"]())


@pytest.mark.anyio
async def test_answers_are_held_to_the_routes_and_another_route_is_found() -> None:
    async with bench() as view:
        await view.until_ready()
        posted = await view.http.post("/tasks", json={"task_type": "census"})
        refused = await view.http.post("/tasks", json={"task_typ": "census"})
        listed = await view.http.get("/tasks")
        served = (await view.http.get("/openapi.json")).json()
    told = [("POST", "/tasks", posted), ("POST", "/tasks", refused), ("GET", "/tasks", listed)]
    answers = [(m, p, Answer(got.status_code, got.headers, got.content)) for m, p, got in told]

    def hold(openapi: dict[str, Any]) -> None:
        contract = Contract(ASYNC, openapi)
        for one in answers:
            contract.answer(*one)

    hold(OPEN)
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "status": lambda held: held["paths"]["/tasks"]["post"]["responses"].pop("422"),
        "type": lambda held: held["paths"]["/tasks"]["post"]["responses"]["202"].update(content={"text/plain": {}}),
        "header": lambda held: held["components"]["headers"]["Location"]["schema"].update(pattern="^/jobs/"),
        "method": lambda held: held["paths"]["/tasks"].pop("get"),
        "field": lambda held: held["components"]["schemas"]["TaskResponse"]["properties"].pop("origin"),
        "page": lambda held: held["components"]["schemas"]["TaskPage"]["properties"].pop("next_cursor"),
        "problem": lambda held: held["components"]["schemas"]["FieldProblem"]["properties"].pop("field"),
    }
    for what, change in changes.items():
        mutated = copy.deepcopy(OPEN)
        change(mutated)
        try:
            hold(mutated)
        except Breach:
            continue
        pytest.fail(f"nobody saw: {what}")
    served["paths"]["/metrics"] = OPEN["paths"]["/metrics"]  # added outside of the routes of the bench
    assert served == OPEN, "a service serves the document that is committed"


def test_a_record_of_an_unknown_topic_and_one_without_a_key_are_found() -> None:
    contract = Contract(ASYNC, OPEN)
    value = encode_request(full_request())
    with pytest.raises(Breach, match="no channel"):
        contract.record("tasks.requests.high.x", b"k", value)
    with pytest.raises(Breach, match="no key"):
        contract.record("tasks.requests.high", None, value)
    with pytest.raises(Breach, match="its key is not its task_id"):
        contract.record(
            "tasks.control", b"0" * 8 + TASK_ID[8:].encode(), b'{"task_id":"%b","action":"cancel"}' % TASK_ID.encode()
        )


def test_the_frames_that_a_healthy_run_does_not_show_are_described() -> None:
    contract = Contract(ASYNC, OPEN)
    gap = Gap(0, 1, 7)
    for push in (Push(None), Push("0:1"), Push("0:1", gap=gap)):
        contract.frame(_frame(b'"a"', push).decode())
    assert set(contract.seen) == {("liveFrame", "alive"), ("liveFrame", "gap")}
    _, data = block(Push("0:1", gap=gap)).split(b"data: ")
    assert contract.event("gap", data.decode()) == gap._asdict()
    ended = {"ended", "unsubscribed", "unavailable", "slow", "restarted", "overrun", "stopping"}
    for reason in ended:
        contract.frame(json.dumps({"type": "end", "id": "a", "reason": reason}))


def test_the_schemas_describe_every_field() -> None:
    for name in ("TaskRequest", "TaskResponse", "ControlMessage", "ErrorDetails", "DeadLetterHeaders"):
        for field, held in schemas.components()[name]["properties"].items():
            assert held.get("description"), f"{name}.{field}"


# --- The command, and the page ----------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["schemas", "export", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("STREAMTASK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_alone")
def test_the_command_writes_what_is_committed() -> None:
    code, out, _ = run("new/contract")
    assert code == 0
    assert "asyncapi.json" in out
    assert {path.name: path.read_text() for path in Path("new/contract").iterdir()} == MADE


@pytest.mark.usefixtures("_alone")
def test_the_command_knows_prefix_and_addresses() -> None:
    code, out, _ = run("x", "--prefix", "acme", "--bootstrap", "k1:9092,k2:9092", "--url", "https://q.test/", "--json")
    assert code == 0
    assert json.loads(out) == {"directory": "x", "files": sorted(MADE)}
    document = json.loads(Path("x", ASYNCAPI).read_text())
    jsonschema.Draft7Validator(META).validate(document)
    assert document["channels"]["status"]["address"] == "acme.status"
    assert [server["host"] for server in document["servers"].values()] == ["k1:9092", "q.test"]
    assert document["operations"]["receiveRequest"]["bindings"]["kafka"]["groupId"]["const"] == "acme.workers"


@pytest.mark.usefixtures("_alone")
def test_a_directory_that_is_none_is_one_line() -> None:
    Path("file").write_text("")
    code, out, error = run("file")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "Cannot write to " in error
    assert "file (" in error


def test_the_page_about_the_documents_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "documents.md").read_text(), re.M | re.S)
    exec(compile(code, "docs/documents.md", "exec"), {})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


if __name__ == "__main__":
    write()
