"""The poisons' app with one more: it takes its whole container along, as the kernel does where `memory.oom.group` is set."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil

from streamtask import Context
from tests.acceptance.apps import _write
from tests.acceptance.poison_apps import AGAIN, app

SUPERVISOR = ["-m", "streamtask", "worker"]


def _container() -> list[psutil.Process]:
    """The supervisor above this process, and everything below it."""
    for one in psutil.Process().parents():
        if one.cmdline()[1:4] == SUPERVISOR:
            return [one, *one.children(recursive=True)]
    raise AssertionError("there is no supervisor")


@app.task(executor="process", retry=AGAIN)
def takes_all(ctx: Context) -> None:
    _write(ctx, "start")
    for one in _container():
        if one.pid != os.getpid():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    os.kill(os.getpid(), signal.SIGKILL)
