"""OpenTelemetry spans: one for each request that is sent, one for each attempt that runs. No other module uses the library.

    Sending    PRODUCER, `send <task_type>`: its context goes into the headers of the request record
    Attempt    CONSUMER, `process <task_type>`: a child of the request's context, current while the handler runs

The user sets a provider (in the app's module, or by `opentelemetry-instrument`). Without one, no span is made and nothing
is imported: setting a provider imports `opentelemetry.trace`, so looking into sys.modules is enough (0.1 µs).

Status events carry the context of the request, not that of an attempt: docs/decisions/0011. A span never costs a task: an
exception from a provider is logged once, and the task continues without a span.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from streamtask.config import TopicNames
from streamtask.domain.identity import TRACE_HEADERS
from streamtask.domain.model import Ending, Outcome
from streamtask.domain.ports import Start, StopReason

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

P = ParamSpec("P")
R = TypeVar("R")
Headers = Sequence[tuple[str, bytes]]

_MODULE = "opentelemetry.trace"
COMPLAINTS_MAX = 256  # number of different errors that are remembered as logged

log = logging.getLogger("streamtask.tracing")

if "OTEL_PYTHON_TRACER_PROVIDER" in os.environ:  # the API itself loads that provider on first use
    with contextlib.suppress(ImportError):
        import opentelemetry.trace  # noqa: F401


def _harmless(function: Callable[P, R]) -> Callable[P, R | None]:
    """Return None instead of raising."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 providers, samplers and processors are the user's code
            _complain(function.__qualname__, f"{type(error).__name__}: {error}")
            return None

    return guarded


@functools.lru_cache(maxsize=COMPLAINTS_MAX)
def _complain(what: str, error: str) -> None:
    """Logs each error once."""
    log.warning("%s failed, tasks go on without spans: %s", what, error)


def active() -> bool:
    """True when a provider is set."""
    return _MODULE in sys.modules and tracer() is not None


@_harmless
def tracer() -> Tracer | None:
    """The tracer; None when there is no provider."""
    module = sys.modules.get(_MODULE)
    if module is None:
        return None
    provider = module.get_tracer_provider()
    if isinstance(provider, module.ProxyTracerProvider | module.NoOpTracerProvider):
        return None
    made: Tracer = _tracer_of(provider)
    return made


@functools.lru_cache(maxsize=4)
def _tracer_of(provider: Any) -> Any:
    return provider.get_tracer("streamtask")


def current_trace_id() -> str | None:
    """The trace id of the current span, as 32 hex digits."""
    module = sys.modules.get(_MODULE)
    if module is None:
        return None
    held = module.get_current_span().get_span_context()
    return f"{held.trace_id:032x}" if held.is_valid else None


def _context_in(headers: Iterable[tuple[str, bytes]], within: Context | None = None) -> Context:
    """`within` (None: an empty one) with the span that W3C headers name, if any; of equal headers the last counts."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name: held.decode("latin-1") for name, held in headers if name in TRACE_HEADERS}
    return TraceContextTextMapPropagator().extract(carrier, Context() if within is None else within)


def _headers_of(context: Context) -> list[tuple[str, bytes]]:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context)
    return [(name, held.encode("latin-1")) for name, held in carrier.items()]


def _fail(span: Span, code: str, error: str | None) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR, error))


# --- Sending ----------------------------------------------------------------------------------------------------------


class Sending:
    """The span of a request that is being sent. headers: those of its record, with the context of this span."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: Span, headers: list[tuple[str, bytes]]) -> None:
        self._span = span
        self.headers = headers

    @_harmless
    def end(self, partition: int = -1, offset: int = -1, error: str | None = None) -> None:
        """partition, offset: the position of the record; error: why it was not acknowledged."""
        if error is not None:
            _fail(self._span, "not_acknowledged", error)
        elif offset >= 0:
            self._span.set_attribute("messaging.destination.partition.id", str(partition))
            self._span.set_attribute("messaging.kafka.offset", offset)
        self._span.end()


