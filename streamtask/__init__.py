"""streamtask: a task system on Kafka. Status events exactly-once, handlers at least once, priorities that never starve.

Names are loaded when they are first used, so that importing a module of the core never drags Kafka's client in.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from streamtask.distribution import foreign_files

__version__ = "0.1.0"

if _mixed := foreign_files():
    warnings.warn(_mixed, stacklevel=2)

__all__ = [  # noqa: RUF022  grouped by use, not by name
    # handlers
    "App",
    "AsyncTask",
    "Context",
    "FakeContext",
    "GiveUp",
    "PlainTask",
    "Retry",
    "RetryLater",
    "Task",
    "TaskDecorator",
    "TaskOptions",
    # asking for work
    "AsyncClient",
    "Client",
    "Receipt",
    "RequestOptions",
    "Settings",
    "SubmitOptions",
    "SyncReceipt",
    "SyncTaskHandle",
    "TaskHandle",
    "TopicNames",
    # the contract
    "ErrorDetails",
    "TaskRequest",
    "TaskResponse",
    "TaskStatus",
    # errors
    "ClusterError",
    "ConfigError",
    "DecodeError",
    "LifespanError",
    "NotAllowed",
    "RegistryUnreachable",
    "RequestRefused",
    "SchemaUnavailable",
    "StreamtaskError",
    "SubmitError",
    "TaskCancelled",
    "TaskError",
    "TaskFailed",
    "TopicsMissing",
    "UnknownTask",
    "Unreachable",
    "WaitTimeout",
]

_HOMES = {
    "streamtask.app": ("App", "AsyncTask", "PlainTask", "SyncTaskHandle", "Task", "TaskDecorator", "TaskHandle"),
    "streamtask.config": ("Settings", "TopicNames"),
    "streamtask.handlers.options": ("Retry", "TaskOptions"),
    "streamtask.handlers.registry": ("Context", "FakeContext"),
    "streamtask.client": ("AsyncClient", "Client", "Receipt", "SyncReceipt"),
    "streamtask.domain.model": ("ErrorDetails", "TaskRequest", "TaskResponse", "TaskStatus"),
    "streamtask.domain.options": ("RequestOptions", "SubmitOptions"),
    "streamtask.errors": (
        "ClusterError",
        "ConfigError",
        "DecodeError",
        "GiveUp",
        "LifespanError",
        "NotAllowed",
        "RegistryUnreachable",
        "RequestRefused",
        "RetryLater",
        "SchemaUnavailable",
        "StreamtaskError",
        "SubmitError",
        "TaskCancelled",
        "TaskError",
        "TaskFailed",
        "TopicsMissing",
        "UnknownTask",
        "Unreachable",
        "WaitTimeout",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from streamtask.app import App, AsyncTask, PlainTask, SyncTaskHandle, Task, TaskDecorator, TaskHandle
    from streamtask.client import AsyncClient, Client, Receipt, SyncReceipt
    from streamtask.config import Settings, TopicNames
    from streamtask.domain.model import ErrorDetails, TaskRequest, TaskResponse, TaskStatus
    from streamtask.domain.options import RequestOptions, SubmitOptions
    from streamtask.errors import (
        ClusterError,
        ConfigError,
        DecodeError,
        GiveUp,
        LifespanError,
        NotAllowed,
        RegistryUnreachable,
        RequestRefused,
        RetryLater,
        SchemaUnavailable,
        StreamtaskError,
        SubmitError,
        TaskCancelled,
        TaskError,
        TaskFailed,
        TopicsMissing,
        UnknownTask,
        Unreachable,
        WaitTimeout,
    )
    from streamtask.handlers.options import Retry, TaskOptions
    from streamtask.handlers.registry import Context, FakeContext


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'streamtask' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
