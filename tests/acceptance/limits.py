"""A container's memory limit around every worker of the acceptance tests, where one is asked for:

    ACCEPTANCE_MEMORY_MB=512 python -m pytest tests/acceptance

Each worker (a supervisor with all its processes, and the children of those) gets a control group of its own, as a container
would: a test fails when the kernel has killed one in it for lack of memory. It needs the right to make control groups (root,
v1 or a delegated v2 tree); without it the tests are refused rather than run without the limit. Not `ulimit -v`: a process of
75 MB has 1.3 GB of addresses, most of them stacks of threads that nobody has touched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

VARIABLE = "ACCEPTANCE_MEMORY_MB"
ROOT = Path("/sys/fs/cgroup")
MIB = 1 << 20


class Group:
    """One control group. Raises RuntimeError where none can be made."""

    def __init__(self, limit_mb: int) -> None:
        base, self._v2 = _own()
        self.path = base / f"acceptance-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self.path.mkdir()
            (self.path / ("memory.max" if self._v2 else "memory.limit_in_bytes")).write_text(str(limit_mb * MIB))
        except OSError as error:
            raise RuntimeError(f"{VARIABLE} is set, and no control group can be made: {error}") from None

    def within(self, argv: list[str]) -> list[str]:
        """A command that enters the group and becomes this one."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *argv]

    def kills(self) -> int:
        """Processes that the kernel has killed in it for lack of memory."""
        text = (self.path / ("memory.events" if self._v2 else "memory.oom_control")).read_text()
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def close(self) -> None:
        """Its processes have ended; one that has not keeps it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


def group() -> Group | None:
    """What one worker is to run in; None: without a limit."""
    wanted = os.environ.get(VARIABLE)
    return Group(int(wanted)) if wanted else None


def _own() -> tuple[Path, bool]:
    """The memory group of this process, and whether it is of v2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _there(ROOT / "memory", path), False
        if not controllers and (ROOT / "cgroup.controllers").exists():
            return _there(ROOT, path), True
    raise RuntimeError(f"{VARIABLE} is set, and there is no memory controller")


def _there(base: Path, path: str) -> Path:
    found = base / path.lstrip("/")
    return found if found.is_dir() else base