@_harmless
def sending(
    task_type: str, task_id: str, topic: str, headers: Headers | None, *, from_http: bool = False
) -> Sending | None:
    """The span of a request that is about to be sent; None when there is no provider.

    headers    of the record. If they contain a trace context, it is the caller's: it stays, and no span is made
    from_http  the headers came from another service over HTTP: the span is a child of theirs, unless one is current
    """
    made = tracer()
    if made is None:
        return None
    from opentelemetry import context as contexts
    from opentelemetry.trace import SpanKind, get_current_span, set_span_in_context

    given = list(headers or ())
    here = contexts.get_current()
    if any(name == "traceparent" for name, _ in given):
        if not from_http:
            return None
        if not get_current_span(here).get_span_context().is_valid:
            here = _context_in(given, here)
    span = made.start_span(
        f"send {task_type}",
        here,
        SpanKind.PRODUCER,
        {
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
            "messaging.message.id": task_id,
            "streamtask.task_type": task_type,
        },
    )
    own = [item for item in given if item[0] not in TRACE_HEADERS]
    return Sending(span, [*own, *_headers_of(set_span_in_context(span, here))])


# --- Running ----------------------------------------------------------------------------------------------------------


class Attempt:
    """One execution of a handler. context: the context that it runs in, with this span as the current one."""

    __slots__ = ("_held", "_span", "context")

    def __init__(self, span: Span, within: Context) -> None:
        from opentelemetry import context as contexts
        from opentelemetry.trace import set_span_in_context

        self._span = span
        self._held = set_span_in_context(span, within)
        self.context = contextvars.Context()
        self.context.run(contexts.attach, self._held)

    @property
    def carried(self) -> Headers:
        """Its context as headers, which go over the pipe to a child (`attach`)."""
        return _headers_of(self._held)

    @_harmless
    def end(self, outcome: Outcome, stopped: StopReason | None) -> None:
        """stopped: why it had to stop, if it was."""
        span, ending = self._span, outcome.ending
        if ending is Ending.STOPPED and stopped is not StopReason.TIMEOUT:
            span.set_attribute("streamtask.stopped", "cancel" if stopped is None else stopped.value)
        elif ending is not Ending.RETURNED:
            _fail(span, outcome.code, outcome.error)
            if outcome.exception is not None:
                attributes = {"exception.type": outcome.exception, "exception.message": outcome.error}
                if outcome.traceback is not None:
                    attributes["exception.stacktrace"] = outcome.traceback
                span.add_event("exception", attributes)
        span.end()


class Attempts:
    """Creates the spans of one worker's attempts."""

    def __init__(self, names: TopicNames) -> None:
        self._topics = names.requests
        self._group = names.group

    def beginner(self) -> Callable[[Start], Attempt | None] | None:
        """`begin`, or None when there is no provider: called once per batch."""
        return self.begin if active() else None

    @_harmless
    def begin(self, start: Start) -> Attempt | None:
        """The span of this attempt: a child of the context in its request's headers, or else the root of a trace."""
        made = tracer()
        record = start.record
        if made is None or record.request is None:
            return None
        from opentelemetry.trace import SpanKind

        within = _context_in(record.headers)
        task_type = record.request.task_type
        span = made.start_span(
            f"process {task_type}",
            within,
            SpanKind.CONSUMER,
            {
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": self._topics[record.band],
                "messaging.destination.partition.id": str(record.partition),
                "messaging.consumer.group.name": self._group,
                "messaging.kafka.offset": record.offset,
                "messaging.message.id": record.task_id,
                "streamtask.task_type": task_type,
                "streamtask.attempt": start.attempt,
                "streamtask.shard": record.partition,
            },
        )
        return Attempt(span, within)


@_harmless
def attach(carried: Headers) -> Any:
    """In a child process: makes the attempt's span, which lives in the worker, the current one until `detach`. None: this
    process has no provider."""
    if _MODULE not in sys.modules:
        return None
    from opentelemetry import context as contexts

    return contexts.attach(_context_in(carried))


@_harmless
def detach(token: Any) -> None:
    from opentelemetry import context as contexts

    contexts.detach(token)


@_harmless
def flush(timeout_s: float) -> None:
    """Export what was recorded. Call it before an exit that runs no exit handlers."""
    if active():
        provider: Any = sys.modules[_MODULE].get_tracer_provider()
        if hasattr(provider, "force_flush"):
            provider.force_flush(int(timeout_s * 1_000))
