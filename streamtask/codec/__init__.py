"""Bytes ⇄ model: every document of every topic, by the schemas in schemas/.

One module per document: request.py, status.py, control.py, dead.py. result.py turns a handler's return value into JSON.
wire.py recognises the format of a record and holds what all of them share. reader.py converts the other formats (avro.py,
confluent.py) to JSON, formats.py writes them, compatibility.py checks their schemas. Pure: no clock, and no I/O except
that of a Reader's source of schemas. Anything that cannot be read or written raises DecodeError and nothing else;
RequestDecoder.decode and encode_status never raise.
"""

from streamtask.codec.control import decode_control, encode_control
from streamtask.codec.dead import DeadRecord, decode_dead, encode_dead
from streamtask.codec.request import (
    RequestDecoder,
    decode_request_strict,
    encode_fields,
    encode_request,
    peek_request,
    reopened,
)
from streamtask.codec.result import encode_result
from streamtask.codec.status import decode_status, encode_status, peek_status, status_headers, status_key

__all__ = [
    "DeadRecord",
    "RequestDecoder",
    "decode_control",
    "decode_dead",
    "decode_request_strict",
    "decode_status",
    "encode_control",
    "encode_dead",
    "encode_fields",
    "encode_request",
    "encode_result",
    "encode_status",
    "peek_request",
    "peek_status",
    "reopened",
    "status_headers",
    "status_key",
]
