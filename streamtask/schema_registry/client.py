"""Talks to a schema registry by Confluent's HTTP API, of which it uses a few requests.

Every call ends within the timeout, whatever the server does (refuses, hangs, sends slowly or without end), and its error
says what happened: RegistryUnreachable when the registry failed (no answer, 5xx), ClusterError when it refuses the
request. Several URLs are tried in turn. Confluent's own client is not used: it waits for ever unless configured
otherwise, and needs eight packages.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from streamtask.errors import ClusterError, ConfigError, RegistryUnreachable
from streamtask.schema_registry.mock import mock_registry
from streamtask.schema_registry.protocol import Found, Registry, Version

TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 4_000_000
FULL_TRANSITIVE = "FULL_TRANSITIVE"
MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"

# What the setting `registry` may contain; names as in Confluent's clients.
SETTINGS = (
    "timeout",  # seconds per call
    "basic.auth.user.info",  # user:password; may also be in the URL
    "bearer.auth.token",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "auto.register.schemas",  # false: `format=confluent` uses the registered schemas and registers none
)


def open_registry(url: str, settings: Mapping[str, Any]) -> Registry:
    """The registry at this URL (or several, separated by commas); `mock://NAME` is in this process. Sends nothing yet.
    Raises ConfigError."""
    wrong = [name for name in settings if name not in SETTINGS]
    if wrong:
        raise ConfigError(f"registry: unknown setting {', '.join(wrong)}; use {', '.join(SETTINGS)}.")
    if url.startswith("mock://"):
        return mock_registry(url)
    return HttpRegistry(url, settings)


class HttpRegistry:
    """A registry over HTTP. Any thread may call it."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigError(
                "A schema registry needs httpx. Install it: pip install 'streamtask-kafka[registry]'."
            ) from None
        self._httpx = httpx
        self._urls = [part.strip().rstrip("/") for part in url.split(",") if part.strip()]
        for part in self._urls:
            if urlsplit(part).scheme not in ("http", "https") or not urlsplit(part).hostname:
                raise ConfigError(f"registry_url={redacted(part)!r}: use http://HOST:PORT, https://… or mock://NAME.")
        if not self._urls:
            raise ConfigError("registry_url is empty.")
        self._timeout_s = float(settings.get("timeout", TIMEOUT_S))
        headers = {"Accept": f"{MEDIA_TYPE}, application/json", "Content-Type": MEDIA_TYPE}
        if token := settings.get("bearer.auth.token"):
            headers["Authorization"] = f"Bearer {token}"
        user, _, password = str(settings.get("basic.auth.user.info", "")).partition(":")
        self._http = httpx.Client(
            headers=headers,
            auth=(user, password) if user else None,
            timeout=self._timeout_s,
            verify=_tls(settings),
            follow_redirects=False,
        )

    @property
    def url(self) -> str:
        return ",".join(map(redacted, self._urls))

    def close(self) -> None:
        self._http.close()

    def schema(self, schema_id: int) -> Found | None:
        answer = self._ask("GET", f"/schemas/ids/{schema_id}", missing=(404,))
        if answer is None:
            return None
        return Found(str(answer.get("schemaType") or "AVRO"), str(answer.get("schema")), bool(answer.get("references")))

    def versions(self, subject: str) -> list[Version]:
        numbers = self._ask("GET", f"/subjects/{_part(subject)}/versions", missing=(404,))
        found = []
        for number in numbers or []:
            held = self._ask("GET", f"/subjects/{_part(subject)}/versions/{int(number)}")
            found.append(Version(int(number), int(held["id"]), str(held["schema"])))
        return found

    def id_of(self, subject: str, text: str) -> int | None:
        answer = self._ask("POST", f"/subjects/{_part(subject)}", {"schema": text}, missing=(404,))
        return None if answer is None else int(answer["id"])

    def register(self, subject: str, text: str) -> int:
        return int(self._ask("POST", f"/subjects/{_part(subject)}/versions", {"schema": text})["id"])

    def compatible(self, subject: str, text: str) -> list[str]:
        path = f"/compatibility/subjects/{_part(subject)}/versions?verbose=true"
        answer = self._ask("POST", path, {"schema": text}, missing=(404,))
        if answer is None or answer.get("is_compatible"):
            return []
        return [str(line) for line in answer.get("messages") or ["it is not compatible"]]

    def compatibility(self, subject: str) -> str | None:
        answer = self._ask("GET", f"/config/{_part(subject)}", missing=(404,))
        return None if answer is None else str(answer.get("compatibilityLevel"))

    def set_compatibility(self, subject: str, level: str) -> None:
        self._ask("PUT", f"/config/{_part(subject)}", {"compatibility": level})

    def _ask(self, method: str, path: str, body: Any = None, *, missing: tuple[int, ...] = ()) -> Any:
        """The answer's JSON; None for a status in `missing`. Raises RegistryUnreachable, ClusterError."""
        deadline = time.monotonic() + self._timeout_s
        last: RegistryUnreachable | None = None
        for url in self._urls:
            try:
                return self._ask_one(method, url, path, body, missing, deadline)
            except RegistryUnreachable as error:
                last = error
        assert last is not None, "there is a URL"
        raise last

    def _ask_one(self, method: str, url: str, path: str, body: Any, missing: tuple[int, ...], deadline: float) -> Any:
        where = f"The schema registry {redacted(url)}"
        left = max(deadline - time.monotonic(), 0.1)
        try:
            content = None if body is None else json.dumps(body).encode()
            with self._http.stream(method, url + path, content=content, timeout=left) as answer:
                held = bytearray()
                for part in answer.iter_bytes():
                    held += part
                    if len(held) > ANSWER_BYTES_MAX:
                        raise RegistryUnreachable(f"{where} sends an endless answer.")
                    if time.monotonic() > deadline:
                        raise RegistryUnreachable(f"{where} has not answered within {self._timeout_s:g} s.")
        except self._httpx.TimeoutException:
            raise RegistryUnreachable(f"{where} has not answered within {self._timeout_s:g} s.") from None
        except (self._httpx.HTTPError, self._httpx.InvalidURL, OSError) as error:
            text = f"{where} cannot be reached ({error or type(error).__name__}).{_advice(str(error))}"
            raise RegistryUnreachable(text) from None
        if answer.status_code in missing:
            return None
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise RegistryUnreachable(f"{where} answers {answer.status_code}{_message(held)}.")
        if answer.status_code >= 300:
            raise ClusterError(f"{where} refuses {method} {path}: {answer.status_code}{_message(held)}.")
        try:
            return json.loads(held)
        except ValueError:
            raise RegistryUnreachable(f"{where} does not answer in JSON. Check that it is a schema registry.") from None


