"""A handler's own spans inside those of streamtask: one trace from the caller to the last attempt.

    pip install 'streamtask-kafka[otel]' opentelemetry-sdk
    streamtask worker app:app

The provider is set where the app is: so it is there in the worker and in each child of a process handler. It prints its
spans; put your exporter in the place of ConsoleSpanExporter.
"""

from __future__ import annotations

import asyncio

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from streamtask import App, Context, Retry

provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)

app = App("shop")
tracer = trace.get_tracer("shop")


@app.task(retry=Retry(attempts=2, backoff=0.1))
async def charge(ctx: Context, amount: int) -> str:
    with tracer.start_as_current_span("ask the bank"):
        await asyncio.sleep(0.01)
        if ctx.attempt == 1:
            raise ConnectionError("the bank does not answer")
        return f"{amount} charged"


@app.task(executor="process")
def invoice(pages: int) -> int:
    with tracer.start_as_current_span("print"):
        return pages
