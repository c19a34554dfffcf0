"""The options of a task type, and the rule for retrying a failed attempt.

`@app.task(timeout=30, retry=Retry(attempts=3))`: the options are declared here and nowhere else; App.task and make_handler
pass them on. Always true: an option that cannot work is refused at registration; the error names the option and its value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from streamtask.domain import model
from streamtask.domain.model import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN
from streamtask.errors import ConfigError, GiveUp, RetryLater
from streamtask.public import public

ATTEMPTS_MAX = 1_000  # the ledger counts failures up to 1,023
LOST_MAX = 3


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@public
@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and after what delay in seconds, a failed attempt is repeated.

    attempts     executions that can fail before the task is FAILED
    backoff      upper limit of the first delay; doubled with every failure, up to backoff_max. The actual delay is
                 random between 0 and that limit
    retry_on     only these exceptions are retried. Exception means everything the handler raises, even SystemExit
    give_up_on   these are never retried; wins over retry_on
    """

    attempts: int = 3
    backoff: float = 1.0
    backoff_max: float = 60.0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or not 1 <= self.attempts <= ATTEMPTS_MAX:
            raise ConfigError(f"Retry(attempts={self.attempts!r}): must be an integer from 1 to {ATTEMPTS_MAX}.")
        for name in ("backoff", "backoff_max"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ConfigError(f"Retry({name}={value!r}): must be seconds >= 0.")
        for name in ("retry_on", "give_up_on"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(
                isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
            ):
                raise ConfigError(
                    f"Retry({name}={value!r}): must be a tuple of exception classes, e.g. (TimeoutError,)."
                )

    def policy(self) -> model.Retry:
        """The part of it that the engine needs."""
        return model.Retry(
            attempts=self.attempts,
            backoff_ms=round(self.backoff * 1_000),
            backoff_max_ms=round(self.backoff_max * 1_000),
        )

    def decide(self, error: BaseException) -> tuple[bool, int | None]:
        """What to do about an error that a handler raised: (may run again, after so many ms or None for the backoff).

        An exception group (a TaskGroup inside the handler) counts as each of its leaves.
        """
        found = (error, *_leaves(error)) if isinstance(error, BaseExceptionGroup) else (error,)
        if any(isinstance(one, (GiveUp, *self.give_up_on)) for one in found):
            return False, None
        for one in found:
            if isinstance(one, RetryLater):
                return True, _delay_ms(one.after)
        return Exception in self.retry_on or any(isinstance(one, self.retry_on) for one in found), None


ONCE = Retry(attempts=1)


class HandlerOptions(TypedDict, total=False):
    """The options of a task type that its worker needs. All can be left out."""

    timeout: float | None
    """Seconds per attempt when the request names none. Default: no limit."""
    timeout_max: float | None
    """The longest `timeout` in seconds that a request may set. Default: no limit."""
    retry: Retry | None
    """How often a failed attempt is repeated. Default: one attempt."""
    concurrency: int | None
    """Executions of this type at once per worker process. Default: as many as there are slots."""
    lost_max: int
    """Process deaths caused by a task after which it fails with `worker_lost`; 0: never. Default: 3."""
    executor: str | None
    """`"process"` runs it in a child process, which a timeout or a cancel can kill. Default: the event loop for an
    `async def`, else a thread."""
    memory_mb: int | None
    """Limit of a child process: MiB per execution, beyond what the loaded app takes. Default: no limit."""
    max_tasks: int | None
    """Limit of a child process: executions of this type before it is replaced. Default: no limit."""


@public
class TaskOptions(HandlerOptions, total=False):
    """The options of `@app.task(...)`. All can be left out."""

    priority: int | None
    """Priority of the requests that are submitted through this task, 1..10, 10 = most urgent. Default: 5."""


def check_priority(name: str, priority: int | None) -> None:
    """Raises ConfigError."""
    if priority is not None and (type(priority) is not int or not PRIORITY_MIN <= priority <= PRIORITY_MAX):
        raise ConfigError(
            f"handler {name!r}: priority={priority!r} must be an integer from {PRIORITY_MIN} to {PRIORITY_MAX} "
            f"({PRIORITY_MAX} = most urgent), or None for {PRIORITY_DEFAULT}."
        )


def check_options(name: str, options: HandlerOptions) -> None:
    """Check every option of the handler `name`, and the combinations of options. Raises ConfigError."""
    retry, executor = options.get("retry"), options.get("executor")
    timeout, timeout_max = options.get("timeout"), options.get("timeout_max")
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigError(f"handler {name!r}: retry={retry!r} must be a Retry(...).")
    for label, seconds in (("timeout", timeout), ("timeout_max", timeout_max)):
        if seconds is not None and (not is_number(seconds) or seconds <= 0):
            raise ConfigError(f"handler {name!r}: {label}={seconds!r} must be seconds above 0, or None for no limit.")
    if timeout is not None and timeout_max is not None and timeout > timeout_max:
        raise ConfigError(f"handler {name!r}: timeout={timeout:g} is above timeout_max={timeout_max:g}.")
    concurrency, lost_max = options.get("concurrency"), options.get("lost_max", LOST_MAX)
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise ConfigError(f"handler {name!r}: concurrency={concurrency!r} must be a positive integer or None.")
    for label, count in (("memory_mb", options.get("memory_mb")), ("max_tasks", options.get("max_tasks"))):
        if count is not None and executor != "process":
            raise ConfigError(
                f"handler {name!r}: {label}={count!r} limits child processes. It needs executor='process'."
            )
        if count is not None and (type(count) is not int or count < 1):
            raise ConfigError(f"handler {name!r}: {label}={count!r} must be a positive integer or None.")
    if type(lost_max) is not int or lost_max < 0:
        raise ConfigError(
            f"handler {name!r}: lost_max={lost_max!r} must be an integer >= 0; 0 means never quarantined."
        )


def _leaves(group: BaseExceptionGroup[Any]) -> Iterable[BaseException]:
    open_: list[BaseException] = [group]
    while open_:
        one = open_.pop()
        if isinstance(one, BaseExceptionGroup):
            open_.extend(one.exceptions)
        else:
            yield one


def _delay_ms(seconds: Any) -> int | None:
    """The delay of a RetryLater in milliseconds. None, for the usual backoff, when it is not a valid number."""
    return max(0, round(seconds * 1_000)) if is_number(seconds) else None
