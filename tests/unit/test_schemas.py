"""The schemas are the source of truth: the models have their fields, every golden sample is read and written back."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from pydantic import BaseModel

from streamtask.codec import (
    RequestDecoder,
    decode_control,
    decode_request_strict,
    decode_status,
    encode_control,
    encode_request,
    encode_status,
    schema,
)
from streamtask.config import TopicNames
from streamtask.domain.model import ControlMessage, ErrorDetails, StatusEvent, TaskRequest, TaskResponse, to_ms

SAMPLES = Path(__file__).parents[2] / "schemas" / "samples" / "v1"
MODELS: dict[str, type[BaseModel]] = {
    "task_request": TaskRequest,
    "task_response": TaskResponse,
    "task_control": ControlMessage,
}
TASK_ID = "0192f0c1-2b3c-7d4e-8f50-112233445566"


def _samples(document: str) -> list[Path]:
    found = sorted(SAMPLES.glob(f"{document}.*.json"))
    assert found, f"no golden sample of {document}"
    return found


def _field(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(field for field in record["fields"] if field["name"] == name)


@pytest.mark.parametrize("document", MODELS)
def test_a_schema_has_exactly_the_fields_of_its_model(document: str) -> None:
    assert {field["name"] for field in schema.read(document)["fields"]} == set(MODELS[document].model_fields)


def test_the_schema_of_error_details_has_exactly_the_fields_of_its_model() -> None:
    details = _field(schema.read("task_response"), "error_details")["type"][1]
    assert {field["name"] for field in details["fields"]} == set(ErrorDetails.model_fields)


@pytest.mark.parametrize("document", MODELS)
def test_every_field_that_is_not_required_has_a_default_so_that_old_and_new_read_each_other(document: str) -> None:
    required = {name for name, field in MODELS[document].model_fields.items() if field.is_required()}
    assert {field["name"] for field in schema.read(document)["fields"] if "default" not in field} == required


@pytest.mark.parametrize("document", MODELS)
def test_times_are_milliseconds_in_every_schema(document: str) -> None:
    for field in schema.read(document)["fields"]:
        if field["name"].endswith("_at") or field["name"] == "not_before":
            assert field["type"][1] == {"type": "long", "logicalType": "timestamp-millis"}


@pytest.mark.parametrize("document", MODELS)
def test_fastavro_writes_and_reads_every_sample_by_its_schema(document: str) -> None:
    parsed = fastavro.parse_schema(schema.read(document))
    for path in _samples(document):
        model = MODELS[document].model_validate_json(path.read_bytes())
        datum = model.model_dump(exclude_none=True)
        for name in ("parameters", "result"):
            if name in datum:
                datum[name] = json.dumps(datum[name])
        for name in ("status", "action"):
            if name in datum:
                datum[name] = datum[name].value
        written = BytesIO()
        fastavro.schemaless_writer(written, parsed, datum)
        written.seek(0)
        read = fastavro.schemaless_reader(written, parsed, None)
        assert isinstance(read, dict)
        for name in ("parameters", "result"):
            if read.get(name) is not None:
                read[name] = json.loads(read[name])
        assert MODELS[document].model_validate(read) == model


def test_the_three_schemas_are_found() -> None:
    assert schema.names() == ("task_control", "task_request", "task_response")
    for name in schema.names():
        assert json.loads(schema.text(name)) == schema.read(name)


def test_an_unknown_schema_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="task_nonsense"):
        schema.text("task_nonsense")


@pytest.mark.parametrize("path", _samples("task_request"), ids=lambda path: path.name)
def test_a_golden_request_is_read_and_written_back(path: Path) -> None:
    wanted = json.loads(path.read_text())
    assert json.loads(encode_request(decode_request_strict(path.read_bytes()))) == wanted
    record = RequestDecoder(TopicNames(), "cluster").decode(0, 0, 0, 0, None, path.read_bytes(), None)
    assert record.problem is None
    assert record.request is not None
    assert json.loads(encode_request(record.request)) == wanted


@pytest.mark.parametrize("path", _samples("task_response"), ids=lambda path: path.name)
def test_a_golden_status_event_is_read_and_written_back_but_for_times_and_further_fields(path: Path) -> None:
    wanted = json.loads(path.read_text())
    response = decode_status(path.read_bytes())
    assert json.loads(response.to_json()) == wanted
    locale = "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in wanted["message"]) else "en"
    written = json.loads(encode_status(_event(response), locale=locale, worker=response.worker or "w"))
    further = {"created_at", "updated_at", "worker", "origin"} - set(wanted)
    assert {name: held for name, held in written.items() if name not in further} == wanted


def _event(response: TaskResponse) -> StatusEvent:
    """The event with the default message: a golden message must come out of the locale."""
    details = response.error_details
    return StatusEvent(
        task_id=response.task_id,
        partition=3,
        status=response.status,
        created_ms=to_ms(response.created_at) if response.created_at else 0,
        updated_ms=to_ms(response.updated_at) if response.updated_at else 0,
        origin=response.origin or "high-3@0",
        task_type=response.task_type,
        priority=response.priority,
        attempt=response.attempt,
        progress=response.progress,
        result=None if response.result is None else json.dumps(response.result).encode(),
        error=response.error,
        error_code=details.code if details else None,
        exception=details.exception if details else None,
        traceback=details.traceback if details else None,
        started_ms=to_ms(response.started_at) if response.started_at else None,
        finished_ms=to_ms(response.finished_at) if response.finished_at else None,
        labels=response.labels,
    )


@pytest.mark.parametrize("path", _samples("task_control"), ids=lambda path: path.name)
def test_a_golden_control_message_is_read_and_written_back(path: Path) -> None:
    assert json.loads(encode_control(decode_control(TASK_ID.encode(), path.read_bytes()))) == json.loads(
        path.read_text()
    )


def test_every_document_of_the_contract_has_its_golden_sample() -> None:
    names = {path.name for path in SAMPLES.glob("*.json")}
    assert names >= {
        "task_request.long_inference.json",
        "task_response.created.json",
        "task_response.running.json",
        "task_response.completed.json",
    }
