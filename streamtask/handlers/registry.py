"""The task types of an app: which function runs, how it is retried and limited, and the context that it runs with.

It holds Handler, Registry and Context (a handler's view of its execution). The options of a task type are in options.py.

Always true: a handler is checked completely at registration, so an invalid one stops the worker before it starts
any task; `ctx.progress` never blocks and can be called from any thread; after an execution has ended its context
reports nothing more.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Unpack

import structlog

from streamtask.domain import model
from streamtask.domain.identity import Origin, new_task_id, trace_id
from streamtask.domain.model import BANDS, TASK_TYPE_MAX, Band, HandlerKind, RequestRecord, TaskPolicy, TaskRequest
from streamtask.domain.options import refuse_unknown
from streamtask.domain.ports import Start, StopReason
from streamtask.errors import ConfigError
from streamtask.handlers.arguments import Arguments, Binding, fresh
from streamtask.handlers.options import LOST_MAX, ONCE, HandlerOptions, Retry, check_options, is_number
from streamtask.observability.tracing import current_trace_id
from streamtask.public import public

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]  #: entered once per worker; yields ctx.state

_KINDS = ("async", "thread", "process")


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One task type: its function and its limits (seconds).

    timeout      per attempt, when the request does not set one; None: no limit
    timeout_max  the longest timeout that a request may set
    concurrency  executions of this type at once on one worker
    lost_max     deaths charged to a task, after which it is FAILED `worker_lost`; 0: never
    memory_mb    process handlers: memory of an execution, in addition to what its child holds after loading the app
    max_tasks    process handlers: a child is replaced after this many executions of the type
    """

    name: str
    function: Callable[..., Any]
    kind: HandlerKind
    binding: Binding
    is_async: bool = False
    retry: Retry = ONCE
    timeout: float | None = None
    timeout_max: float | None = None
    concurrency: int | None = None
    lost_max: int = LOST_MAX
    memory_mb: int | None = None
    max_tasks: int | None = None

    @property
    def takes_context(self) -> bool:
        return self.binding.takes_context

    @property
    def result_type(self) -> Any:
        """The return annotation; Any when there is none."""
        return self.binding.result_type

    def __str__(self) -> str:
        """`resize (thread, timeout 30 s, 3 attempts)`: the task type and what is not the default."""
        said = [self.kind.value]
        said += [f"timeout {self.timeout:g} s"] if self.timeout is not None else []
        said += [f"{self.retry.attempts} attempts"] if self.retry.attempts > 1 else []
        said += [f"{self.concurrency} at once"] if self.concurrency is not None else []
        return f"{self.name} ({', '.join(said)})"

    def policy(self) -> TaskPolicy:
        """What the engine needs to know."""
        return TaskPolicy(
            kind=self.kind,
            timeout_ms=_ms(self.timeout),
            timeout_max_ms=_ms(self.timeout_max),
            retry=self.retry.policy(),
            concurrency=self.concurrency,
            lost_max=self.lost_max,
        )

    def arguments(self, parameters: dict[str, Any] | None, *, ours: bool = False) -> Arguments:
        """The validated arguments of one attempt. Raises arguments.ParametersInvalid.

        ours  the parameters were decoded for this attempt alone, so that no copy is needed
        """
        # A handler may change its arguments; the next attempt must not see the changes.
        return self.binding.bind(fresh(parameters) if self.retry.attempts > 1 and not ours else parameters)


def make_handler(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    names: Mapping[str, Any] | None = None,
    **options: Unpack[HandlerOptions],
) -> Handler:
    """A checked Handler. `names`: further names for its annotations. Raises ConfigError."""
    refuse_unknown("make_handler()", options, HandlerOptions)
    name = name if name is not None else getattr(function, "__name__", "")
    if not isinstance(name, str) or not 1 <= len(name) <= TASK_TYPE_MAX:
        raise ConfigError(f"task type {name!r}: must be a name of 1 to {TASK_TYPE_MAX} characters.")
    check_options(name, options)
    kind, is_async = _kind(name, function, options.get("executor"))
    return Handler(
        name=name,
        function=function,
        kind=kind,
        is_async=is_async,
        binding=Binding(name, function, Context, names),
        retry=options.get("retry") or ONCE,
        timeout=options.get("timeout"),
        timeout_max=options.get("timeout_max"),
        concurrency=options.get("concurrency"),
        lost_max=options.get("lost_max", LOST_MAX),
        memory_mb=options.get("memory_mb"),
        max_tasks=options.get("max_tasks"),
    )


