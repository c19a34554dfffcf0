"""Which hosts a request may name, and whether a page of another site sent it.

A service on a loopback address, or one without an API key, can be reached by every web page that its users visit. A
browser only keeps a page from reading the answers of another *origin*, so the service checks two headers:

- `Origin` must be the host that was addressed, for a request that writes or opens a WebSocket.
- `Host` must be a name that this service has. This stops DNS rebinding: a page of evil.example makes its own name resolve
  to 127.0.0.1; to the browser it then talks to its own site, and the Origin matches.

An IP address cannot be rebound, because no name is looked up for it, so every one is allowed: Kubernetes probes, load
balancers and Prometheus use addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from streamtask.errors import ConfigError

_KNOWN_MAX = 256  # spellings that are cached as allowed; a client always sends the same one
_NAME = re.compile(r"(\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?)\Z")
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\s]+)(:[0-9]{0,5})?\Z")


class Hosts:
    """The names of this service: localhost, every IP address, the host that it is bound to, and `allowed`.

    allowed  names; `*.example.com` means every name below that one, `*` means any name

    Raises ConfigError for something that is not a valid name.
    """

    def __init__(self, bound: str = "", allowed: Iterable[str] = ()) -> None:
        names = {name.strip().lower() for name in allowed}
        for name in names:
            if not _NAME.match(name):
                raise ConfigError(
                    f"allowed_hosts: {name!r} is not a host name. Write example.com or *.example.com, without scheme or port."
                )
        self._any = "*" in names
        self._names = {"localhost", bound.lower(), *(name.rstrip(".") for name in names)} - {""}
        self._below = tuple(name[1:] for name in names if name.startswith("*."))
        self._known: set[bytes] = set()

    def allows(self, host: bytes) -> bool:
        """Whether a request with this `Host` header is meant for this service."""
        if self._any or host in self._known:
            return True
        name = _host_of(host.decode("latin-1"))
        if name is None or not (
            name in self._names or name.endswith((".localhost", *self._below)) or _is_address(name)
        ):
            return False
        if len(self._known) < _KNOWN_MAX:
            self._known.add(host)
        return True


def is_foreign(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the page of another site sent this. Raises ValueError for an invalid Origin."""
    named = dict(headers)
    origin = named.get(b"origin")
    if origin is None:
        return False
    return origin_host(origin) != named.get(b"host", b"").decode("latin-1").lower()


def origin_host(origin: bytes) -> str:
    """`host:port` of an Origin header; "" for `null`, which equals no host. Raises ValueError when it is malformed."""
    text = origin.decode("latin-1")
    if text == "null":
        return ""
    parts = urlsplit(text)  # raises for `http://[`
    if not parts.scheme or f"{parts.scheme}://{parts.netloc}" != text.lower() or not _HOST.match(parts.netloc):
        raise ValueError(f"{text[:80]!r} is not scheme://host[:port]")
    _ = parts.port  # raises for a number that is not a port
    return parts.netloc.lower()


def _host_of(header: str) -> str | None:
    """The host in `host[:port]`, in lower case, without brackets or a final dot; None when it is malformed."""
    found = _HOST.match(header)
    return None if found is None else found["host"].strip("[]").lower().rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
