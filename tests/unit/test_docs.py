"""What a stranger reads is held to the code: blocks, links, names of tests, tables, commands.

The tables between `<!-- generated: … -->` and `<!-- /generated -->` are written anew by `python -m tests.unit.test_docs`.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from streamtask import TaskFailed
from streamtask.cli import app
from streamtask.client.asynchronous import PIPELINE_MAX
from streamtask.config import EngineConfig, TopicNames
from streamtask.config.kafka import TRANSACTION_TIMEOUT_MS
from streamtask.domain.model import HandlerKind
from streamtask.kafka.acls import Resource, Role, acls_of
from streamtask.projection.view import SERVING_BYTES, SERVING_RECORDS
from streamtask.query_service.metrics import METRICS as OF_THE_SERVICE
from streamtask.testing import in_memory
from streamtask.worker.endpoint import METRICS as OF_THE_WORKER
from streamtask.worker.loop import RECORDS_MAX
from tests.parts import PARTS, Collected
from tests.reference_pages import (
    api_reference,
    cli_reference,
    codes_reference,
    events_reference,
    metrics_reference,
    problems_reference,
    settings_reference,
)

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECURITY = ROOT / "docs" / "security.md"
FLOW = ROOT / "docs" / "flow.md"
REFERENCE = ROOT / "docs" / "reference"
HANDLER = ROOT / "examples" / "quickstart" / "app.py"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- Generated tables -------------------------------------------------------------------------------------------------


def acls_table() -> str:
    """Rows that differ only in the topic are one."""
    names = TopicNames()
    rows = ["| role | allowed | on | | without it |", "|---|---|---|---|---|"]
    for role in Role:
        alike: dict[tuple[str, str, bool, str], list[str]] = {}
        for acl in acls_of(role, names):
            kind = {Resource.TOPIC: "", Resource.CLUSTER: "cluster "}.get(
                acl.resource, acl.resource.value.lower().replace("_", " ") + " "
            )
            name = "" if acl.resource is Resource.CLUSTER else f"`{acl.name}{'*' if acl.prefixed else ''}`"
            alike.setdefault((acl.operation.value, kind, acl.must, acl.without), []).append(name)
        for (operation, kind, must, without), found in alike.items():
            where = f"{kind}{', '.join(found)}".strip()
            rows.append(f"| {role.value} | {operation} | {where} | {'!' if must else ''} | {without} |")
    return "\n".join(rows)


GENERATED: dict[Path, dict[str, Callable[[], str]]] = {
    SECURITY: {"acls": acls_table},
    REFERENCE / "cli.md": {"commands": cli_reference},
    REFERENCE / "api.md": {"names": api_reference},
    REFERENCE / "settings.md": {"settings": settings_reference},
    REFERENCE / "events.md": {"events": events_reference},
    REFERENCE / "metrics.md": {
        "worker": partial(metrics_reference, OF_THE_WORKER),
        "service": partial(metrics_reference, OF_THE_SERVICE),
    },
    REFERENCE / "errors.md": {"codes": codes_reference, "problems": problems_reference},
}


def regenerated(page: Path) -> str:
    text = page.read_text()
    for name, table in GENERATED[page].items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- /generated -->)"

        def with_table(found: re.Match[str], table: Callable[[], str] = table) -> str:
            return f"{found[1]}{table()}\n{found[2]}"

        text, count = re.subn(pattern, with_table, text, flags=re.S)
        assert count == 1, f"{name_of(page)} has {count} places for {name}"
    return text


@pytest.mark.parametrize("page", GENERATED, ids=name_of)
def test_tables_that_are_generated_are_those_of_the_code(page: Path) -> None:
    assert page.read_text() == regenerated(page), "run: python -m tests.unit.test_docs"


def bounds() -> list[str]:
    """What flow.md says of the steps' bounds."""
    core = EngineConfig()
    slots = core.slots
    return [
        f"{PIPELINE_MAX:,} records under way in one `submit_many`",
        f"{RECORDS_MAX:,} records a poll",
        f"{core.backlog_max} records or {core.backlog_bytes_max / 1e6:g} MB a cell, then it is paused",
        f"{core.events_max:,} events or {core.batch_bytes_max / 1e6:g} MB a transaction",
        f"{slots[HandlerKind.ASYNC]} async, {slots[HandlerKind.THREAD]} threads a process",
        f"the transaction timeout of {TRANSACTION_TIMEOUT_MS / 1e3:g} s",
        f"{SERVING_RECORDS} records or {SERVING_BYTES / 1e6:g} MB a batch while it serves",
    ]


