"""Ends everything that a child has started, and is also the process that does so when the worker itself is gone.

It runs as a plain file that imports only the standard library, so it starts in a few milliseconds and stays small. It reads
`+PID` and `-PID` from its worker for each child (a process group). When that pipe ends, it kills what is left: the groups,
then every process that still has the mark in its environment (a grandchild that left the group).

The kernel SIGKILLs children when their worker dies, but does not reach *their* children: hence this process.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

MARK = "STREAMTASK_CHILD"  # in the environment of a child and of what it starts: `<pool>.<number of the child>.`
ROUNDS_MAX = 20  # a process that forks during the search is found in the next round
DEATH_S = 2.0  # a SIGKILL takes effect when the process next gets a processor, which may take time on a busy machine


def kill_group(pid: int) -> None:
    """Send SIGKILL to a process group, which may be empty."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # macOS returns PermissionError for a group of zombies


def kill_marked(mark: str) -> int:
    """Send SIGKILL to every process whose mark begins with `mark`, until there is none. Returns how many. Without /proc: 0.

    It waits for their deaths, up to DEATH_S in all, because the task may run again as soon as its end is reported.

    A process that clears its environment and leaves its group escapes: only a cgroup or a container prevents that.
    """
    wanted = f"{MARK}={mark}".encode()
    deadline_s = time.monotonic() + DEATH_S
    killed: set[int] = set()  # a process that dies slowly appears again in the next round
    for _ in range(ROUNDS_MAX):
        found = [pid for pid in _pids() if pid != os.getpid() and _is_marked(pid, wanted)]
        if not found:
            break
        deaths = [(pid, _kill(pid)) for pid in found]  # kill all before waiting: one may be starting others
        for pid, death in deaths:
            if death is not None:
                killed.add(pid)
                _await(death, deadline_s)
    return len(killed)


def _kill(pid: int) -> int | None:
    """Send SIGKILL. Returns a descriptor that signals the death (-1: not supported here), or None if the process had gone."""
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
    """Wait until the process has died or time.monotonic() is at the deadline."""
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
    """Wait until the worker's pipe ends; then leave nothing behind."""
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
