"""The end of everything that a child has started; and the process that brings it about when the worker itself is gone.

Run as a plain file with nothing imported but the standard library: it starts in a few milliseconds and stays small. It
reads from its worker `+PID` and `-PID` for each child (a process group of its own) and, when that pipe ends, kills what
is left: the groups, then whoever still carries the mark in its environment (a grandchild that left the group).

Children are SIGKILLed by the kernel when their worker dies, but nobody tells *their* children: hence this process.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

MARK = "STREAMTASK_CHILD"  # in the environment of a child and of what it starts: `<pool>.<number of the child>.`
ROUNDS_MAX = 20  # a process that forks while it is looked for is found in the next round
DEATH_S = 2.0  # a SIGKILL is carried out when the process next gets a processor: on a busy machine that is not at once


def kill_group(pid: int) -> None:
    """SIGKILL to a process group; none left is fine."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # macOS says PermissionError of a group of zombies


def kill_marked(mark: str) -> int:
    """SIGKILL to every process whose mark begins so, until there is none. Returns how many. Needs /proc, else 0.

    Their deaths are awaited, up to DEATH_S in all: who is told of the end may run the task again at once.

    One that empties its environment and leaves its group escapes: nothing short of a cgroup or a container holds that.
    """
    wanted = f"{MARK}={mark}".encode()
    deadline_s = time.monotonic() + DEATH_S
    killed: set[int] = set()  # one that dies slowly is met again in the next round
    for _ in range(ROUNDS_MAX):
        found = [pid for pid in _pids() if pid != os.getpid() and _is_marked(pid, wanted)]
        if not found:
            break
        deaths = [(pid, _kill(pid)) for pid in found]  # all of them first: one may be starting others
        for pid, death in deaths:
            if death is not None:
                killed.add(pid)
                _await(death, deadline_s)
    return len(killed)


def _kill(pid: int) -> int | None:
    """SIGKILL. Returns a descriptor that tells of its death (-1: this system has none), or None: it had gone."""
    try:
        death = os.pidfd_open(pid) if sys.platform == "linux" else -1
    except OSError:
        death = -1
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        if death >= 0:
            os.close(death)
        return None
    return death


def _await(death: int, deadline_s: float) -> None:
    """Until the process has died or time.monotonic() is at the deadline."""
    if death >= 0:
        poll = select.poll()
        poll.register(death, select.POLLIN)
        poll.poll(max(0.0, deadline_s - time.monotonic()) * 1_000)
        os.close(death)


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _is_marked(pid: int, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # empty for a zombie
            text = file.read()
    except OSError:
        return False
    return text.startswith(wanted) or b"\0" + wanted in text


def main(pool: str) -> None:
    """Stay until the worker's pipe ends; then leave nothing behind."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):  # meant for the worker: it drains, and its children still run
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        if line[:1] == b"+":
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for pid in groups:
        kill_group(pid)
    kill_marked(pool + ".")


if __name__ == "__main__":
    main(sys.argv[1])