@pytest.mark.parametrize("bound", bounds())
def test_bounds_on_the_way_of_a_request_are_those_of_the_code(bound: str) -> None:
    assert bound in FLOW.read_text()


# --- Blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_and_json_blocks_parse(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "json"):
        for line in block.splitlines():
            json.loads(line)


def test_the_handler_of_the_readme_is_the_one_of_the_example() -> None:
    """But for the docstring, which the page says around it."""
    code = HANDLER.read_text().split('"""', 2)[2].strip()
    shown = [block.strip() for block in blocks(README, "python")]
    assert code in shown
    assert len([line for line in code.splitlines() if line.strip()]) <= 10, "a handler in ten lines"


def test_the_page_about_handlers_runs() -> None:
    """Its blocks make one module, and its tasks do what it says of them."""
    names: dict[str, Any] = {"__name__": "handlers_page"}
    for block in blocks(ROOT / "docs" / "handlers.md", "python"):
        exec(compile(block, "docs/handlers.md", "exec"), names)
    with in_memory(names["app"]):
        assert asyncio.run(names["order"]()) is None
        assert names["thumbnail"].submit_sync("a.png", [100]).result() == {"a.png.100": 80}
        assert names["charge"].submit_sync("Ada").result() == "Ada"
        with pytest.raises(TaskFailed, match="no customer"):
            names["charge"].submit_sync("").result()
    with in_memory(names["billing"]):
        assert names["bill"].submit_sync("Ada").result().startswith("Ada: opened once")


def test_the_documents_of_the_contract_are_the_golden_samples() -> None:
    (block,) = blocks(ROOT / "docs" / "wire.md", "json")
    samples = ROOT / "schemas" / "samples" / "v1"
    names = ("request.long_inference", "response.created", "response.running", "response.completed")
    golden = [json.loads((samples / f"task_{name}.json").read_text()) for name in names]
    assert [json.loads(line) for line in block.splitlines()] == golden


# --- Links, names, commands -------------------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _links(page: Path) -> Iterator[tuple[str, str]]:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _links(page):
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{path} does not exist"
        assert not anchor or anchor in _anchors(there), f"{path}#{anchor}: no such heading"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(README.parent / path).resolve() for path, _ in _links(README)}
    missing = [name_of(page) for page in PAGES if page != README and not {page, page.parent} & linked]
    assert not missing


def test_every_test_that_is_named_exists() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+?)(?:\[[^`]*)?`", page.read_text()):
            assert f"def {name}(" in code, f"{name_of(page)} names {name}"


def unproven(text: str, tests: Iterable[Collected]) -> list[str]:
    """The tests that a text names, `test_x` or one case of it, `test_x[case]`, and that CI does not run."""
    run: dict[str, set[str]] = {}
    for test in tests:
        if any(part.takes(test) for part in PARTS):
            run.setdefault(test.function, set()).add(test.case)
    found = []
    for name, case in re.findall(r"`(test_\w+)(\[[^`]*\])?`", text):
        any_case = not case or "…" in case
        if name not in run or not (any_case or case in run[name]):
            found.append(f"{name}{case}")
    return found


@pytest.mark.parametrize("page", [ROOT / "docs" / "guarantees.md", ROOT / "docs" / "performance.md"], ids=name_of)
def test_every_test_that_proves_a_promise_is_run_by_ci(page: Path, everything: list[Collected]) -> None:
    assert unproven(page.read_text(), everything) == []


def test_a_test_that_no_part_of_ci_runs_proves_nothing() -> None:
    slow = [Collected("tests/chaos/test_x.py::test_slow[a]", frozenset({"slow"}))]
    nowhere = [Collected("elsewhere/test_x.py::test_lost", frozenset({"slow"}))]
    text = "`test_slow`, `test_slow[a]`, `test_slow[…]`, `test_slow[b]`, `test_lost`, `test_gone`"
    assert unproven(text, [*slow, *nowhere]) == ["test_slow[b]", "test_lost", "test_gone"]


def test_every_command_is_mentioned() -> None:
    text = README.read_text()
    root: Any = get_command(app)
    for name, command in root.commands.items():
        assert re.search(rf"`{name}\b", text), f"the README does not mention the command {name}"
        for inner in getattr(command, "commands", {}):
            assert re.search(rf"\b{name} (\w+\|)*{inner}\b", text), f"the README does not mention {name} {inner}"


if __name__ == "__main__":
    for page in GENERATED:
        page.write_text(regenerated(page))
