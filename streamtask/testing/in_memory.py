"""An App with a client and a worker in memory, for unit tests: no Kafka, and a test takes milliseconds.

    with in_memory(app) as shop:
        task = resize.submit_sync("a.png")
        assert task.result() == "a.png at 800"
        assert [event.status for event in shop.history(task.task_id)] == ["created", "running", "completed"]

The handlers, their validation, retries, limits, cancellation and priorities are the real ones: the client's own code,
the worker's engine and executor, and the real wire format, over a log in memory (memory_worker.py). The suite
tests/contract/test_client_life.py holds both implementations to the same behaviour.

Waiting for a backoff, a `not_before` or an `expires_at` takes no time: while no handler runs and a call waits for a
task, the clock skips to the next time at which something is due. Timeouts of waits are on the same clock, so
`result(timeout=5)` of a task that retries in an hour raises WaitTimeout at once. While a handler runs, time is real.

What it does not prove:

- Anything about Kafka: topics, ACLs, partitions, delivery, crashes, rebalances, exactly-once status events. Use
  `running` (streamtask/testing/running.py), which has the same interface, for those.
- Handlers of `executor="process"` run in this process, in a thread or on the event loop: nothing is killed, `memory_mb`
  and `max_tasks` have no effect, and nothing proves that a child can import the handler.
- Sizes: the limit is Kafka's default and nothing is compressed. A real topic may accept less, or a little more.
- Formats: records are JSON, whatever `format` says. Spans are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from streamtask.app import App
from streamtask.errors import ConfigError
from streamtask.testing.memory_transport import MemoryTransport
from streamtask.testing.memory_worker import MemoryWorker

if TYPE_CHECKING:
    from streamtask.client import AsyncClient, Client
    from streamtask.config import Settings
    from streamtask.domain.model import TaskResponse


class InMemory:
    """An App whose worker and clients share a log in memory. The submit() and submit_sync() of its tasks work, too.

    app, settings  the App, and the settings that hold while it runs
    """

    def __init__(self, app: App, settings: Settings, worker: MemoryWorker) -> None:
        self.app = app
        self.settings = settings
        self._worker = worker

    def __repr__(self) -> str:
        return f"InMemory({self.app.name!r})"

    @property
    def client(self) -> Client:
        """The synchronous client."""
        return self.app.client()

    @property
    def async_client(self) -> AsyncClient:
        """The client of the running event loop."""
        return self.app.async_client()

    def history(self, task_id: str) -> list[TaskResponse]:
        """The status events of a task so far, oldest first."""
        return [task for _, task in self._worker.events(task_id)]

    def now(self) -> datetime:
        """The time that the worker sees: real time plus the time skipped. Use it for `not_before` and `expires_at`."""
        return datetime.fromtimestamp(self._worker.now().wall_ms / 1_000, UTC)


class RunInMemory(Protocol):
    """The type of the fixture `streamtask_memory`."""

    def __call__(self, app: App, **settings: Any) -> InMemory:
        """Run `app` in memory until the test ends. settings: any field of config.Settings."""


@contextmanager
def in_memory(app: App, **settings: Any) -> Iterator[InMemory]:
    """Run the tasks of `app` in this process while the block runs, without a broker. Also works in `async def`.

    settings  any field of config.Settings

    Tasks that have not ended at the end of the block are dropped. Raises ConfigError, LifespanError, and at the end the
    error that stopped the worker, if any.
    """
    if not isinstance(app, App):
        raise ConfigError(f"{app!r} is not an App. Pass the App object, e.g. in_memory(app).")
    workers: list[MemoryWorker] = []

    def transport() -> MemoryTransport:
        return MemoryTransport(workers[0], app.settings.topics)

    with app.configured(transport, **{"url": "", "bootstrap_servers": "", **settings}) as found:
        workers.append(MemoryWorker(app, found))
        with workers[0].running():
            yield InMemory(app, found, workers[0])
