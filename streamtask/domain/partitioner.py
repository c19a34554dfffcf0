"""The partition of a key: murmur2, as in Kafka's Java client and librdkafka's `murmur2_random`.

Used to notice producers that partition differently. For its own records streamtask leaves this to librdkafka.
"""

from __future__ import annotations

_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash of org.apache.kafka.common.utils.Utils.murmur2, unsigned."""
    length = len(data)
    value = 0x9747B28C ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * 0x5BD1E995 & _MASK
        k = (k ^ k >> 24) * 0x5BD1E995 & _MASK
        value = value * 0x5BD1E995 & _MASK ^ k
    rest = data[whole:]
    if rest:
        value ^= int.from_bytes(rest, "little")
        value = value * 0x5BD1E995 & _MASK
    value = (value ^ value >> 13) * 0x5BD1E995 & _MASK
    return value ^ value >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a non-empty key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
