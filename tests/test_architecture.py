"""The rules of the house, kept by reading every file: layers, borders of the core, sizes, tasks, queues, waits.

Each rule is a function that returns what breaks it, as `file:line: what`; a test asserts that there is nothing, and a
planted breach shows that the rule would see one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "streamtask"
MODULE_LINES_MAX = 500
TEST_LINES_MAX = 900  # a list of tests is read one by one
FUNCTION_LINES_MAX = 70

# A module imports from the folders above its own in this list, and from its own where that makes no circle.
FOLDERS: tuple[str, ...] = (
    "streamtask.public",
    "streamtask.errors",
    "streamtask.distribution",
    "streamtask.domain",
    "streamtask.config",
    "streamtask.observability",
    "streamtask.core",
    "streamtask.codec",
    "streamtask.schema_registry",
    "streamtask.kafka",
    "streamtask.projection",
    "streamtask.client",
    "streamtask.handlers",
    "streamtask.app",
    "streamtask",
    "streamtask.execution",
    "streamtask.worker",
    "streamtask.redrive",
    "streamtask.audit",
    "streamtask.documents",
    "streamtask.query_service",
    "streamtask.devbroker",
    "streamtask.testing",
    "streamtask.pytest_plugin",
    "streamtask.demo",
    "streamtask.dev",
    "streamtask.cli",
    "streamtask.__main__",
)

# What else a folder must not know, whatever the list allows.
STRANGERS: dict[str, tuple[str, ...]] = {
    "streamtask.core": ("streamtask.observability.event_log",),
    "streamtask.kafka": ("streamtask.core",),
    # the audit shares no rule with the worker, so that it can disagree with it
    "streamtask.audit": (
        "streamtask.core",
        "streamtask.worker.loop",
        "streamtask.worker.worker",
        "streamtask.worker.recovery",
        "streamtask.query_service",
    ),
    "streamtask.client": ("streamtask.core", "streamtask.worker"),
    "streamtask.query_service": (
        "streamtask.worker.loop",
        "streamtask.worker.worker",
        "streamtask.execution.executor",
        "streamtask.handlers.registry",
    ),
}

# confluent_kafka is known in streamtask/kafka only, and to the demo's foreign service, which is one on purpose.
KAFKA_ROOMS = ("streamtask.kafka.", "streamtask.demo.other_service")

CORE_STDLIB = {
    *("__future__", "abc", "array", "bisect", "collections", "collections.abc", "contextlib", "dataclasses", "difflib"),
    *("enum", "functools", "heapq", "itertools", "math", "operator", "re", "string", "typing"),
}
CORE_CALLS_BANNED = {
    *("open", "print", "input", "eval", "exec", "breakpoint"),
    *("now", "utcnow", "today", "uuid1", "uuid4"),  # of datetime, date and uuid
}
QUEUES = {"Queue", "LifoQueue", "PriorityQueue", "SimpleQueue", "JoinableQueue"}

Rule = Callable[["Source"], Iterator[tuple[int, str]]]


class Source:
    """One Python file: its dotted name, text and syntax tree."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.lines = text.splitlines()
        self.tree = ast.parse(text, path)
        self.name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    def imports(self) -> Iterator[tuple[int, str, bool]]:
        """(line, dotted name, for types only); `from package import module` names the module where there is one."""
        typed = {
            child
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for child in ast.walk(node)
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name, node in typed
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: relative import"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    is_module = inner in FOLDERS or _file_of(inner).exists() or _file_of(f"{inner}.__init__").exists()
                    yield node.lineno, inner if is_module else str(node.module), node in typed

    def calls(self) -> Iterator[tuple[ast.Call, str]]:
        """(call, last part of the called name)."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield node, name


def _file_of(name: str) -> Path:
    return ROOT / (name.replace(".", "/") + ".py")


def _within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def layer_of(name: str) -> int | None:
    """Its folder's place in FOLDERS; None when the folder is not listed."""
    found = [folder for folder in FOLDERS if folder == name or (folder != "streamtask" and _within(name, folder))]
    return FOLDERS.index(found[0]) if found else None


# --- Rules ------------------------------------------------------------------------------------------------------------


def starts_with_a_docstring(source: Source) -> Iterator[tuple[int, str]]:
    if not ast.get_docstring(source.tree):
        yield 1, "no docstring: what does this module own, what stays true?"


def is_short(source: Source) -> Iterator[tuple[int, str]]:
    limit = TEST_LINES_MAX if source.path.rsplit("/", 1)[-1].startswith("test_") else MODULE_LINES_MAX
    if len(source.lines) > limit:
        yield len(source.lines), f"a module of more than {limit} lines"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name} has {length} lines, more than {FUNCTION_LINES_MAX}"


