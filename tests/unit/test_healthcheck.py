"""The image's health check asks what runs in the container, and says why it is not content."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streamtask.devbroker.cluster import free_ports

SCRIPT = Path(__file__).parents[2] / "deploy" / "healthcheck.py"
FINE = {"/health": 200, "/ready": 200}


@contextmanager
def answering(port: int, codes: Mapping[str, int]) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(codes[self.path])
            self.end_headers()
            self.wfile.write(b'{"problems": ["it hangs"]}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield
        one.shutdown()


def look(worker: int, service: int, *paths: str) -> tuple[int, str]:
    environment = {**os.environ, "STREAMTASK_METRICS_PORT": str(worker), "STREAMTASK_PORT": str(service)}
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *paths], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


def two_in_a_row() -> int:
    """A port that is free, and the next one too."""
    while True:
        (first,) = free_ports(1)
        with ExitStack() as held:
            try:
                for port in (first, first + 1, first + 2):
                    held.enter_context(ThreadingHTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler))
            except OSError:
                continue
            return first


@pytest.fixture
def ports() -> tuple[int, int]:
    return two_in_a_row(), free_ports(1)[0]


def test_a_worker_is_asked_in_every_process_of_it(ports: tuple[int, int]) -> None:
    worker, _ = ports
    with answering(worker, FINE):
        assert look(*ports) == (0, "ok")
        with answering(worker + 1, FINE | {"/health": 503}):
            assert look(*ports) == (1, f'{worker + 1}/health: 503 {{"problems": ["it hangs"]}}')
            assert look(*ports, "/ready") == (0, "ok")


def test_where_no_worker_listens_the_query_service_is_asked(ports: tuple[int, int]) -> None:
    _, service = ports
    with answering(service, FINE | {"/ready": 503}):
        assert look(*ports) == (0, "ok")
        assert look(0, service) == (0, "ok"), "a worker's endpoint is off"
        code, text = look(*ports, "/health", "/ready")
        assert (code, text.split(" ")[0]) == (1, f"{service}/ready:")


def test_where_nobody_listens_nothing_is_healthy(ports: tuple[int, int]) -> None:
    code, text = look(*ports)
    assert (code, text) == (1, f"nothing listens on {ports[0]} (worker) or {ports[1]} (query service)")
