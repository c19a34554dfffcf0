"""The headers of a record, whatever their producer has written there."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

# Not `message.headers()`: see headers_of. A call that comes from C is always looked at, also after its thousandth time.
_headers = methodcaller("headers")


def headers_of(message: Any) -> Any:
    """Its headers as confluent_kafka hands them over; None when there are none, or when they cannot be read.

    A header's name is bytes on the wire. confluent_kafka reads it as UTF-8, and where it is none, `headers()` returns a list
    with a hole *and* an exception set. Python makes a SystemError of that, but not once it has specialised the call: then the
    exception comes up at some later line (or the hole is touched). Left alone, one such record ended every worker that came
    to own it.
    """
    try:
        return _headers(message)
    except SystemError:
        return None