def imports_lower_layers_only(source: Source) -> Iterator[tuple[int, str]]:
    mine = layer_of(source.name)
    if mine is None:
        yield 1, f"{source.name} is in no folder of FOLDERS"
        return
    for line, name, _ in source.imports():
        if not _within(name, "streamtask"):
            continue
        theirs = layer_of(name)
        if theirs is None or theirs > mine:
            yield line, f"{source.name} imports {name}, which stands below it in FOLDERS"
        for room, strangers in STRANGERS.items():
            if _within(source.name, room) and any(_within(name, stranger) for stranger in strangers):
                yield line, f"{room} must not know {name}"


def keeps_confluent_kafka_in_its_folder(source: Source) -> Iterator[tuple[int, str]]:
    if source.name.startswith(KAFKA_ROOMS):
        return
    for line, name, _ in source.imports():
        if _within(name, "confluent_kafka"):
            yield line, "imports confluent_kafka outside streamtask/kafka"


def the_core_is_pure(source: Source) -> Iterator[tuple[int, str]]:
    if not _within(source.name, "streamtask.core"):
        return
    for line, name, _ in source.imports():
        if _within(name, "streamtask"):
            continue
        # A Random is handed in, seeded by whoever drives the core; its type may be named.
        if name == "random" and not re.search(r"\brandom\.(?!Random\b)", source.text):
            continue
        if name not in CORE_STDLIB:
            yield line, f"the core imports {name}: it has no clock, thread, task, log line or byte"
    for call, name in source.calls():
        if name in CORE_CALLS_BANNED:
            yield call.lineno, f"the core calls {name}()"


def takes_kafka_settings_from_settings(source: Source) -> Iterator[tuple[int, str]]:
    """Else a command forgets the security settings, as the demo beside a secured cluster once did."""
    if _within(source.name, "streamtask.config"):
        return
    for call, name in source.calls():
        if name == "KafkaSettings" and "# own broker" not in source.lines[call.lineno - 1]:
            yield call.lineno, "builds KafkaSettings by hand: call settings.kafka_for(role)"


# Underscored names that are public: of named tuples and enums, and where a library has no other name for it.
OFFERED = {"_asdict", "_replace", "_fields", "_make", "_value_"}
OFFERED_BY = {"sys", "os", "KafkaError", "_K"}
PRIVATE_OF_OTHERS = {
    "pyfuncitem._fixtureinfo": "pytest has no public way to tell which fixtures a test asks for",
}


def leaves_private_attributes_to_their_class(source: Source) -> Iterator[tuple[int, str]]:
    """`other._x` is read by the class that owns `_x` alone; `self`, `cls` and `super()` are its own."""

    def walk(node: ast.AST, own: frozenset[str]) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Attribute) and child.attr.startswith("_") and not child.attr.endswith("__"):
                base = ast.unparse(child.value)
                known = base in {"self", "cls", "super()"} or child.attr in own | OFFERED or base in OFFERED_BY
                if not known and f"{base}.{child.attr}" not in PRIVATE_OF_OTHERS:
                    yield child.lineno, f"{base}.{child.attr} is private to its class: give it a method with a name"
            yield from walk(child, _names_of(child) if isinstance(child, ast.ClassDef) else own)

    yield from walk(source.tree, frozenset())


def _names_of(kind: ast.ClassDef) -> frozenset[str]:
    """The private names that a class defines: its methods, its attributes, and what it sets on self."""
    inside = list(ast.walk(kind))
    defined = {node.name for node in inside if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assigned = {
        node.target.id for node in kind.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    on_self = {
        node.attr
        for node in inside
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    return frozenset(defined | assigned | on_self)


def keeps_every_task(source: Source) -> Iterator[tuple[int, str]]:
    """A task has a parent (a TaskGroup), or is kept somewhere; and it has a name."""
    groups = _task_groups(source)
    naked = {node.value for node in ast.walk(source.tree) if isinstance(node, ast.Expr)}
    for call, name in source.calls():
        if name == "ensure_future":
            yield call.lineno, "ensure_future: use a TaskGroup"
        if name != "create_task":
            continue
        base = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if base not in groups and call in naked:
            yield call.lineno, "a task that nobody keeps: it may vanish while it runs, and its error with it"
        if not any(keyword.arg == "name" for keyword in call.keywords):
            yield call.lineno, "a task without a name"


def _task_groups(source: Source) -> set[str]:
    """The expressions that are task groups, as far as the text tells."""
    out = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.withitem) and node.optional_vars is not None:
            if "TaskGroup(" in ast.unparse(node.context_expr):
                out.add(ast.unparse(node.optional_vars))
        elif isinstance(node, ast.Assign) and "TaskGroup(" in ast.unparse(node.value):
            out.update(ast.unparse(target) for target in node.targets)
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            if "TaskGroup" in ast.unparse(node.annotation):
                out.add(node.arg if isinstance(node, ast.arg) else ast.unparse(node.target))
    return out


def bounds_every_queue(source: Source) -> Iterator[tuple[int, str]]:
    """A queue has a maxsize, or its line says what else bounds it."""
    for call, name in source.calls():
        if name not in QUEUES or "# bounded by" in source.lines[call.lineno - 1]:
            continue
        size = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "maxsize")]
        if name == "SimpleQueue" or not size or ast.unparse(size[0]) in {"0", "-1", "None"}:
            yield call.lineno, f"{name} without a bound (maxsize, or a comment `# bounded by …`)"


