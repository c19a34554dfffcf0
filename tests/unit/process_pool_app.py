"""Process handlers that behave, and every way in which one can behave badly. Loaded by the children of test_children."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from streamtask import App, Context, GiveUp, Retry, RetryLater


@asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, int]]:
    yield {"pid": os.getpid()}


app = App("children", lifespan=lifespan)
_loaded = time.monotonic()


def channel_fd() -> int:
    """The child's end of its pipe, which is none of a handler's business."""
    return int(sys.argv[2])


def mark(path: str, text: str = "") -> None:
    """A file that is there, whole, or not at all."""
    Path(path + ".part").write_text(text)
    os.rename(path + ".part", path)


@app.task(executor="process")
def noop(n: int = 0) -> int:
    return n


@app.task(executor="process")
def notes(path: str, n: int, fifo: str = "") -> int:
    """Says that it has begun; ends when somebody has written into the FIFO."""
    with open(path, "a") as file:
        file.write(f"{n} {os.getpid()}\n")
    if fifo:
        Path(fifo).read_text()
    return n


@app.task(executor="process")
def does_not_hear(path: str, n: int, fifo: str) -> int:
    """As long as it runs no signal of the worker but SIGKILL reaches Python code."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG, signal.SIGTERM})
    try:
        return notes(path, n, fifo)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


@app.task(executor="process")
def gives_back_what_it_has_not() -> None:
    from streamtask.execution.process_pool import pipe

    os.write(channel_fd(), pipe.frame(pipe.BACK, 987_654))
    time.sleep(3_600)


@app.task(executor="process")
def where(ctx: Context) -> dict[str, Any]:
    return {"pid": os.getpid(), "loaded": _loaded, "attempt": ctx.attempt, "origin": ctx.origin, "id": ctx.task_id}


@app.task(executor="process")
def state(ctx: Context) -> Any:
    return ctx.state


@app.task(executor="process")
async def async_state(ctx: Context, seen: str) -> Any:
    ctx.progress(0.5, "half")
    await asyncio.to_thread(Path(seen).read_text)  # a FIFO: until somebody has written
    return ctx.state


@app.task(executor="process", max_tasks=2)
def worn() -> int:
    return os.getpid()


@app.task(executor="process")
def reports(ctx: Context, steps: int, seen: str) -> int:
    for step in range(steps):
        ctx.progress((step + 1) / steps, f"step {step + 1}")
    ctx.log.warning("reported", steps=steps, odd=object())
    Path(seen).read_text()  # a FIFO: until somebody has written
    return steps


@app.task(executor="process", retry=Retry(attempts=3))
def raises(kind: str) -> None:
    if kind == "value":
        raise ValueError("no such thing")
    if kind == "give_up":
        raise GiveUp("never")
    if kind == "later":
        raise RetryLater(after=1.5)
    if kind == "exit":
        sys.exit("told to leave")
    raise KeyboardInterrupt


@app.task(executor="process")
def garbage(kind: str) -> Any:
    """Results that are no JSON, and bytes in the pipe that are no frame."""
    if kind == "lock":
        return threading.Lock()
    if kind == "cycle":
        knot: list[Any] = []
        knot.append(knot)
        return knot
    if kind == "nan":
        return float("nan")
    if kind == "bytes":
        return b"\xff\xfe"
    if kind == "pipe":
        os.write(channel_fd(), b"Hello, this is no frame at all\n")
    elif kind == "hello":
        from streamtask.execution.process_pool import pipe

        os.write(channel_fd(), pipe.frame(pipe.HELLO))
    elif kind == "other":
        from streamtask.execution.process_pool import pipe

        os.write(channel_fd(), pipe.frame(pipe.RETURNED, 987_654, b"1"))
    elif kind == "outcome":
        from streamtask.execution.process_pool import pipe

        os.write(channel_fd(), pipe.frame(pipe.ENDED, 0, b"[1,"))
    time.sleep(3_600)
    return None


@app.task(executor="process")
def large(size: int) -> str:
    return "x" * size


@app.task(executor="process")
def prints(size: int) -> int:
    sys.stdout.write("o" * size)
    sys.stdout.flush()
    sys.stderr.write("e" * size)
    os.write(1, b"raw\n")
    return size


@app.task(executor="process")
def dies(how: str) -> None:
    if how == "exit":
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        os.abort()
    if how == "segfault":
        ctypes.string_at(0)
    raise AssertionError(how)


@app.task
async def dies_async(how: str) -> None:
    """Meant for the worker itself; isolated it takes nobody along."""
    os._exit(7)


@app.task
async def where_async(ctx: Context) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"pid": os.getpid(), "state": ctx.state, "attempt": ctx.attempt}


@app.task
def where_thread(ctx: Context) -> dict[str, Any]:
    return {"pid": os.getpid(), "state": ctx.state, "attempt": ctx.attempt}


