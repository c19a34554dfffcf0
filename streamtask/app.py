"""App and its tasks. An App connects handlers (what runs) with the client (how it is submitted) and does nothing else.

    app = App("census")

    @app.task("file_census", timeout=30, retry=Retry(attempts=3))
    def file_census(ctx: Context, params: CensusParams) -> FileCensus: ...

    task = await file_census.options(priority=8).submit(CensusParams(path))
    census: FileCensus = await task.result(timeout=60)

Always true: `submit` takes exactly the handler's own arguments, without the context (a type checker sees it);
everything else goes through `options`; parameters that the handler would refuse are refused before anything is sent;
importing this module does not import a Kafka library.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from streamtask.config import Settings, load_settings
from streamtask.domain.model import TaskRequest, TaskResponse
from streamtask.domain.options import RequestOptions, refuse_unknown, request_fields
from streamtask.errors import ConfigError
from streamtask.handlers.options import HandlerOptions, TaskOptions, check_priority
from streamtask.handlers.registry import Context, Handler, Lifespan, Registry, make_handler
from streamtask.public import public

if TYPE_CHECKING:
    from streamtask.client import AsyncClient, Client, Receipt, SyncReceipt
    from streamtask.client.transport import Transport

P = ParamSpec("P")
R = TypeVar("R")
Q = TypeVar("Q")


@public
class App:
    """The task types of one service, and the settings to submit and run them with.

    name      a label for client.id and logs; it has no other effect (the prefix selects the topics)
    prefix    prefix of the topics; workers of another prefix do not see these tasks
    lifespan  an async context manager function; entered once per worker before the first task, left after the last;
              the value that it yields is ctx.state
    settings  any field of config.Settings; arguments win over STREAMTASK_* variables, and those over streamtask.toml

    Leaving `async with app:`, or close(), closes the clients that its tasks opened to submit.
    """

    def __init__(
        self, name: str, *, prefix: str | None = None, lifespan: Lifespan | None = None, **settings: Any
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"App({name!r}): the name must be a non-empty string. Write it like App('census').")
        self.name = name
        self.registry = Registry()
        self._lifespan = lifespan
        self._given: dict[str, Any] = {"prefix": prefix, **settings}
        self.settings = self._load()
        self._lock = threading.Lock()
        self._configured = False
        self._transport: Callable[[], Transport | None] = lambda: None  # for its clients; returns None for Kafka
        self._client: Client | None = None
        self._async_clients: dict[asyncio.AbstractEventLoop, AsyncClient] = {}

    def __repr__(self) -> str:
        return f"App({self.name!r}, prefix={self.settings.prefix!r}, tasks={sorted(self.registry)})"

    def configure(self, **settings: Any) -> Settings:
        """Apply settings, such as those of a command line, that win over the constructor's. None counts as not given.

        Raises ConfigError when a setting is invalid or a client is already open.
        """
        self._forget_ended_loops()
        if self._client is not None or self._async_clients:
            raise ConfigError(f"App {self.name!r}: settings cannot change while a client is open. Close it first.")
        self._given.update({name: value for name, value in settings.items() if value is not None})
        self.settings = self._load()
        return self.settings

    @property
    def given(self) -> dict[str, Any]:
        """The settings passed to the constructor and configure(); all others come from the environment, file or defaults."""
        return {name: value for name, value in self._given.items() if value is not None}

    @contextmanager
    def configured(
        self, transport: Callable[[], Transport | None] = lambda: None, **settings: Any
    ) -> Iterator[Settings]:
        """Apply settings for the duration of the block, for tests. Closes the clients that its tasks opened meanwhile.

        transport  makes the transport of each client; if it returns None, the client uses Kafka. Raises ConfigError.
        """
        if self._configured:
            raise ConfigError(f"App {self.name!r} is already running with its own settings. Stop it first.")
        before, self._given, self._configured = self._given, dict(self._given), True
        try:
            self.configure(**settings)
            self._transport = transport
            yield self.settings
        finally:
            self._configured = False
            self.close()
            self._close_loops()
            self._transport = lambda: None
            self._given = before
            self.settings = self._load()

    def _close_loops(self) -> None:
        """Call aclose() for every loop, from outside the loops. The loop that this code runs on cannot be waited for: its
        client is dropped."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for loop, client in list(self._async_clients.items()):
            if self._async_clients.pop(loop, None) is None:
                continue  # aclose(), on its own loop, got there first
            if loop.is_closed() or loop is here:
                continue
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(client.close(), loop).result(10)
            else:
                loop.run_until_complete(client.close())

    def _load(self) -> Settings:
        settings = load_settings(**self._given)
        assert settings.topics.prefix == settings.prefix  # evaluated here, so that an invalid prefix is refused at once
        return settings

    # Overloads are tried in this order, so that R is what a coroutine returns and P lacks the context: hence the overlaps.
    @overload
    def task(  # type: ignore[overload-overlap]
        self, name: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(  # type: ignore[overload-overlap]
        self, name: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(self, name: Callable[Concatenate[Context, P], R], /) -> PlainTask[P, R]: ...
    @overload
    def task(self, name: Callable[P, R], /) -> PlainTask[P, R]: ...
    @overload
    def task(
        self,
        name: str | None = None,
        /,
        **options: Unpack[TaskOptions],
    ) -> TaskDecorator: ...

    def task(
        self,
        name: Any = None,
        /,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Register a handler: `@app.task` names it after the function; `@app.task(...)` takes options.

        options  TaskOptions lists them

        Raises ConfigError.
        """
        refuse_unknown("App.task()", options, TaskOptions)
        function = name if callable(name) else None
        priority = options.pop("priority", None)
        limits: HandlerOptions = options
        # Under `from __future__ import annotations`, annotations are strings; those of a handler that is defined inside a
        # function may name that function's locals.
        frame = sys._getframe(1)
        names = dict(frame.f_locals) if frame.f_locals is not frame.f_globals else None

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            handler = make_handler(function, name=None if callable(name) else name, names=names, **limits)
            check_priority(handler.name, priority)
            preset = {} if priority is None else {"priority": priority}
            kind: type[Task[..., Any]] = AsyncTask if handler.is_async else PlainTask
            task = kind(self, handler, preset)
            self.registry.add(handler)
            return task

        return register if function is None else register(function)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Any]:
        """The app's lifespan, for the executor; on exit it also closes the client that the handlers used to submit."""
        try:
            if self._lifespan is None:
                yield None
            else:
                async with self._lifespan() as state:
                    yield state
        finally:
            await self.aclose()

    def client(self) -> Client:
        """The synchronous client; opened on first use, closed by close()."""
        from streamtask.client import Client

        with self._lock:
            if self._client is None:
                self._client = Client(settings=self.settings, transport=self._transport())
            return self._client

    def async_client(self) -> AsyncClient:
        """The client of the running event loop; opened on first use, closed by aclose()."""
        from streamtask.client import AsyncClient

        loop = asyncio.get_running_loop()
        client = self._async_clients.get(loop)
        if client is None:
            self._forget_ended_loops()
            client = self._async_clients[loop] = AsyncClient(settings=self.settings, transport=self._transport())
        return client

    def close(self) -> None:
        """Close the synchronous client after sending what was submitted."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the client of the running event loop after sending what was submitted."""
        client = self._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _forget_ended_loops(self) -> None:
        # A client cannot be closed after its loop; dropping it closes its connections. Otherwise every asyncio.run that
        # forgot `async with app:` would leave one behind.
        for loop in [loop for loop in list(self._async_clients) if loop.is_closed()]:
            self._async_clients.pop(loop, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
        # A thread may have opened it; closing it blocks, so it is not done on the loop.
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@public
class Task(Generic[P, R]):
    """A task type as its callers see it. Calling it runs the handler directly (with a fake context if none is passed)."""

    __name__: str  # the function's name; functools.update_wrapper sets it with the other attributes

    def __init__(self, app: App, handler: Handler, options: Mapping[str, Any]) -> None:
        self.app = app
        self.handler = handler
        self._options = dict(options)
        functools.update_wrapper(cast("Callable[..., Any]", self), handler.function, updated=())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.handler.name!r} of {self.app.name!r}>"

    @property
    def name(self) -> str:
        """The task type."""
        return self.handler.name

    def options(self, **options: Unpack[RequestOptions]) -> Self:
        """A copy of this task that submits with these options. None keeps the current value.

        options  RequestOptions lists them
        """
        fields = request_fields(f"{type(self).__name__}.options()", options)
        return type(self)(self.app, self.handler, self._options | fields)

    def request(self, *args: P.args, **kwargs: P.kwargs) -> TaskRequest:
        """The request that submit would send, for `client.submit_many`. Raises RequestRefused."""
        from streamtask.client.build import from_arguments

        parameters = self.handler.binding.pack(args, kwargs)
        return from_arguments(parameters, task_type=self.handler.name, **self._options)

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Submit the task; returns when the broker has stored the request. Raises RequestRefused, SubmitError."""
        request = self.request(*args, **kwargs)
        return TaskHandle(await self.app.async_client().submit_request(request), self.handler)

    def submit_sync(self, *args: P.args, **kwargs: P.kwargs) -> SyncTaskHandle[R]:
        """`submit` for synchronous code."""
        return SyncTaskHandle(self.app.client().submit_request(self.request(*args, **kwargs)), self.handler)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = (*args[:1], *kwargs.values())
        if self.handler.takes_context and not any(isinstance(one, Context) for one in given):
            args = (Context.fake(task_type=self.name), *args)
        return self.handler.function(*args, **kwargs)


@public
class PlainTask(Task[P, R]):
    """The task of a synchronous function."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, ctx: Context, /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]  # it takes both
        return self._call(args, kwargs)


@public
class AsyncTask(Task[P, R]):
    """The task of an `async def`."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    @overload
    def __call__(self, ctx: Context, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]  # it takes both
        return self._call(args, kwargs)


@public
class TaskDecorator(Protocol):
    """What `app.task(...)` returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Context, P], R], /) -> PlainTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> PlainTask[P, R]: ...


