"""`codec.compatibility` against the check of Apache's own package `avro`, on pairs of schemas that hypothesis makes.

The second schema of a pair is the first one after a few changes: two that are drawn apart hardly ever fit.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import avro.errors
import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamtask.codec import schema
from streamtask.codec.compatibility import typed, unreadable

DEFAULTS: dict[str, Any] = {"null": None, "boolean": False, "int": 0, "long": 0, "float": 0.0, "double": 0.0}
DEFAULTS |= {"bytes": "", "string": ""}
PRIMITIVES = st.sampled_from(sorted(DEFAULTS))
WRAPPED = {"text": {"type": "string"}, "time": {"type": "long", "logicalType": "timestamp-millis"}}
UNNAMED = (*sorted(DEFAULTS), "array", "map")
NAMED = ("record", "enum", "fixed")
SYMBOLS = ("A", "B", "C")
FIELDS = ("a", "b", "c")
DEPTH = 3

Draw = Callable[[st.SearchStrategy[Any]], Any]


def reads(reader: Any, writer: Any) -> bool:
    return not unreadable(typed(reader), typed(writer))


def apache_reads(reader: Any, writer: Any) -> bool:
    mine, theirs = (avro.schema.parse(json.dumps(one)) for one in (reader, writer))
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]  # the package does not annotate it
    found = checker.get_compatibility(mine, theirs)
    return found.compatibility is SchemaCompatibilityType.compatible


def is_schema(held: Any) -> bool:
    try:
        avro.schema.parse(json.dumps(held))
    except avro.errors.AvroException:
        return False
    return True


# --- Pairs of schemas -------------------------------------------------------------------------------------------------


def drawn(draw: Draw, names: list[str], depth: int, kind: str | None = None) -> Any:
    """A schema. names: those of its named types so far, for each one is declared once; records may be named again."""
    if kind is None:
        kinds = (*NAMED, "union", "again", *UNNAMED, *WRAPPED) if depth else tuple(DEFAULTS)
        kind = draw(st.sampled_from(kinds))
    if kind == "union":
        branches = draw(st.lists(st.sampled_from((*UNNAMED, *NAMED)), min_size=1, max_size=3, unique=True))
        return [drawn(draw, names, depth - 1, branch) for branch in branches]
    if kind == "again" or (kind in NAMED and not depth):
        return draw(st.sampled_from(names)) if names else "null"
    if kind in ("array", "map"):
        part = "items" if kind == "array" else "values"
        return {"type": kind, part: drawn(draw, names, max(0, depth - 1))}
    if kind not in NAMED:
        return copy.deepcopy(WRAPPED.get(kind, kind))
    name = f"N{len(names)}"
    names.append(name)
    if kind == "fixed":
        return {"type": kind, "name": name, "size": draw(st.integers(1, 2))}
    if kind == "enum":
        symbols = draw(st.lists(st.sampled_from(SYMBOLS), min_size=1, unique=True))
        return {"type": kind, "name": name, "symbols": symbols}
    fields = draw(st.lists(st.sampled_from(FIELDS), unique=True))
    return {"type": kind, "name": name, "fields": [drawn_field(draw, one, names, depth) for one in fields]}


def drawn_field(draw: Draw, name: str, names: list[str], depth: int) -> dict[str, Any]:
    made = {"name": name, "type": drawn(draw, names, depth - 1)}
    first = made["type"][0] if isinstance(made["type"], list) else made["type"]
    if isinstance(first, str) and first in DEFAULTS and draw(st.booleans()):
        made["default"] = DEFAULTS[first]
    return made


def parts(held: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a schema within, as (what holds it, its index there)."""
    if isinstance(held, list):
        places: list[tuple[Any, Any]] = [(held, number) for number in range(len(held))]
    elif isinstance(held, dict):
        places = [(held, key) for key in ("items", "values") if key in held]
        places += [(field, "type") for field in held.get("fields", ())]
    else:
        places = []
    for within, key in places:
        yield within, key
        yield from parts(within[key])