@app.task
async def waits_async(ready: str) -> None:
    mark(ready, str(os.getpid()))
    await asyncio.sleep(3_600)


_arrived: list[Callable[[], object]] = []
_arrivals = threading.Lock()


def _arrive(go: Callable[[], object], others: int) -> None:
    """Whoever comes last lets all of them go; they are in one process, or none of them goes."""
    with _arrivals:
        _arrived.append(go)
        if len(_arrived) == others:
            for one in _arrived:
                one()


@app.task
async def meets_async(others: int) -> int:
    loop = asyncio.get_running_loop()
    met = loop.create_future()
    _arrive(lambda: loop.call_soon_threadsafe(met.set_result, None), others)
    await met
    return os.getpid()


@app.task
def meets_thread(others: int) -> int:
    met = threading.Event()
    _arrive(met.set, others)
    met.wait()
    return os.getpid()


@app.task
async def tells_async(ctx: Context, text: str) -> str:
    ctx.progress(0.5, text)
    ctx.log.info("said", text=text)
    await asyncio.sleep(0)
    return text


@app.task
async def starts_one(ready: str) -> None:
    """And waits beside it."""
    child = subprocess.Popen(["sleep", "3600"])  # noqa: ASYNC220 it returns at once
    mark(ready, str(child.pid))
    await asyncio.sleep(3_600)


@app.task
def sleeps_in_a_thread(ready: str) -> None:
    mark(ready, str(os.getpid()))
    time.sleep(3_600)


@app.task(executor="process")
def closes_its_pipe(goes_on: bool) -> None:
    os.close(channel_fd())
    if goes_on:
        time.sleep(3_600)


@app.task(executor="process")
def forks(ready: str) -> str:
    """Both copies come back from here."""
    pid = os.fork()
    if pid == 0:
        return "the copy"
    os.waitpid(pid, 0)
    mark(ready)
    return "the child"


_hoard: list[bytearray] = []


@app.task(executor="process")
def leaks(mb: int) -> int:
    _hoard.extend(bytearray(1024 * 1024) for _ in range(mb))
    return os.getpid()


@app.task(executor="process", memory_mb=64)
def modest(mb: int) -> int:
    assert len([bytearray(1024 * 1024) for _ in range(mb)]) == mb
    return os.getpid()


@app.task(executor="process", memory_mb=64)
def eats(mb: int) -> int:
    hoard = [bytearray(1024 * 1024) for _ in range(mb)]
    return len(hoard)


@app.task(executor="process", memory_mb=64)
async def eats_async(mb: int) -> int:
    return len([bytearray(1024 * 1024) for _ in range(mb)])


@app.task(executor="process")
def sleeps(ready: str) -> None:
    mark(ready, str(os.getpid()))
    time.sleep(3_600)


@app.task(executor="process")
async def sleeps_async(ctx: Context, ready: str, cleaned: str) -> None:
    mark(ready, str(os.getpid()))
    try:
        await asyncio.sleep(3_600)
    finally:
        mark(cleaned, str(ctx.cancelled))


@app.task(executor="process")
def cleans_up(ctx: Context, ready: str, cleaned: str) -> None:
    try:
        mark(ready, str(os.getpid()))
        time.sleep(3_600)
    finally:
        mark(cleaned, str(ctx.cancelled))


@app.task(executor="process")
def turns_it_into_an_error(ready: str) -> None:
    try:
        mark(ready, str(os.getpid()))
        time.sleep(3_600)
    except BaseException as error:
        raise RuntimeError("the library's own error") from error


@app.task(executor="process")
def ignores_term(ready: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark(ready, str(os.getpid()))
    time.sleep(3_600)


@app.task(executor="process")
def swallows_the_stop(ready: str) -> None:
    mark(ready, str(os.getpid()))
    while True:
        try:
            time.sleep(3_600)
        except BaseException:  # noqa: BLE001 what it is about
            pass


@app.task(executor="process")
def loops_in_c(ready: str) -> None:
    """Python never gets a word in: no signal handler runs."""
    mark(ready, str(os.getpid()))
    gc.disable()
    sum(range(10**15))


def _grandchild(path: str, first: str, **options: Any) -> None:
    """Returns when it has said that it is there."""
    code = f"import os,sys,time,signal\n{first}\nprint(os.getpid(), flush=True)\ntime.sleep(3600)\n"
    started = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True, **options)
    assert started.stdout is not None
    mark(path, started.stdout.readline())


@app.task(executor="process")
def has_children(obedient: str, stubborn: str, away: str, hold: bool) -> None:
    """Grandchildren: one that dies of TERM, one that ignores it, one that has left the group."""
    _grandchild(obedient, "")
    _grandchild(stubborn, "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    _grandchild(away, "signal.signal(signal.SIGTERM, signal.SIG_IGN)", start_new_session=True)
    if hold:
        time.sleep(3_600)
    os._exit(9)
