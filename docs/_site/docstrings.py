"""Docstrings of this house as Markdown: a Griffe extension for mkdocstrings.

A docstring describes shapes in a block of two columns:

    timeout  seconds per attempt, from the handler's start;
             None: no limit
    retry    default: one attempt

Markdown would join that into one line. Here such a block becomes a list, `timeout` in code. Everything else is Markdown
already: paragraphs, and examples that are indented by four. Two more things that only running code would show:

- a comment `#: text` behind an attribute is its docstring;
- `submit = _blocking(AsyncClient.submit)` is a method of Client with the arguments of AsyncClient's.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import griffe

# Names, then at least two blanks (one after a name of the full width), then what they mean.
ROW = re.compile(r"^(?P<names>[a-z_*][\w*]*(?:, [a-z_*][\w*]*)*)(?P<gap> +)(?P<meaning>\S.*)$")


BLOCKING = re.compile(r"_blocking\((\w+)\.(\w+)\)\Z")


class HouseDocstrings(griffe.Extension):
    """Rewrites every docstring that is shown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        attr.labels -= {"class-attribute", "instance-attribute", "module-attribute"}  # true, and of no use to a reader
        if attr.docstring is None and attr.lines and "#: " in attr.lines[-1]:
            attr.docstring = griffe.Docstring(attr.lines[-1].partition("#: ")[2], parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        client = pkg.members.get("client")
        if isinstance(client, griffe.Module):
            _add_blocking_methods(client["blocking.Client"], client["asynchronous.AsyncClient"])


def _add_blocking_methods(client: griffe.Class, asynchronous: griffe.Class) -> None:
    for name, attribute in list(client.members.items()):
        found = BLOCKING.match(str(getattr(attribute, "value", "")))
        if found is None:
            continue
        method = copy.copy(asynchronous[found[2]])
        method.labels = method.labels - {"async"}
        method.returns = "SyncReceipt"
        method.docstring = griffe.Docstring(f"As {asynchronous.name}.{found[2]}.", parent=method)
        client.set_member(name, method)


def to_markdown(docstring: str) -> str:
    """The same text, its two-column blocks as lists."""
    return "\n\n".join(_block(block) for block in re.split(r"\n{2,}", docstring.strip("\n")))


def _block(block: str) -> str:
    lines = block.splitlines()
    column = _column(lines)
    if column is None:
        return block
    rows: list[list[str]] = []
    for line in lines:
        if line[:column].strip():
            rows.append([line[:column].strip(), line[column:].strip()])
        else:
            rows[-1][1] += " " + line.strip()
    return "\n".join(
        f"- {', '.join(f'`{name.strip()}`' for name in names.split(','))}: {meaning}" for names, meaning in rows
    )


def _column(lines: list[str]) -> int | None:
    """Where the second column begins; None: the block has no two columns."""
    found = [ROW.match(line) for line in lines]
    starts = {len(row["names"]) + len(row["gap"]) for row in found if row and len(row["gap"]) > 1}
    if found[0] is None or len(starts) != 1:
        return None
    (column,) = starts
    fits = all(
        (row and len(row["names"]) + len(row["gap"]) == column) or not line[:column].strip()
        for line, row in zip(lines, found, strict=True)
    )
    return column if fits else None