class Registry(Mapping[str, Handler]):
    """The handlers of an app by task type."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, handler: Handler) -> None:
        """Raises ConfigError when the task type is already registered."""
        there = self._handlers.get(handler.name)
        if there is not None:
            raise ConfigError(
                f"task type {handler.name!r} is registered twice: {_place(there.function)} and "
                f"{_place(handler.function)}. Rename one of them: @app.task('...')."
            )
        self._handlers[handler.name] = handler

    def policies(self) -> dict[str, TaskPolicy]:
        """What the engine needs to know about each task type."""
        return {name: handler.policy() for name, handler in self._handlers.items()}

    def __getitem__(self, name: str) -> Handler:
        return self._handlers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)


@public
class Context:
    """A handler's view of its execution: the request, the attempt, the limits, and a way to report progress.

    task_id    canonical
    attempt    counts from 1, different for every execution: a fencing token for the handler's own writes
    request    the request as it was sent
    state      the value that the app's lifespan yielded
    """

    __slots__ = (
        "_bands",
        "_ended",
        "_log",
        "_reporter",
        "_started_s",
        "_stopped",
        "_timeout_ms",
        "attempt",
        "record",
        "request",
        "state",
        "token",
    )

    request: TaskRequest

    def __init__(
        self,
        start: Start,
        *,
        started_s: float,
        reporter: Callable[[Context, float, str | None], None],
        state: Any = None,
        bands: tuple[Band, ...] = BANDS,
    ) -> None:
        self.token = start.token
        self.record = start.record
        self.attempt = start.attempt
        if start.record.request is not None:
            self.request = start.record.request
        self.state = state
        self._timeout_ms = start.timeout_ms
        self._started_s = started_s
        self._reporter = reporter
        self._bands = bands
        self._stopped: StopReason | None = None
        self._ended = False
        self._log: Any = None

    @property
    def task_id(self) -> str:
        return self.record.task_id

    @property
    def priority(self) -> int:
        """The priority of the request, else the middle of its band."""
        return self.record.priority

    @property
    def headers(self) -> dict[str, bytes]:
        """The headers of the request record; the last one where a name occurs twice."""
        return dict(self.record.headers)

    @property
    def origin(self) -> str:
        """The position of the request record, e.g. `high-3@12345`."""
        record = self.record
        return str(Origin(self._bands[record.band].name, record.partition, record.offset))

    @property
    def idempotency_key(self) -> str | None:
        """The idempotency key of the request; streamtask does not deduplicate by it yet."""
        return self.request.idempotency_key

    @property
    def deadline(self) -> float | None:
        """The time.monotonic() at which this attempt times out; None: never."""
        return None if self._timeout_ms is None else self._started_s + self._timeout_ms / 1_000

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, 0 after it; None: no limit."""
        deadline = self.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """True once this execution must stop (cancel, timeout, or its shard moves to another worker)."""
        return self._stopped is not None

    def check_cancelled(self) -> None:
        """Raise asyncio.CancelledError once this execution must stop; call it in loops of synchronous functions.

        CancelledError is not an Exception, so `except Exception` around the loop does not swallow it.
        """
        if self._stopped is not None:
            raise asyncio.CancelledError(f"told to stop: {self._stopped.value}")

    @property
    def log(self) -> Any:
        """A structlog logger that carries task_id, task_type, attempt, shard, and trace_id if there is a trace."""
        if self._log is None:
            trace = trace_id(self.record.headers) or current_trace_id()
            self._log = structlog.get_logger("streamtask.task").bind(
                task_id=self.task_id,
                task_type=self.request.task_type,
                attempt=self.attempt,
                shard=self.record.partition,
                **({} if trace is None else {"trace_id": trace}),
            )
        return self._log

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Report progress. Never blocks, and can be called from any thread; the latest report wins.

        fraction  0.0..1.0; values outside are clamped
        message   cut at 1,000 characters

        Raises ValueError when it is not a finite number.
        """
        if not is_number(fraction):
            raise ValueError(f"progress({fraction!r}): must be a finite number from 0.0 to 1.0")
        if not self._ended:
            self._reporter(self, min(1.0, max(0.0, float(fraction))), None if message is None else _clean(message))

    @classmethod
    def fake(
        cls,
        parameters: dict[str, Any] | None = None,
        *,
        task_type: str = "fake",
        request: TaskRequest | None = None,
        task_id: str | None = None,
        attempt: int = 1,
        timeout: float | None = None,
        headers: Mapping[str, bytes] | None = None,
        state: Any = None,
        cancelled: bool = False,
    ) -> FakeContext:
        """A context for tests: pass it as the first argument of the handler, then look at its `reports`."""
        request = request or TaskRequest(task_type=task_type, parameters=parameters)
        record = RequestRecord(
            band=1,
            partition=0,
            offset=0,
            timestamp_ms=0,
            task_id=task_id or request.task_id or new_task_id(),
            request=request,
            priority=request.priority or model.PRIORITY_DEFAULT,
            created_ms=0,
            value=b"",
            headers=tuple((headers or {}).items()),
        )
        return FakeContext(Start(0, record, attempt, HandlerKind.ASYNC, _ms(timeout)), state, cancelled)


@public
class FakeContext(Context):
    """Context.fake(): records what the handler reports. reports: [(fraction, message), ...], oldest first."""

    __slots__ = ("reports",)

    def __init__(self, start: Start, state: Any, cancelled: bool) -> None:
        super().__init__(start, started_s=time.monotonic(), reporter=FakeContext._keep, state=state)
        self.reports: list[tuple[float, str | None]] = []
        if cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Tell the handler to stop."""
        self._stopped = StopReason.CANCEL

    def _keep(self: Context, fraction: float, message: str | None) -> None:
        assert isinstance(self, FakeContext)
        self.reports.append((fraction, message))


