"""Calls a plain handler, and converts the end of any handler to the Outcome that the engine reads.

Always true: nothing here raises, whatever a handler returned or raised: a hostile `__str__`, a result that refers to itself,
SystemExit. Texts are bounded (model.py) and can be encoded in UTF-8.
"""

from __future__ import annotations

import asyncio
import traceback
from types import CoroutineType, TracebackType
from typing import Any

from streamtask import codec
from streamtask.domain.model import ERROR_TEXT_MAX, TRACEBACK_TEXT_MAX, Ending, ErrorCode, Outcome
from streamtask.domain.ports import StopReason
from streamtask.errors import DecodeError
from streamtask.execution.live_context import LiveContext
from streamtask.handlers.arguments import ParametersInvalid
from streamtask.handlers.options import Retry
from streamtask.handlers.registry import Handler, bounded

_OURS = (
    "streamtask.execution.executor",
    "streamtask.execution.event_loop",
    "streamtask.execution.process_pool",
    "streamtask.execution.outcomes",
)  # modules that call handlers
_RETURNED = Ending.RETURNED  # see core/shard.py
_FRAMES_MAX = 50  # innermost frames kept of one traceback


def of_call(handler: Handler, context: LiveContext) -> Outcome:
    """Call a plain function in this thread, validating its parameters right before."""
    try:
        context.reopen()
    except BaseException as error:  # noqa: BLE001 no memory for it: the attempt has failed, and may succeed later
        return broken_off(handler, context, error)
    try:
        args, kwargs = handler.arguments(context.request.parameters, ours=context.record.text is not None)
    except ParametersInvalid as error:
        return invalid(error)
    except BaseException as error:  # noqa: BLE001 validators are the user's code
        return unreadable(error)
    try:
        if handler.takes_context:
            return returned(handler.function(context, *args, **kwargs))
        return returned(handler.function(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 SystemExit and KeyboardInterrupt of a handler end it, not us
        return broken_off(handler, context, error)


def broken_off(handler: Handler, context: LiveContext, error: BaseException) -> Outcome:
    """The outcome of a handler that raised. If it was stopped, it counts as stopped: libraries turn a cancellation into their
    own errors.
    """
    reason = context.stop_reason
    if reason is None:
        return raised(error, handler.retry)
    return stopped(reason, None if isinstance(error, asyncio.CancelledError) else error)


def returned(value: Any) -> Outcome:
    """The outcome of a handler that returned `value`; None means no result (null is left out on the wire)."""
    if value is None:
        # A new one each time: outcomes are mutable and belong to the code that drains them.
        return Outcome(Ending.RETURNED)
    if isinstance(value, CoroutineType):
        value.close()  # otherwise Python warns, far from here, that it was never awaited
        return _not_serializable("the handler returned a coroutine; await it, or make the handler async def")
    try:
        return Outcome(_RETURNED, codec.encode_result(value))
    except DecodeError as error:
        return _not_serializable(str(error))
    except BaseException as error:  # noqa: BLE001 a value's own methods ran: whatever they raise, it is not JSON
        return _not_serializable(f"{_name(type(error))}: {_text(error)}")


def invalid(error: ParametersInvalid) -> Outcome:
    """The outcome for parameters that do not match; the handler was not called."""
    return Outcome(
        Ending.INVALID,
        code=ErrorCode.INVALID_PARAMETERS.value,
        error=bounded(str(error), ERROR_TEXT_MAX),
        retryable=False,
    )


def unreadable(error: BaseException) -> Outcome:
    """The outcome when code of the parameter model failed (a validator raised something other than ValueError)."""
    outcome = raised(error, Retry(attempts=1))
    outcome.ending = Ending.INVALID
    outcome.code = ErrorCode.INVALID_PARAMETERS.value
    outcome.retryable = False
    outcome.after_ms = None
    return outcome


def refused(code: ErrorCode, text: str) -> Outcome:
    """The outcome of an execution without a handler to call."""
    return Outcome(Ending.INVALID, code=code.value, error=bounded(text, ERROR_TEXT_MAX), retryable=False)


def stopped(reason: StopReason, error: BaseException | None = None) -> Outcome:
    """The outcome of a stopped execution. `error`: what it raised on the way, if that says more than that it was cancelled."""
    outcome = Outcome(Ending.STOPPED) if error is None else raised(error, Retry(attempts=1))
    outcome.ending = Ending.STOPPED
    outcome.code = ErrorCode.TIMEOUT.value if reason is StopReason.TIMEOUT else ErrorCode.CANCELLED.value
    outcome.error = outcome.error or f"told to stop: {reason.value}"
    outcome.retryable = True
    outcome.after_ms = None
    return outcome


def not_begun(reason: StopReason) -> Outcome:
    """The outcome of an execution that was stopped while it waited behind others."""
    outcome = stopped(reason)
    outcome.begun = False
    return outcome


def abandoned(reason: StopReason, seconds: float) -> Outcome:
    """The outcome of a coroutine that runs on despite its cancel. No other attempt: it would run beside this one."""
    outcome = stopped(reason)
    outcome.error = f"it went on for {seconds:g} s after it was cancelled, and was abandoned"
    outcome.retryable = False
    return outcome


def raised(error: BaseException, retry: Retry) -> Outcome:
    """The outcome of a handler that raised."""
    try:
        retryable, after_ms = retry.decide(error)
    except BaseException:  # noqa: BLE001 an exception class's own __instancecheck__ or attributes ran
        retryable, after_ms = True, None
    name = _name(type(error))
    return Outcome(
        Ending.RAISED,
        code=ErrorCode.HANDLER_ERROR.value,
        error=_text(error) or name,
        exception=name,
        traceback=_traceback(error),
        retryable=retryable,
        after_ms=after_ms,
    )


def _not_serializable(text: str) -> Outcome:
    return Outcome(
        Ending.RAISED,
        code=ErrorCode.NOT_SERIALIZABLE.value,
        error=bounded(text, ERROR_TEXT_MAX),
        retryable=False,
    )


def _name(kind: type[BaseException]) -> str:
    module = kind.__module__
    return bounded(kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}", ERROR_TEXT_MAX)


def _text(error: BaseException) -> str:
    try:
        return bounded(str(error), ERROR_TEXT_MAX)
    except BaseException as other:  # noqa: BLE001 the exception's own __str__ ran
        return f"(its text cannot be had: __str__ raised {type(other).__name__})"


def _traceback(error: BaseException) -> str | None:
    try:
        formatted = traceback.TracebackException(
            type(error), error, _from_handler(error.__traceback__), limit=-_FRAMES_MAX, compact=True
        )
        return bounded("".join(formatted.format()), TRACEBACK_TEXT_MAX, keep_end=True)
    except BaseException:  # noqa: BLE001 __str__, __repr__ or __notes__ of the exception or its causes ran
        return None


def _from_handler(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without streamtask's own frames at its top."""
    while trace is not None and trace.tb_next is not None:
        if not trace.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
            break
        trace = trace.tb_next
    return trace
