"""Shell completion beyond commands and options: apps, task types, template names.

They are read from the Python files near the working directory without importing them: completion must be fast, and pressing
Tab must not run user code. When anything goes wrong, there is simply no completion.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

FILES_MAX, BYTES_MAX = 200, 200_000
LEVELS = ("*.py", "*/*.py", "*/*/*.py")
SKIPPED = {"node_modules", "site-packages", "build", "dist", "venv"}


def app_names(incomplete: str) -> list[str]:
    """`app:app`, `package.module:app`: module-level names that are an App(...)."""
    found = []
    for path, tree in _modules():
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            value = node.value if isinstance(node, ast.Assign) else None
            if isinstance(value, ast.Call) and _last(value.func) == "App":
                found += [f"{module}:{target.id}" for target in targets if isinstance(target, ast.Name)]
    return sorted(name for name in found if name.startswith(incomplete))


def task_types(incomplete: str) -> list[str]:
    """Names of functions under `@app.task` and `@app.task("name")`."""
    found: set[str] = set()
    for _, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.update(name for one in node.decorator_list if (name := _task_type(one, node.name)))
    return sorted(name for name in found if name.startswith(incomplete))


def _task_type(decorator: ast.expr, function: str) -> str | None:
    call = decorator if isinstance(decorator, ast.Call) else None
    target = call.func if call is not None else decorator
    if not isinstance(target, ast.Attribute) or target.attr != "task":
        return None
    first = call.args[0] if call is not None and call.args else None
    if first is None:
        return function
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _last(expression: ast.expr) -> str:
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    here = Path()
    paths = itertools.chain.from_iterable(sorted(here.glob(level)) for level in LEVELS)
    for path in itertools.islice((one for one in paths if not _skipped(one)), FILES_MAX):
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= BYTES_MAX else ""
            if "streamtask" in text or ".task" in text:
                yield path, ast.parse(text)
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue


def _skipped(path: Path) -> bool:
    return any(part.startswith(".") or part in SKIPPED for part in path.parts)
