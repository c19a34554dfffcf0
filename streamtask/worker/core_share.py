"""How many processes a worker starts by default, and how they divide its cores.

On 8 cores, `streamtask worker app:app` starts 8 worker processes, each with two children for process handlers: one for any
band, one reserved for the high band. With `--processes 2`, each of the two has 4 children. So ordinary work keeps about as
many children busy as there are cores, however many processes share them.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamtask.config import PROCESSES_MAX, default_children
from streamtask.config.container import Cores


@dataclass(frozen=True, slots=True)
class CoreShare:
    """processes_by: `given`, or what limits the cores; children: of each worker process."""

    processes: int
    processes_by: str
    children: int

    def log_fields(self) -> dict[str, object]:
        """The fields for the operator."""
        return {"processes": self.processes, "processes_by": self.processes_by}


def share_of(processes: int | None, children: int | None, cores: Cores) -> CoreShare:
    """processes, children: the settings; None: not set. More worker processes than partitions are possible, and idle."""
    count = processes or min(cores.count, PROCESSES_MAX)
    return CoreShare(
        processes=count,
        processes_by="given" if processes else cores.source,
        children=children or default_children(cores.count, count),
    )
