"""A schema registry over HTTP that does what a test tells it: answers, refuses, fails, hangs, drips, lies.

Its memory is the one of `mock://`; what it adds is the wire. `mode` may be changed at any time.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from streamtask.errors import ClusterError
from streamtask.schema_registry.mock import MockRegistry


class FakeRegistry:
    """mode: "well", or what goes wrong: "500", "401", "hang", "drip", "garbage", "endless".

    tls  it speaks HTTPS alone
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.mode = "well"
        self.held = MockRegistry("fake")
        self.asked: Counter[str] = Counter()  # "GET /schemas/ids/7": how often
        self.headers: dict[str, str] = {}  # of the last call
        self.released = threading.Event()  # ends every call that hangs
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        if tls is not None:
            # The handshake is the reading thread's: one that fails must not stop the others from being accepted.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
            self._server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # on this server alone
        self.url = f"http{'s' * (tls is not None)}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-registry")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def fake_registry(tls: ssl.SSLContext | None = None) -> Iterator[FakeRegistry]:
    fake = FakeRegistry(tls)
    fake.start()
    try:
        yield fake
    finally:
        fake.close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeRegistry
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0)))))

    do_PUT = do_POST

    def _serve(self, body: Any) -> None:
        fake = self.fake
        path = self.path.partition("?")[0]
        fake.asked[f"{self.command} {path}"] += 1
        fake.headers = dict(self.headers)
        mode = fake.mode
        try:
            if mode == "well":
                self._send(*self._answer(path, body))
            elif mode in ("500", "401"):
                self._send(int(mode), {"error_code": int(mode), "message": "told to"})
            elif mode == "hang":
                fake.released.wait(30)
                self.close_connection = True
            elif mode == "garbage":
                self._send(200, b"<html>")
            else:
                self._drip(endless=mode == "endless")
        except OSError:
            self.close_connection = True  # whoever asked has gone

    def _drip(self, *, endless: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**9))
        self.end_headers()
        while not self.fake.released.wait(0 if endless else 0.05):
            self.wfile.write(b" " * 100_000 if endless else b" ")
            self.wfile.flush()

    def _send(self, code: int, document: Any) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, path: str, body: Any) -> tuple[int, Any]:
        held = self.fake.held
        parts = [unquote(part) for part in path.strip("/").split("/")]
        missing = 404, {"error_code": 40403, "message": "not found"}
        if parts[:2] == ["schemas", "ids"]:
            found = held.schema(int(parts[2]))
            return missing if found is None else (200, {"schema": found.text})
        if parts[0] == "config":
            if self.command == "PUT":
                held.set_compatibility(parts[1], body["compatibility"])
            level = held.compatibility(parts[1])
            return missing if level is None else (200, {"compatibilityLevel": level})
        if parts[0] == "compatibility":
            against = held.compatible(parts[2], body["schema"])
            return 200, {"is_compatible": not against, "messages": against}
        return self._subject(parts, body)

    def _subject(self, parts: list[str], body: Any) -> tuple[int, Any]:
        """/subjects/S, /subjects/S/versions, /subjects/S/versions/N"""
        held, subject = self.fake.held, parts[1]
        if self.command == "POST":
            if len(parts) == 3:
                try:
                    return 200, {"id": held.register(subject, body["schema"])}
                except ClusterError as error:
                    return 409, {"error_code": 409, "message": str(error)}
            known = held.id_of(subject, body["schema"])
            return (404, {"error_code": 40403}) if known is None else (200, {"id": known})
        versions = held.versions(subject)
        if not versions:
            return 404, {"error_code": 40401}
        if len(parts) == 3:
            return 200, [version.number for version in versions]
        version = versions[int(parts[3]) - 1]
        return 200, {"id": version.schema_id, "version": version.number, "schema": version.text}
