"""What a type checker must say about tasks: tests/unit/test_typing.py runs mypy over this file.

Every line that is wrong on purpose carries an ignore of exactly its error; an ignore that is not needed is an error
itself (warn_unused_ignores). So this file passes only if right uses pass and wrong ones are refused.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, assert_type

from streamtask.app import App, AsyncTask, SyncTaskHandle, TaskHandle
from streamtask.client import AsyncClient, Client, Receipt, SyncReceipt
from streamtask.config import Settings
from streamtask.domain.options import SubmitOptions
from streamtask.handlers.options import Retry, TaskOptions
from streamtask.handlers.registry import Context


@dataclass
class Census:
    path: str


app = App("typing")
Settings()  # every setting has a default


@app.task
def bare(path: str, limit: int = 10) -> int:
    return len(path) + limit


@app.task("with_context", timeout=30, retry=Retry(attempts=3), concurrency=4, priority=5, executor=None)
def with_context(ctx: Context, params: Census) -> Census:
    ctx.progress(0.65, "half way")
    return params


@app.task
async def bare_async(ctx: Context, path: str, *, deep: bool = False) -> list[str]:
    return [path]


@app.task(priority=9)
async def async_without_context(path: str) -> Census:
    return Census(path)


assert_type(bare("x"), int)
assert_type(bare.__name__, str)
assert_type(with_context(Census("x")), Census)
assert_type(with_context(Context.fake(), Census("x")), Census)


async def submits() -> None:
    assert_type(await bare.submit("x", limit=3), TaskHandle[int])
    assert_type(await (await with_context.options(priority=8).submit(Census("x"))).result(timeout=60), Census)
    assert_type(with_context.submit_sync(Census("x")), SyncTaskHandle[Census])
    assert_type(with_context.submit_sync(params=Census("x")).result(), Census)
    assert_type(await (await bare_async.submit("x", deep=True)).result(), list[str])
    assert_type(await bare_async("x", deep=True), list[str])
    assert_type(await bare_async(Context.fake(), "x"), list[str])
    assert_type(await (await async_without_context.options(ordering_key="k").submit("x")).result(), Census)

    await bare.submit(1)  # type: ignore[arg-type]
    await bare.submit()  # type: ignore[call-arg]
    await bare.submit("x", limits=3)  # type: ignore[call-arg]
    await bare.submit("x", priority=3)  # type: ignore[call-arg]
    await with_context.submit(Context.fake(), Census("x"))  # type: ignore[call-arg, arg-type]
    await with_context.submit("x")  # type: ignore[arg-type]
    await with_context.options(priority=8).submit(Census("x"), 1)  # type: ignore[call-arg]
    with_context.submit_sync("x")  # type: ignore[arg-type]
    await bare_async.submit("x", True)  # type: ignore[call-arg]
    await bare_async.submit("x", deep="yes")  # type: ignore[arg-type]
    await async_without_context.submit(b"x")  # type: ignore[arg-type]
    bare.options(priorty=8)  # type: ignore[call-arg]
    bare.options(labels=["x"])  # type: ignore[arg-type]
    bare.options(headers={"traceparent": "x"})  # type: ignore[call-arg]
    text: str = await (await bare.submit("x")).result()  # type: ignore[assignment]
    print(text)


async def by_a_client(client: AsyncClient, plain: Client) -> None:
    assert_type(await client.submit("census", {"path": "x"}, priority=8), Receipt)
    assert_type(plain.submit("census", {"path": "x"}, priority=8), SyncReceipt)
    assert_type(plain.submit_request({"task_type": "census"}).result(timeout=60), Any)
    plain.submit()  # type: ignore[call-arg]
    plain.submit("census", priority="8")  # type: ignore[arg-type]
    plain.submit("census", priorty=8)  # type: ignore[call-arg]
    plain.submit("census", {}, None)  # type: ignore[call-arg]
    await client.submit("census", {}, priorty=8)  # type: ignore[call-arg]
    await client.submit("census", {}, timeout="9")  # type: ignore[arg-type]
    await client.submit("census", {}, timeout_seconds=9)  # type: ignore[call-arg]
    options: SubmitOptions = {"priority": 8, "labels": {"from": "shop"}, "headers": {"traceparent": "x"}}
    assert_type(await client.submit("census", **options), Receipt)
    misspelt: SubmitOptions = {"priorty": 8}  # type: ignore[typeddict-unknown-key]
    plain.submit("census", **misspelt)
    plain.submit_request("census")  # type: ignore[arg-type]


app.task("census", timeot=30)  # type: ignore[call-overload]
app.task("census", timeout="30")  # type: ignore[call-overload]
app.task("census", retry=3)  # type: ignore[call-overload]
task_options: TaskOptions = {"timeout": 30, "retry": Retry(attempts=3), "executor": "process", "memory_mb": 100}
app.task("census_in_a_child", **task_options)

asynchronous: AsyncTask[[str], Census] = async_without_context

if __name__ == "__main__":
    asyncio.run(submits())
