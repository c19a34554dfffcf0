"""Whether a schema may succeed another: Avro's rules of resolution, and streamtask's stricter ones.

`unreadable` answers Avro's question: what stops `reader` from reading what `writer` wrote. Full transitive compatibility
asks that question in both directions for every earlier version. streamtask asks for more, because a document must mean
the same in JSON, which has no schema resolution: a field never disappears, never changes its type or name, and never
loses its default. Pure.

Types are looked up without their namespace, because the documents share one. Tests compare `unreadable` with Apache's
own check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_WIDER = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


class Typed(NamedTuple):
    """A schema and the named types that it may refer to."""

    schema: Any
    names: Mapping[str, Any]


def typed(schema: Any) -> Typed:
    """A whole schema and its named types."""
    names: dict[str, Any] = {}
    _collect(schema, names)
    return Typed(schema, names)


def _collect(held: Any, names: dict[str, Any]) -> None:
    if isinstance(held, list):
        for part in held:
            _collect(part, names)
    elif isinstance(held, dict):
        if "name" in held and held.get("type") in ("record", "error", "enum", "fixed"):
            names[_short(held["name"])] = held
        for key in ("type", "items", "values"):
            if not isinstance(held.get(key), str):
                _collect(held.get(key), names)
        for field in held.get("fields", ()):
            _collect(field.get("type"), names)


def _short(name: str) -> str:
    """Avro compares names without their namespace."""
    return name.rpartition(".")[2]


def unreadable(reader: Typed, writer: Typed, path: str = "") -> list[str]:
    """Why `reader` cannot read what `writer` wrote; [] when it can. Recursive types are visited once."""
    return _differ(reader, writer, path, ())


def _differ(reader: Typed, writer: Typed, path: str, within: tuple[tuple[str, str], ...]) -> list[str]:
    mine, theirs = _resolved(reader), _resolved(writer)
    if isinstance(theirs, list):
        return [
            text for part in theirs for text in _differ(reader, Typed(part, writer.names), path, within)
        ]  # any of them may have been written
    if isinstance(mine, list):
        fits = (_differ(Typed(part, reader.names), writer, path, within) for part in mine)
        return (
            []
            if any(not found for found in fits)
            else [f"{path or 'it'}: no type of the union can read {_kind(theirs)}"]
        )
    kind, other = _kind(mine), _kind(theirs)
    if kind != other:
        return [] if kind in _WIDER.get(other, ()) else [f"{path or 'it'}: {other} cannot be read as {kind}"]
    if kind in ("array", "map"):
        part = "items" if kind == "array" else "values"
        return _differ(Typed(mine[part], reader.names), Typed(theirs[part], writer.names), f"{path}[]", within)
    if kind in ("record", "error", "enum", "fixed"):
        return _named(reader, writer, path, within)
    return []


def _resolved(held: Typed) -> Any:
    schema = held.schema
    if isinstance(schema, dict) and isinstance(schema.get("type"), dict | list):
        schema = schema["type"]
    return held.names.get(_short(schema), schema) if isinstance(schema, str) else schema


def _kind(schema: Any) -> str:
    return str(schema.get("type")) if isinstance(schema, dict) else str(schema)


def _named(reader: Typed, writer: Typed, path: str, within: tuple[tuple[str, str], ...]) -> list[str]:
    mine, theirs = _resolved(reader), _resolved(writer)
    names = {_short(mine["name"]), *map(_short, mine.get("aliases", ()))}
    if _short(theirs["name"]) not in names:
        return [f"{path or 'it'}: {theirs['name']} is not {mine['name']}"]
    kind = _kind(mine)
    if kind == "fixed":
        same = mine["size"] == theirs["size"]
        return [] if same else [f"{path or 'it'}: fixed of {theirs['size']} bytes cannot be read as {mine['size']}"]
    if kind == "enum":
        strange = [symbol for symbol in theirs["symbols"] if symbol not in mine["symbols"]]
        return [] if not strange or "default" in mine else [f"{path or 'it'}: unknown symbols {', '.join(strange)}"]
    pair = (mine["name"], theirs["name"])
    if pair in within:
        return []
    written = {field["name"]: field for field in theirs["fields"]}
    found: list[str] = []
    for field in mine["fields"]:
        name = next((name for name in (field["name"], *field.get("aliases", ())) if name in written), None)
        where = f"{path}.{field['name']}".lstrip(".")
        if name is not None:
            held = Typed(written[name]["type"], writer.names)
            found += _differ(Typed(field["type"], reader.names), held, where, (*within, pair))
        elif "default" not in field:
            found.append(f"{where}: is missing from the writer's schema and has no default")
    return found


def full(new: Any, old: Any) -> list[str]:
    """What breaks full compatibility between two schemas; each text says which one cannot read the other."""
    newer, older = typed(new), typed(old)
    return [
        *(f"the new schema cannot read the old one: {text}" for text in unreadable(newer, older)),
        *(f"the old schema cannot read the new one: {text}" for text in unreadable(older, newer)),
    ]


def house(new: Any, old: Any, path: str = "") -> list[str]:
    """What breaks streamtask's own rules between a record and its successor."""
    there = {field["name"]: field for field in new["fields"]}
    found: list[str] = []
    for field in old["fields"]:
        where = f"{path}{field['name']}"
        mine = there.get(field["name"])
        if mine is None:
            found.append(f"{where}: a field must never be removed")
            continue
        was, now = _record_in(field["type"]), _record_in(mine["type"])
        if was is not None and now is not None:
            found += house(now, was, f"{where}.")
        elif _without_doc(mine["type"]) != _without_doc(field["type"]):
            found.append(f"{where}: a field must never change its type")
        if ("default" in mine, mine.get("default")) != ("default" in field, field.get("default")):
            found.append(f"{where}: a field must never change its default")
    known = {field["name"] for field in old["fields"]}
    found += [
        f"{path}{name}: a new field needs a default"
        for name, field in there.items()
        if name not in known and "default" not in field
    ]
    return found


def _record_in(held: Any) -> Any:
    """The record type within a field's type, or None."""
    parts = held if isinstance(held, list) else [held]
    return next((part for part in parts if isinstance(part, dict) and part.get("type") == "record"), None)


def _without_doc(held: Any) -> Any:
    if isinstance(held, dict):
        return {name: _without_doc(part) for name, part in held.items() if name != "doc"}
    return [_without_doc(part) for part in held] if isinstance(held, list) else held