def change(draw: Draw, whole: list[Any]) -> None:
    """One change of a schema, somewhere. whole: a list that holds it."""
    within, key = draw(st.sampled_from(list(parts(whole))))
    one = within[key]
    if isinstance(one, str):
        within[key] = draw(PRIMITIVES)
    elif isinstance(one, list):
        if len(one) > 1:
            one.pop(draw(st.integers(0, len(one) - 1)))
    elif one["type"] in NAMED and draw(st.integers(0, 4)) == 0:
        old, one["name"] = one["name"], f"M{one['name']}"
        one["aliases"] = draw(st.sampled_from([[], [old]]))
    elif one["type"] == "fixed":
        one["size"] = 3 - one["size"]
    elif one["type"] == "enum":
        one["symbols"] = draw(st.lists(st.sampled_from(SYMBOLS), min_size=1, unique=True))
        one.pop("default", None)
        if draw(st.booleans()):
            one["default"] = one["symbols"][0]
    elif one["type"] == "record":
        change_fields(draw, one["fields"])


def change_fields(draw: Draw, fields: list[dict[str, Any]]) -> None:
    """One goes, gets another name, or comes."""
    what = draw(st.sampled_from(["goes", "is renamed", "comes"])) if fields else "comes"
    taken = {field["name"] for field in fields}
    if what == "comes":
        name = next(one for one in (*FIELDS, "d", "e", "f", "g") if one not in taken)
        fields.append({"name": name, "type": "int"} | draw(st.sampled_from([{}, {"default": 0}])))
        return
    field = draw(st.sampled_from(fields))
    if what == "goes":
        fields.remove(field)
    else:
        field["aliases"] = draw(st.sampled_from([[], [field["name"]]]))
        field["name"] = f"new_{field['name']}"


@st.composite
def pairs(draw: Draw) -> tuple[Any, Any]:
    first = [drawn(draw, [], DEPTH)]
    second = copy.deepcopy(first)
    for _ in range(draw(st.integers(0, 3))):
        change(draw, second)
    assume(is_schema(second[0]))  # not one that refers to a type which has gone, or a union of two that are the same
    return first[0], second[0]


# --- The same judgement -----------------------------------------------------------------------------------------------


def test_on_pairs_of_any_schemas_both_judge_alike() -> None:
    judged: Counter[bool] = Counter()

    @settings(max_examples=1_000)
    @given(pairs())
    def judge(pair: tuple[Any, Any]) -> None:
        for reader, writer in (pair, pair[::-1]):
            found = reads(reader, writer)
            judged[found] += 1
            assert found is apache_reads(reader, writer), unreadable(typed(reader), typed(writer))

    judge()
    assert min(judged[True], judged[False]) >= 500, "hardly a pair fits, or hardly one does not"


VERSIONS = schema.versions()


@pytest.mark.parametrize("name", schema.names())
def test_on_every_two_versions_of_a_schema_of_ours_both_judge_alike(name: str) -> None:
    released = [schema.read(name, version) for version in VERSIONS if name in schema.names(version)]
    everything = [*released, *(schema.read(other) for other in schema.names())]
    for reader in everything:
        for writer in everything:
            assert reads(reader, writer) is apache_reads(reader, writer)


# --- Where they differ ------------------------------------------------------------------------------------------------


def record(name: str, *fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields), **more}


def test_an_alias_without_a_namespace_is_in_that_of_its_type() -> None:
    """So says Avro's specification; Apache's check compares it with the full name of the writer's type."""
    reader = record("New", namespace="shop", aliases=["Old"])
    writer = record("Old", namespace="shop")
    assert reads(reader, writer)
    assert not apache_reads(reader, writer)
    assert apache_reads(reader | {"aliases": ["shop.Old"]}, writer)


def test_types_of_one_name_in_two_namespaces_are_not_told_apart() -> None:
    """Ours looks types up without their namespace. The documents have one namespace, and each name once in it."""
    whole = record(
        "Whole",
        {"name": "one", "type": record("Part", {"name": "x", "type": "int"}, namespace="one")},
        {"name": "two", "type": record("Part", {"name": "x", "type": "string"}, namespace="two")},
        {"name": "again", "type": "one.Part"},
    )
    other = copy.deepcopy(whole)
    other["fields"][2]["type"] = "two.Part"
    assert reads(whole, other)
    assert not apache_reads(whole, other)
    for name in schema.names():
        declared = [one["name"] for one in declarations(schema.read(name))]
        assert len(declared) == len(set(declared)) > 0


def declarations(held: Any) -> Iterator[dict[str, Any]]:
    if isinstance(held, dict) and held.get("type") in NAMED:
        yield held
    for within, key in parts(held):
        if isinstance(within[key], dict) and within[key].get("type") in NAMED:
            yield within[key]
