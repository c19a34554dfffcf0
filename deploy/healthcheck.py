"""Is what runs in this container healthy? Exit code 0 or 1, and one line that says why.

    streamtask-healthcheck [PATH …]        # none: /health; e.g. /health /ready

A worker is asked at STREAMTASK_METRICS_PORT, each further process of it one port on; where none listens, the query service
at STREAMTASK_PORT. Every path must answer 200 everywhere. Nothing is imported but the standard library: it runs every few
seconds.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

SLOTS_MAX = 256
TIMEOUT_S = 3.0
TEXT_MAX = 300  # the container's state holds what we print


def ask(port: int, path: str) -> str | None:
    """What is wrong, or "" when nothing is; None when nobody listens there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as answer:
        return f"{port}{path}: {answer.code} {answer.read(TEXT_MAX).decode(errors='replace').strip()}"
    except OSError as error:  # of them URLError, which holds the real one
        if isinstance(getattr(error, "reason", error), ConnectionRefusedError):
            return None
        return f"{port}{path}: {error}"


def look(paths: list[str]) -> list[str]:
    """Everything that is wrong."""
    worker, service = (
        int(os.environ.get("STREAMTASK_METRICS_PORT") or 0),
        int(os.environ.get("STREAMTASK_PORT") or 8080),
    )
    problems: list[str] = []
    for slot in range(SLOTS_MAX if worker else 0):
        answers = [ask(worker + slot, path) for path in paths]
        if None in answers:
            if slot:
                return problems
            break
        problems += filter(None, answers)
    answers = [ask(service, path) for path in paths]
    if None in answers:
        return [f"nothing listens on {worker} (worker) or {service} (query service)"]
    return [*problems, *filter(None, answers)]


if __name__ == "__main__":
    found = look(sys.argv[1:] or ["/health"])
    print("; ".join(found) or "ok")
    sys.exit(bool(found))