def _tls(settings: Mapping[str, Any]) -> ssl.SSLContext | bool:
    certificate, ca = settings.get("ssl.certificate.location"), settings.get("ssl.ca.location")
    if not certificate and not ca:
        return True
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
        if certificate:
            key, password = settings.get("ssl.key.location"), settings.get("ssl.key.password")
            context.load_cert_chain(str(certificate), str(key) if key else None, str(password) if password else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"registry: the certificates cannot be read ({error}).") from None
    return context


def _advice(error: str) -> str:
    """What to do about a failed handshake, where OpenSSL's error is unambiguous."""
    if "issuer certificate" in error or "self-signed certificate" in error:
        return " Set the authority that signed its certificate: ssl.ca.location in `registry`."
    if "CERTIFICATE_REQUIRED" in error:
        return " It requires a client certificate: set ssl.certificate.location in `registry`."
    return ""


def redacted(url: str) -> str:
    """The URL without user and password."""
    return re.sub(r"//[^/@]*@", "//", url)


def _part(subject: str) -> str:
    return quote(subject, safe="")


def _message(held: bytes | bytearray) -> str:
    try:
        answer = json.loads(held)
        text = answer.get("message") or answer.get("detail") or answer.get("title")
    except (ValueError, AttributeError):
        return ""
    return f" ({str(text)[:300]})" if text else ""
