"""The headers of a record, whatever its producer has written there."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

# Not `message.headers()`: see headers_of. A call through C is always checked, even after its thousandth time.
_headers = methodcaller("headers")


def headers_of(message: Any) -> Any:
    """Its headers as confluent_kafka returns them; None if there are none, or if they cannot be read.

    A header's name is bytes on the wire. confluent_kafka reads it as UTF-8, and if it is not, `headers()` returns a list with
    a hole *and* an exception set. Python turns that into a SystemError, but not once it has specialised the call: then the
    exception surfaces at some later line (or when the hole is touched). Without this, one such record ended every worker
    that came to own it.
    """
    try:
        return _headers(message)
    except SystemError:
        return None
