"""Full transitive compatibility of the current schemas with every released version, and a judge that sees breaches."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from streamtask.codec import schema
from streamtask.codec.compatibility import full, house, typed, unreadable

VERSIONS = [(version, name) for version in schema.versions() for name in schema.names(version)]


@pytest.mark.parametrize(("version", "name"), VERSIONS)
def test_the_current_schema_may_follow_every_released_one(version: str, name: str) -> None:
    new, old = schema.read(name), schema.read(name, version)
    assert full(new, old) == []
    assert house(new, old) == []


@pytest.mark.parametrize("name", schema.names())
def test_the_current_schema_is_that_of_the_last_version_or_a_new_version_is_due(name: str) -> None:
    last = schema.versions()[-1]
    assert schema.text(name) == schema.text(name, last), f"schemas changed: add golden/v{int(last[1:]) + 1} and samples"


def _changed(**fields: Any) -> dict[str, Any]:
    """task_request with these fields in place of its own; None takes one out."""
    held = copy.deepcopy(schema.read("task_request"))
    kept = [field for field in held["fields"] if field["name"] not in fields]
    return held | {"fields": kept + [field | {"name": name} for name, field in fields.items() if field is not None]}


OPTIONAL = {"type": ["null", "string"], "default": None}
PLANTED: list[tuple[str, dict[str, Any], str]] = [
    ("a new field without default", _changed(colour={"type": "string"}), "colour: is missing from"),
    ("a required field that goes", _changed(task_type=None), "task_type: is missing from"),
    ("a number that becomes a text", _changed(priority={"type": ["null", "string"], "default": None}), "priority"),
    ("a field that may no longer be null", _changed(tenant={"type": "string", "default": ""}), "tenant"),
    ("a required field that may be null", _changed(task_type={"type": ["null", "string"]}), "task_type"),
    ("an int that becomes long", _changed(priority={"type": ["null", "long"], "default": None}), "priority"),
    (
        "labels of numbers",
        _changed(labels={"type": ["null", {"type": "map", "values": "int"}], "default": None}),
        "labels",
    ),
    ("another record", schema.read("task_response"), "TaskRe"),
]


@pytest.mark.parametrize(("new", "word"), [pytest.param(new, word, id=name) for name, new, word in PLANTED])
def test_what_breaks_full_compatibility_is_seen(new: dict[str, Any], word: str) -> None:
    found = full(new, schema.read("task_request"))
    assert any(word in text for text in found), found


def test_a_new_field_with_a_default_is_compatible() -> None:
    new, old = _changed(colour=OPTIONAL), schema.read("task_request")
    assert full(new, old) == []
    assert house(new, old) == []


@pytest.mark.parametrize(
    ("new", "word"),
    [
        (_changed(tenant=None), "tenant: a field must never be removed"),
        (
            _changed(description={"type": "string", "default": "?"}),
            "description: a field must never change its default",
        ),
        (
            _changed(created_at={"type": ["null", "long"], "default": None}),
            "created_at: a field must never change its type",
        ),
        (_changed(colour={"type": "string"}), "colour: a new field needs a default"),
    ],
)
def test_the_house_forbids_what_avro_allows(new: dict[str, Any], word: str) -> None:
    assert word in house(new, schema.read("task_request"))


def test_the_house_looks_into_records_within() -> None:
    old = schema.read("task_response")
    new = copy.deepcopy(old)
    details = next(field for field in new["fields"] if field["name"] == "error_details")["type"][1]
    details["fields"] = [field for field in details["fields"] if field["name"] != "traceback"]
    assert house(new, old) == ["error_details.traceback: a field must never be removed"]


@pytest.mark.parametrize(
    ("reader", "writer", "fits"),
    [
        ("long", "int", True),
        ("int", "long", False),
        ("double", "float", True),
        ("string", "bytes", True),
        (["null", "string"], "string", True),
        ("string", ["null", "string"], False),
        (["null", "double"], ["null", "int"], True),
        ({"type": "array", "items": "long"}, {"type": "array", "items": "int"}, True),
        ({"type": "map", "values": "int"}, {"type": "map", "values": "string"}, False),
        ({"type": "fixed", "name": "F", "size": 4}, {"type": "fixed", "name": "F", "size": 8}, False),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, {"type": "enum", "name": "E", "symbols": ["A", "B"]}, False),
        (
            {"type": "enum", "name": "E", "symbols": ["A"], "default": "A"},
            {"type": "enum", "name": "E", "symbols": ["A", "B"]},
            True,
        ),
        (
            {
                "type": "record",
                "name": "N",
                "aliases": ["M"],
                "fields": [{"name": "b", "aliases": ["a"], "type": "int"}],
            },
            {"type": "record", "name": "M", "fields": [{"name": "a", "type": "int"}]},
            True,
        ),
        (
            {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]},
            {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]},
            True,
        ),
    ],
)
def test_resolution_follows_the_rules_of_avro(reader: Any, writer: Any, fits: bool) -> None:
    assert (unreadable(typed(reader), typed(writer)) == []) == fits
