"""The tasks that the demo submits: one for each file, and a few that misbehave on purpose."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamtask.domain.identity import new_task_id
from streamtask.domain.model import TaskRequest
from streamtask.errors import ConfigError

FILES_MAX = 20_000
SMALL_BYTES, LARGE_BYTES = 4_000, 60_000
FLAKY, MISSING, PATIENT, ENDLESS = 5, 3, 3, 3
FOREIGN_EVERY = 5  # the other service requests every fifth file
_SKIPPED = {"__pycache__", ".git", "node_modules", ".venv", "site-packages"}


@dataclass(slots=True)
class Plan:
    """own: submitted by the client; foreign: paths for the other service; endless: ids of tasks to cancel as they run."""

    root: Path
    own: list[TaskRequest] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    endless: list[TaskRequest] = field(default_factory=list)

    @property
    def shown(self) -> str | None:
        """The id of a task that is worth a look, because it is retried."""
        return next((r.task_id for r in self.own if r.task_type == "flaky_census"), None)

    @property
    def total(self) -> int:
        return len(self.own) + len(self.foreign) + len(self.endless)


def make_plan(directory: Path | None) -> Plan:
    """The tasks for this folder (None: the standard library of the running Python). Raises ConfigError."""
    root = (directory or Path(sysconfig.get_paths()["stdlib"])).resolve()
    if not root.is_dir():
        raise ConfigError(f"DIR={root} is not a folder.")
    files = []
    for path in _files(root):
        files.append(path)
        if len(files) == FILES_MAX:
            break
    if not files:
        raise ConfigError(f"DIR={root} contains no readable files.")
    plan = Plan(root)
    for number, path in enumerate(files):
        if number % FOREIGN_EVERY == FOREIGN_EVERY - 1:
            plan.foreign.append(str(path))
        else:
            plan.own.append(_request("file_census", path, _priority(path)))
    some = str(files[0])
    plan.own += [_request("flaky_census", some, 7) for _ in range(FLAKY)]
    plan.own += [_request("file_census", f"{root}/there is no such file {n}", 6) for n in range(MISSING)]
    plan.own += [_request("patient_census", some, 9) for _ in range(PATIENT)]
    plan.endless = [_request("endless_census", some, 10) for _ in range(ENDLESS)]
    return plan


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and os.access(path, os.R_OK) and not name.endswith((".pyc", ".so", ".a", ".o")):
                yield path


def _priority(path: Path) -> int:
    """Small files are urgent, large ones can wait."""
    size = path.stat().st_size
    return 8 if size < SMALL_BYTES else 5 if size < LARGE_BYTES else 2


def _request(task_type: str, path: Path | str, priority: int) -> TaskRequest:
    return TaskRequest(task_type=task_type, parameters={"path": str(path)}, priority=priority, task_id=new_task_id())
