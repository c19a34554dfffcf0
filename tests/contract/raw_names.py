"""Names of headers in bytes that are no UTF-8: only a client that is told to will write them."""

from __future__ import annotations


class RawName(str):
    """For kafka-python, which encodes the name that it is given."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe\x00"
