"""The partition of a key: murmur2, as in Kafka's Java client and librdkafka's `murmur2_random`.

Used to notice producers that partition differently, and to draw ids that lie together (client/nearby_ids.py). Its own records
streamtask leaves to librdkafka.
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


def prefix_hashed(prefix: bytes, length: int) -> int:
    """The state of murmur2 before the last four bytes of a key of `length` bytes that begins with `prefix`.

    `finished` of this, XOR `block_mixed` of those four, modulo the number of partitions is the key's partition.
    """
    assert len(prefix) == length - 4, f"{len(prefix)} of {length} bytes"
    assert length % 4 == 0, f"{length} bytes"
    value = 0x9747B28C ^ length
    for at in range(0, len(prefix), 4):
        value = value * 0x5BD1E995 & _MASK ^ block_mixed(prefix[at : at + 4])
    return value * 0x5BD1E995 & _MASK


def block_mixed(block: bytes) -> int:
    """What four bytes contribute to murmur2."""
    k = int.from_bytes(block, "little") * 0x5BD1E995 & _MASK
    return (k ^ k >> 24) * 0x5BD1E995 & _MASK


def finished(value: int) -> int:
    """The non-negative number whose remainder is the partition."""
    value = (value ^ value >> 13) * 0x5BD1E995 & _MASK
    return (value ^ value >> 15) & 0x7FFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a non-empty key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