@public
class TaskHandle(Generic[Q]):
    """A submitted task. `receipt` has the position of its request."""

    def __init__(self, receipt: Receipt, handler: Handler) -> None:
        self.receipt = receipt
        self._handler = handler

    def __repr__(self) -> str:
        return f"TaskHandle({self._handler.name!r}, task_id={self.task_id!r})"

    @property
    def task_id(self) -> str:
        return self.receipt.task_id

    async def result(self, timeout: float | None = None) -> Q:
        """What the handler returned, as its return type. Raises TaskFailed, TaskCancelled, WaitTimeout."""
        return cast("Q", self._handler.binding.read_result(await self.receipt.result(timeout)))

    async def wait(self, timeout: float | None = None) -> TaskResponse:
        """The terminal status event, whatever it says. Raises WaitTimeout."""
        return await self.receipt.wait(timeout)

    async def status(self) -> TaskResponse:
        """The latest status."""
        return await self.receipt.status()

    def events(self) -> AsyncIterator[TaskResponse]:
        """Status events until the terminal one."""
        return self.receipt.events()

    async def cancel(self, reason: str | None = None) -> None:
        """Request its cancellation; returns when the broker has acknowledged the request."""
        await self.receipt.cancel(reason)


@public
class SyncTaskHandle(Generic[Q]):
    """A submitted task, for synchronous code."""

    def __init__(self, receipt: SyncReceipt, handler: Handler) -> None:
        self.receipt = receipt
        self._handler = handler

    def __repr__(self) -> str:
        return f"SyncTaskHandle({self._handler.name!r}, task_id={self.task_id!r})"

    @property
    def task_id(self) -> str:
        return self.receipt.task_id

    def result(self, timeout: float | None = None) -> Q:
        """What the handler returned, as its return type. Raises TaskFailed, TaskCancelled, WaitTimeout."""
        return cast("Q", self._handler.binding.read_result(self.receipt.result(timeout)))

    def wait(self, timeout: float | None = None) -> TaskResponse:
        """The terminal status event, whatever it says. Raises WaitTimeout."""
        return self.receipt.wait(timeout)

    def status(self) -> TaskResponse:
        """The latest status."""
        return self.receipt.status()

    def cancel(self, reason: str | None = None) -> None:
        """Request its cancellation; returns when the broker has acknowledged the request."""
        self.receipt.cancel(reason)


def load_app(path: str) -> App:
    """Import the App that `module:attribute` names; also searches the working directory. Raises ConfigError."""
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{path!r} does not name an app. Write MODULE:NAME, such as {(module_name or 'app')}:app.")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # when a console script runs, its own directory is there instead
    try:
        module = importlib.import_module(module_name)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{path}: no module {error.name!r} in {os.getcwd()} or among the installed packages."
            ) from error
        raise ConfigError(f"{path}: {module_name} imports {error.name!r}, which is not installed.") from error
    except Exception as error:  # importing runs the user's code: whatever it raises, the app cannot be loaded
        raise ConfigError(f"{path}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    found: Any = module
    for name in attribute.split("."):
        found = getattr(found, name, None)
    if isinstance(found, App):
        return found
    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    hint = f" It has: {', '.join(f'{module_name}:{name}' for name in apps)}." if apps else " It has no App."
    if found is None:
        raise ConfigError(f"{path}: module {module_name} has no {attribute!r}.{hint}")
    raise ConfigError(f"{path} is a {type(found).__name__}, not an App.{hint}")
