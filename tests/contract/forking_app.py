"""What tests/contract/test_client_fork.py runs in processes of their own: a client that was used, then forked.

    python -m tests.contract.forking_app fork          os.fork, an inherited receipt, an iterator, an exit with sys.exit
    python -m tests.contract.forking_app async         an AsyncClient
    python -m tests.contract.forking_app hung          what happens without streamtask.client.forking
    python -m tests.contract.forking_app unused        a child that does not touch the client
    python -m tests.contract.forking_app multiprocessing-fork        …-forkserver, …-spawn
    gunicorn tests.contract.forking_app:wsgi           a client that is used at import
    uvicorn tests.contract.forking_app:asgi            a client for each worker

The broker and the prefix come from the environment.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from streamtask import AsyncClient, Client, StreamtaskError

WAIT_S = 30.0


def ask(client: Client, name: str) -> None:
    found = client.submit("greet", {"name": name}).result(WAIT_S)
    assert found == f"Hello, {name}!", found


def waited(child: int) -> None:
    """Wait for a child. It is killed after a while, so that it is not left behind."""
    killer = threading.Timer(2 * WAIT_S, os.kill, (child, 9))
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    assert os.waitstatus_to_exitcode(status) == 0, status


def forked() -> None:
    client = Client()
    ask(client, "before")
    receipt = client.submit("greet", {"name": "the parent's"})
    events = receipt.events()
    next(events)
    child = os.fork()
    if child == 0:
        ask(client, "in the child")
        assert receipt.result(WAIT_S) == "Hello, the parent's!"
        try:
            known = [event.status.value for event in events]
            assert known[-1] == "completed", known  # all of them had arrived before the fork
        except StreamtaskError as error:
            if "Call events() again" not in str(error):
                raise
        assert [event.status.value for event in receipt.events()][-1] == "completed"
        grandchild = os.fork()
        if grandchild == 0:
            ask(client, "in the grandchild")
            sys.exit(0)
        waited(grandchild)
        client.submit_bulk([{"task_type": "greet", "parameters": {"name": "many"}}] * 10)
        client.flush(WAIT_S)
        client.close()
        sys.exit(0)
    assert receipt.result(WAIT_S) == "Hello, the parent's!"
    ask(client, "beside the child")
    waited(child)
    ask(client, "after the child")
    client.close()


def hung() -> None:
    """A child that submits is still waiting after three seconds."""
    ask(client := Client(), "before")
    child = os.fork()
    if child == 0:
        ask(client, "in the child")
        os._exit(0)
    waiter = threading.Thread(target=os.waitpid, args=(child, 0), daemon=True)
    waiter.start()
    waiter.join(3.0)
    assert waiter.is_alive(), "it did not hang"
    os.kill(child, 9)
    waiter.join()
    client.close()


def unused() -> None:
    """A child that never touches the client ends like any other."""
    client = Client()
    ask(client, "before")
    child = os.fork()
    if child == 0:
        del client
        sys.exit(0)
    waited(child)
    ask(client, "after")
    client.close()


def asynchronous() -> None:
    client = AsyncClient()

    async def asked(name: str) -> None:
        receipt = await client.submit("greet", {"name": name})
        assert await receipt.result(WAIT_S) == f"Hello, {name}!"

    runner = asyncio.Runner()
    runner.run(asked("before"))
    child = os.fork()
    if child == 0:

        async def in_child() -> None:
            await asked("in the child")
            await client.close()

        asyncio.run(in_child())
        sys.exit(0)
    waited(child)
    runner.run(asked("after"))
    runner.run(client.close())
    runner.close()


_shared: Client | None = None


def shared() -> Client:
    """One client for each process, or the parent's copy."""
    global _shared
    _shared = _shared or Client()
    return _shared


def in_process(name: str) -> None:
    ask(shared(), name)


def by_multiprocessing(method: str) -> None:
    ask(shared(), "before")
    context: Any = multiprocessing.get_context(method)
    processes = [context.Process(target=in_process, args=(f"number {number}",)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * WAIT_S)
        assert process.exitcode == 0, process.exitcode
    ask(shared(), "after")
    shared().close()


# --- Servers ----------------------------------------------------------------------------------------------------------

Start = Callable[[str, list[tuple[str, str]]], Any]


def wsgi(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    name = str(environ["PATH_INFO"]).strip("/")
    ask(shared(), name)
    start("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {_IMPORTED_BY}".encode()]


_IMPORTED_BY = os.getpid()
if os.environ.get("FORKING_USES_IT_AT_IMPORT"):
    ask(shared(), "at import")

_asynchronous: AsyncClient | None = None


async def asgi(scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    global _asynchronous
    if scope["type"] != "http":
        return
    _asynchronous = _asynchronous or AsyncClient()
    receipt = await _asynchronous.submit("greet", {"name": "asgi"})
    found = await receipt.result(WAIT_S)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(found).encode()})


WAYS: dict[str, Callable[[], None]] = {"fork": forked, "hung": hung, "unused": unused, "async": asynchronous}

if __name__ == "__main__":
    if sys.argv[1] in WAYS:
        WAYS[sys.argv[1]]()
    else:
        by_multiprocessing(sys.argv[1].removeprefix("multiprocessing-"))
