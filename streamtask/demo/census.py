"""The app of the demo: one task counts one file. Run it yourself: `streamtask worker streamtask.demo.census:app`."""

from __future__ import annotations

import ast
import asyncio
import hashlib
from pathlib import Path

from pydantic import BaseModel

from streamtask import App, Context, GiveUp, Retry

app = App("census")

LINES_A_REPORT = 2_000


class CensusParams(BaseModel):
    path: str


class FileCensus(BaseModel):
    """What is known of one file; the last three fields only for Python files that parse."""

    path: str
    bytes: int
    lines: int
    words: int
    sha256: str
    functions: int | None = None
    classes: int | None = None
    imports: int | None = None


@app.task("file_census", timeout=30, retry=Retry(attempts=3, backoff=0.2))
def file_census(ctx: Context, params: CensusParams) -> FileCensus:
    """A plain function: it runs in a thread."""
    path = Path(params.path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise GiveUp(f"there is no file {path}") from None  # another attempt would not find it either
    lines = data.splitlines()
    words = 0
    for number, line in enumerate(lines):
        words += len(line.split())
        if number % LINES_A_REPORT == LINES_A_REPORT - 1:
            ctx.check_cancelled()
            ctx.progress(number / len(lines), f"{number + 1} of {len(lines)} lines")
    found = FileCensus(
        path=str(path), bytes=len(data), lines=len(lines), words=words, sha256=hashlib.sha256(data).hexdigest()
    )
    return _with_syntax(found, data) if path.suffix == ".py" else found


def _with_syntax(found: FileCensus, data: bytes) -> FileCensus:
    try:
        nodes = list(ast.walk(ast.parse(data)))
    except (SyntaxError, ValueError, RecursionError):
        return found  # a file with syntax errors on purpose (the standard library's tests have some)
    return found.model_copy(
        update={
            "functions": sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
            "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
            "imports": sum(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes),
        }
    )


@app.task("flaky_census", retry=Retry(attempts=3, backoff=0.2))
def flaky_census(ctx: Context, params: CensusParams) -> int:
    """Fails on its first attempt, succeeds on the second."""
    if ctx.attempt == 1:
        raise OSError("the disk is busy (on purpose)")
    return Path(params.path).stat().st_size


@app.task("patient_census", timeout=0.5)
async def patient_census(params: CensusParams) -> str:
    """Takes far longer than its timeout allows: FAILED, `timeout`."""
    await asyncio.sleep(60)
    return params.path


@app.task("endless_census")
async def endless_census(ctx: Context, params: CensusParams) -> None:
    """Counts until it is cancelled."""
    turn = 0
    while True:
        turn += 1
        ctx.progress(min(0.9, turn / 100), f"{params.path}: once more")
        await asyncio.sleep(0.1)
