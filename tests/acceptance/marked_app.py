"""Handlers that return and raise what they were given: nothing of it may be in a log (test_payload)."""

from __future__ import annotations

from pydantic import BaseModel, field_validator

from streamtask import App, Context, Retry

app = App("marked")


class Narrow(BaseModel):
    number: int
    text: str

    @field_validator("text")
    @classmethod
    def never(cls, value: str) -> str:
        raise ValueError(f"not this one: {value}")


@app.task
async def echo(ctx: Context, text: str) -> str:
    ctx.progress(0.5, text)
    return text


@app.task("fails", retry=Retry(attempts=2, backoff=0.0))
async def fails(ctx: Context, text: str) -> None:
    raise ValueError(text)


@app.task
def fails_in_a_thread(ctx: Context, text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as error:
        raise RuntimeError(f"because of {text}") from error


@app.task("fails_in_a_child", executor="process")
def fails_in_a_child(ctx: Context, text: str) -> None:
    raise ValueError(text)


@app.task
async def narrow(ctx: Context, params: Narrow) -> None: ...


@app.task
async def odd(ctx: Context, text: str) -> set[str]:
    return {text, object()}  # type: ignore[arg-type]


@app.task("slow", timeout=0.2)
async def slow(ctx: Context, text: str) -> None:
    import asyncio

    await asyncio.Event().wait()