def waits_for_events(source: Source) -> Iterator[tuple[int, str]]:
    """Tests wait for what they want to see. sleep(0) lets others run, and an hour never ends by itself: no waits."""
    for call, name in source.calls():
        if name == "sleep":
            seconds = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
            if not isinstance(seconds, int | float) or 0 < seconds < 60:
                yield call.lineno, "sleep: wait for the event, with a deadline"


# --- The files --------------------------------------------------------------------------------------------------------


@cache
def source_of(path: Path) -> Source:
    return Source(path.relative_to(ROOT).as_posix(), path.read_text())


def sources(*folders: str) -> list[Source]:
    """Parsed by the test that needs them, once per process: at import, every run of anything under tests/ would pay."""
    return [source_of(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def shipped() -> list[Source]:
    return sources("streamtask")


def everything() -> list[Source]:
    return sources("streamtask", "tests", "benchmarks", "examples")


def waiting() -> list[Source]:
    return [source for source in sources("tests") if not source.path.startswith(("tests/acceptance/", "tests/chaos/"))]


def breaches(rule: Rule, files: list[Source]) -> list[str]:
    return [f"{source.path}:{line}: {what}" for source in files for line, what in rule(source)]


RULES: list[tuple[Rule, Callable[[], list[Source]]]] = [
    (starts_with_a_docstring, everything),
    (is_short, everything),
    (imports_lower_layers_only, shipped),
    (keeps_confluent_kafka_in_its_folder, shipped),
    (the_core_is_pure, shipped),
    (takes_kafka_settings_from_settings, shipped),
    (leaves_private_attributes_to_their_class, shipped),
    (keeps_every_task, shipped),
    (bounds_every_queue, shipped),
    (waits_for_events, waiting),
]


@pytest.mark.parametrize(("rule", "files"), RULES, ids=[rule.__name__ for rule, _ in RULES])
def test_every_file_keeps_the_rule(rule: Rule, files: Callable[[], list[Source]]) -> None:
    found = breaches(rule, files())
    assert not found, "\n" + "\n".join(found)


def test_no_file_imports_itself_in_a_circle() -> None:
    """Every import counts, also those of a function and those for types only. The package's own names are loaded lazily."""
    graph: dict[str, set[str]] = {
        source.name: {name for _, name, _ in source.imports() if _within(name, "streamtask") and name != source.name}
        for source in shipped()
        if source.name != "streamtask"
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' → '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph.get(name, ())):
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_the_map_for_contributors_names_every_folder_in_the_order_of_imports() -> None:
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `streamtask/")]
    named = [name for row in rows for name in re.findall(r"`streamtask/(\w+)`", row.split("|")[1])]
    folders = [folder.removeprefix("streamtask.") for folder in FOLDERS if (ROOT / folder.replace(".", "/")).is_dir()]
    assert named == [folder for folder in folders if folder != "streamtask"]


TEXTS = ("*.py", "*.md", "*.toml", "*.yml", "*.yaml", "*.json", "*.avsc", "Makefile", ".ci/run", "Dockerfile")
# Absolute paths of one machine; a home folder in a text may be `~`.
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|home|Users)/\w")
PLACES = ("streamtask", "tests", "benchmarks", "examples", "docs", "schemas", ".")


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for place in PLACES:
        for pattern in TEXTS:
            for path in (ROOT / place).glob(pattern) if place == "." else (ROOT / place).rglob(pattern):
                for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                    if MACHINE_PATH.search(line):
                        found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n" + "\n".join(found)


# --- The rules see ----------------------------------------------------------------------------------------------------

PLANTED: list[tuple[Rule, str, str]] = [
    (starts_with_a_docstring, "streamtask/x.py", "import os\n"),
    (is_short, "streamtask/x.py", '"""x"""\n' + "a = 1\n" * MODULE_LINES_MAX),
    (is_short, "streamtask/x.py", '"""x"""\ndef f():\n' + "    a = 1\n" * FUNCTION_LINES_MAX),
    (imports_lower_layers_only, "streamtask/core/x.py", "from streamtask.kafka import admin\n"),
    (imports_lower_layers_only, "streamtask/core/x.py", "def f():\n    from streamtask import telemetry\n"),
    (imports_lower_layers_only, "streamtask/kafka/x.py", "import streamtask.core.engine\n"),
    (imports_lower_layers_only, "streamtask/audit/x.py", "from streamtask.core.ledger import Ledger\n"),
    (imports_lower_layers_only, "streamtask/nobody.py", '"""x"""\n'),
    (keeps_confluent_kafka_in_its_folder, "streamtask/client/x.py", "from confluent_kafka.admin import AdminClient\n"),
    (the_core_is_pure, "streamtask/core/x.py", "import time\n"),
    (the_core_is_pure, "streamtask/core/x.py", "import random\nx = random.random()\n"),
    (the_core_is_pure, "streamtask/core/x.py", "from random import choice\nx = random.choice([1])\n"),
    (the_core_is_pure, "streamtask/core/x.py", "def f(path):\n    return open(path)\n"),
    (takes_kafka_settings_from_settings, "streamtask/cli/x.py", "kafka = KafkaSettings(settings.bootstrap())\n"),
    (leaves_private_attributes_to_their_class, "streamtask/x.py", "def f(receipt):\n    return receipt._track\n"),
    (
        leaves_private_attributes_to_their_class,
        "streamtask/x.py",
        "class A:\n    def f(self, b):\n        b._x = self._y\n",
    ),
    (keeps_every_task, "streamtask/x.py", "def f(loop):\n    loop.create_task(g(), name='g')\n"),
    (keeps_every_task, "streamtask/x.py", "async def f():\n    t = asyncio.create_task(g())\n"),
    (keeps_every_task, "streamtask/x.py", "t = asyncio.ensure_future(g())\n"),
    (bounds_every_queue, "streamtask/x.py", "q = asyncio.Queue()\n"),
    (bounds_every_queue, "streamtask/x.py", "q = queue.Queue(maxsize=0)\n"),
    (bounds_every_queue, "streamtask/x.py", "q = SimpleQueue()\n"),
    (waits_for_events, "tests/x.py", "time.sleep(0.1)\n"),
    (waits_for_events, "tests/x.py", "async def f(s):\n    await asyncio.sleep(s)\n"),
]

KEPT: list[tuple[Rule, str, str]] = [
    (imports_lower_layers_only, "streamtask/projection/fold.py", "from streamtask.core import lifecycle\n"),
    (keeps_confluent_kafka_in_its_folder, "streamtask/kafka/x.py", "import confluent_kafka\n"),
    (the_core_is_pure, "streamtask/core/x.py", "import random\nfrom collections import deque\nr: random.Random\n"),
    (
        leaves_private_attributes_to_their_class,
        "streamtask/x.py",
        "class A:\n    def __init__(self, other):\n        self._x = other._x\n",
    ),
    (leaves_private_attributes_to_their_class, "streamtask/x.py", "row = row._replace(a=super()._b)\n"),
    (keeps_every_task, "streamtask/x.py", "async with TaskGroup() as g:\n    g.create_task(f(), name='f')\n"),
    (keeps_every_task, "streamtask/x.py", "self.task = loop.create_task(f(), name='f')\n"),
    (bounds_every_queue, "streamtask/x.py", "q = queue.Queue(maxsize=10)\nd = deque()\n"),
    (bounds_every_queue, "streamtask/x.py", "q = SimpleQueue()  # bounded by the slots\n"),
    (waits_for_events, "tests/x.py", "async def f():\n    await asyncio.sleep(0)\n    await asyncio.sleep(3_600)\n"),
]


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_breach_is_seen(rule: Rule, path: str, text: str) -> None:
    assert breaches(rule, [Source(path, text)])


@pytest.mark.parametrize(("rule", "path", "text"), KEPT)
def test_what_the_rule_allows_passes(rule: Rule, path: str, text: str) -> None:
    if text.startswith("async with"):
        text = "async def main():\n" + "".join(f"    {line}\n" for line in text.splitlines())
    assert breaches(rule, [Source(path, text)]) == []


def test_a_machine_path_is_seen_and_a_url_is_none() -> None:
    assert MACHINE_PATH.search("cd /" + "work/main")
    assert MACHINE_PATH.search('open("/' + 'home/me/x")')
    assert not MACHINE_PATH.search("http://127.0.0.1:8080/work/x")
    assert not MACHINE_PATH.search("~/.cache/streamtask")
