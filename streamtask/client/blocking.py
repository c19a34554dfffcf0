"""The synchronous client: an AsyncClient on an event loop in its own thread, and nothing else.

Every method runs a coroutine on that loop and waits for it. client/asynchronous.py documents what each method does.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from streamtask.client import forking
from streamtask.client.asynchronous import AsyncClient
from streamtask.client.receipt import Receipt, result_of
from streamtask.client.transport import Transport
from streamtask.config import Settings
from streamtask.domain.model import TaskRequest, TaskResponse
from streamtask.errors import StreamtaskError
from streamtask.public import public

P = ParamSpec("P")
T = TypeVar("T")
CLOSE_TIMEOUT_S = 45.0  # beyond the delivery timeout: close() flushes


class _LoopThread:
    """An event loop in a daemon thread, because the thread must never keep the process from ending. It starts when it is
    first used: in a process that was forked, that is another loop and another thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.closed = False
        forking.survives_fork(self)

    def start_anew(self) -> None:
        """Called in a forked child: the thread is the parent's (forking.py)."""
        forking.keep(self._loop)
        self._starting = threading.Lock()
        self._loop = self._thread = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Returns the result of `work`. An interrupt (Ctrl-C) cancels the work. Raises StreamtaskError after stop()."""
        if self.closed:
            work.close()
            raise StreamtaskError("This client is closed.")
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("A sync Client cannot be used on its own event loop thread. Use AsyncClient there.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop or self._running())
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            self.run(loop.shutdown_asyncgens())
            self.closed = True
            loop.call_soon_threadsafe(loop.stop)
            thread.join(CLOSE_TIMEOUT_S)
            loop.close()
        self.closed = True


@public
class SyncReceipt:
    """A request that the broker has stored; Receipt for synchronous code."""

    __slots__ = ("_receipt", "_thread")

    def __init__(self, receipt: Receipt, thread: _LoopThread) -> None:
        self._receipt = receipt
        self._thread = thread

    def __repr__(self) -> str:
        return f"Sync{self._receipt!r}"

    @property
    def task_id(self) -> str:
        return self._receipt.task_id

    @property
    def band(self) -> str:
        return self._receipt.band

    @property
    def partition(self) -> int:
        return self._receipt.partition

    @property
    def offset(self) -> int:
        return self._receipt.offset

    @property
    def origin(self) -> str:
        """`high-3@12345`: the position of the request record, as in its status events."""
        return self._receipt.origin

    def wait(self, timeout: float | None = None) -> TaskResponse:
        """Wait for the terminal event, whatever its status. timeout: seconds. Raises WaitTimeout."""
        return self._thread.run(self._receipt.wait(timeout))

    def result(self, timeout: float | None = None) -> Any:
        """What the handler returned. Raises TaskFailed, TaskCancelled, WaitTimeout."""
        return result_of(self.wait(timeout))

    def status(self) -> TaskResponse:
        """The latest status."""
        return self._thread.run(self._receipt.status())

    def events(self) -> Iterator[TaskResponse]:
        """Status events until the terminal one."""
        return _iterate(self._thread, self._receipt.events())

    def cancel(self, reason: str | None = None) -> None:
        """Request its cancellation; returns when the broker has acknowledged the request."""
        self._thread.run(self._receipt.cancel(reason))

    def to_dict(self) -> dict[str, Any]:
        """The receipt as plain values."""
        return self._receipt.to_dict()


def _iterate(thread: _LoopThread, events: AsyncIterator[TaskResponse]) -> Iterator[TaskResponse]:
    async def advance() -> TaskResponse | None:
        return await anext(events, None)

    while (task := thread.run(advance())) is not None:
        yield task


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Receipt]],
) -> Callable[Concatenate[Client, P], SyncReceipt]:
    """The method of Client with the same parameters as this one of AsyncClient, so that they are declared once."""

    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> SyncReceipt:
        return SyncReceipt(self._thread.run(method(self._client, *args, **kwargs)), self._thread)

    call.__name__, call.__doc__, call.__module__ = method.__name__, method.__doc__, __name__
    call.__qualname__ = f"Client.{method.__name__}"
    call.__signature__ = inspect.signature(method).replace(return_annotation="SyncReceipt")  # type: ignore[attr-defined]
    return call


@public
class Client:
    """AsyncClient for synchronous code, with the same arguments and methods. Threads can share it.

    with Client("127.0.0.1:9092") as client:
        census = client.submit("file_census", {"path": "a.py"}, priority=8).result(timeout=60)
    """

    def __init__(
        self,
        bootstrap: str | None = None,
        *,
        prefix: str | None = None,
        url: str | None = None,
        settings: Settings | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._client = AsyncClient(bootstrap, prefix=prefix, url=url, settings=settings, transport=transport)
        self._thread = _LoopThread("streamtask-client")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what is still queued, then close. Can be called twice."""
        if self._thread.closed:
            return
        try:
            self._thread.run(self._client.close())
        finally:
            self._thread.stop()

    submit = _blocking(AsyncClient.submit)
    submit_request = _blocking(AsyncClient.submit_request)

    def submit_many(self, requests: Iterable[TaskRequest | Mapping[str, Any]]) -> list[SyncReceipt]:
        """See AsyncClient.submit_many."""
        return [SyncReceipt(receipt, self._thread) for receipt in self._thread.run(self._client.submit_many(requests))]

    def submit_bulk(self, requests: Iterable[TaskRequest | Mapping[str, Any]]) -> int:
        """See AsyncClient.submit_bulk."""
        return self._thread.run(self._client.submit_bulk(requests))

    def flush(self, timeout: float | None = None) -> None:
        """See AsyncClient.flush."""
        self._thread.run(self._client.flush(timeout))

    def wait(self, task_id: str, timeout: float | None = None) -> TaskResponse:
        """See AsyncClient.wait."""
        return self._thread.run(self._client.wait(task_id, timeout))

    def status(self, task_id: str) -> TaskResponse:
        """See AsyncClient.status."""
        return self._thread.run(self._client.status(task_id))

    def events(self, task_id: str) -> Iterator[TaskResponse]:
        """See AsyncClient.events."""
        return _iterate(self._thread, self._client.events(task_id))

    def cancel(self, task_id: str, reason: str | None = None) -> None:
        """See AsyncClient.cancel."""
        self._thread.run(self._client.cancel(task_id, reason))
