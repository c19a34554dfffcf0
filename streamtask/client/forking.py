"""Clients after a fork: the child starts anew, and what the parent had in flight stays the parent's.

    parent:  client.submit(…)      # a connection, its threads, an event loop
    os.fork()                      # gunicorn --preload, multiprocessing, Celery prefork
    child:   client.submit(…)      # a connection of its own, opened now

A fork copies memory, but of all threads only the one that forks. A librdkafka client without its threads delivers nothing, an
event loop without its thread runs nothing: every call that waits for them would wait for ever. So would the destructor of a
librdkafka client, which joins them; that is why the child keeps every copy until it ends.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

from streamtask.kafka.handles import open_handles


class Forkable(Protocol):
    """What has to start anew in a forked child."""

    def start_anew(self) -> None:
        """Forget what only the parent can use, without closing it. Runs in the child before any other code; must not block."""


_living: weakref.WeakSet[Any] = weakref.WeakSet()


def survives_fork(one: Forkable) -> None:
    """From now on, `one.start_anew()` is called in every forked child. Holds it by a weak reference."""
    _living.add(one)


def keep(*copies: object) -> None:
    """Keep copies of the parent's objects as long as this process lives, because their destructors would wait or warn.

    Each gets a reference that is never given back. A list would not do: the interpreter empties it at its end.
    """
    import ctypes

    for copy in copies:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(copy))


def _in_child() -> None:
    living = list(_living)
    if not living:
        return
    keep(*open_handles())
    for one in living:
        one.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