def _kind(name: str, function: Callable[..., Any], executor: str | None) -> tuple[HandlerKind, bool]:
    """Returns (the handler's kind, whether it is an `async def`)."""
    if executor is not None and executor not in _KINDS:
        raise ConfigError(f"handler {name!r}: executor={executor!r} must be 'async', 'thread', 'process', or omitted.")
    if not callable(function):
        raise ConfigError(f"handler {name!r}: {function!r} is not a function.")
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    innermost = inspect.unwrap(target)
    if inspect.isgeneratorfunction(innermost) or inspect.isasyncgenfunction(innermost):
        raise ConfigError(f"handler {name!r}: a generator has no single result. Return it, and report ctx.progress().")
    is_async = inspect.iscoroutinefunction(target)
    if inspect.iscoroutinefunction(innermost) and not is_async:
        raise ConfigError(
            f"handler {name!r}: a non-async decorator wraps an async function. Make its wrapper async def."
        )
    if executor == "process":
        return HandlerKind.PROCESS, is_async
    wanted = HandlerKind.ASYNC if is_async else HandlerKind.THREAD
    if executor is not None and executor != wanted.value:
        written = "async def" if is_async else "a plain def"
        raise ConfigError(f"handler {name!r}: it is {written}, which executor={executor!r} cannot run.")
    return wanted, is_async


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _ms(seconds: float | None) -> int | None:
    # Never 0, which would mean something else: a timeout of 0.1 ms is a timeout.
    return None if seconds is None else max(1, round(seconds * 1_000))


def _clean(message: Any) -> str:
    return bounded(message if type(message) is str else str(message), model.MESSAGE_TEXT_MAX)


def bounded(text: str, characters_max: int, *, keep_end: bool = False) -> str:
    """`text` cut to its limit and valid as UTF-8: lone surrogates (undecodable file names) are escaped."""
    if len(text) > characters_max:
        text = "…" + text[1 - characters_max :] if keep_end else text[: characters_max - 1] + "…"
    if text.isascii():
        return text
    said = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return said[-characters_max:] if keep_end else said[:characters_max]
