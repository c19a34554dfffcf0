"""Which tests CI lets skip themselves: those whose need truly cannot be met where it runs.

On a developer's machine a missing tool skips its tests, and pytest names them. In CI (STREAMTASK_TESTS_STRICT=1, set by
tests/parts.py) such a skip is a failure, for a test that nobody runs proves nothing, except when

- the tool is one that `.ci/run` tried to install in vain (STREAMTASK_TESTS_WITHOUT names them), or
- the machine itself refuses: no memory cgroup, no right to run dockerd, an image that no registry gives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

import pytest

STRICT = "STREAMTASK_TESTS_STRICT"
WITHOUT = "STREAMTASK_TESTS_WITHOUT"

# The words of the skips that no installation mends.
REFUSED_BY_THE_MACHINE = (
    r"no memory cgroup can be (made|limited) here",
    r"only root on Linux can start one",
    r"dockerd does not run here",
    r"is not here and cannot be pulled",
    r"the stand-in of \S+ cannot be made",
    r"docker compose \S+ cannot be built",
    r"KEDA's definition cannot be had",
    r"Go 1\.\d+ or newer is needed",  # the distribution's is older
)


def permitted(reason: str, without: Collection[str]) -> bool:
    """Whether CI accepts a skip for this reason. without: the tools that cannot be had here."""
    if any(re.search(pattern, reason) for pattern in REFUSED_BY_THE_MACHINE):
        return True
    words = set(re.findall(r"[\w-]+", reason))
    return any(tool in words for tool in without)


def refuse(report: pytest.TestReport | pytest.CollectReport, environment: Mapping[str, str] = os.environ) -> None:
    """Turn a skip that CI does not accept into a failure."""
    if not report.skipped or hasattr(report, "wasxfail") or environment.get(STRICT) != "1":
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not permitted(reason, environment.get(WITHOUT, "").split()):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where what it needs has to be installed: {reason}"
