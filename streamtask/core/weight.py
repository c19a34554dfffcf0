"""How many bytes a unit of a batch sends: every event and dead letter, with everything that is repeated in each of them.

These are upper estimates made without encoding: a batch is cut before its texts exist. What a task repeats in every event (its
labels, trace headers and type) is computed once and kept with the claim. Not included: compression, which only helps, and
ledger texts, which travel with the offsets and not with the flush.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamtask.core.shard import Claim, LastEvent
from streamtask.domain.model import DeadLetter

EVENT_BYTES = (
    512  # an event without labels, texts and result: ids, times, names of fields, key, headers, record overhead
)
LETTER_BYTES = 1_024  # a dead letter without its record, texts and traceback: its key and a dozen headers
ENTRY_BYTES = 8  # overhead of one label or header: quotes, colon, comma; or two lengths


def text_bytes(text: str | None) -> int:
    """Length in UTF-8, without JSON escapes."""
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def labels_bytes(labels: Mapping[str, str] | None) -> int:
    if not labels:
        return 0
    return sum(text_bytes(name) + text_bytes(value) + ENTRY_BYTES for name, value in labels.items())


def headers_bytes(headers: tuple[tuple[str, bytes], ...]) -> int:
    return sum(len(name) + len(value or b"") + ENTRY_BYTES for name, value in headers)


def event_bytes(claim: Claim) -> int:
    """Size of each event of this task, without its own result and texts."""
    if not claim.event_bytes:
        headers = claim.headers
        claim.event_bytes = EVENT_BYTES + text_bytes(claim.task_type) + (headers_bytes(headers) if headers else 0)
        claim.label_bytes = labels_bytes(claim.labels)
    return claim.event_bytes + (claim.label_bytes if claim.bare < 2 else 0)


def claim_bytes(claim: Claim, events: int) -> int:
    """Size of everything that a batch sends for this claim in this many events."""
    size = event_bytes(claim) * events
    if claim.wait is not None:
        size += text_bytes(claim.wait.message)
    if claim.progress is not None:
        size += text_bytes(claim.progress.message)
    final = claim.final
    if final is not None:
        size += len(final.result or b"") if final.error is None else final_bytes(final)
        if final.dead:
            size += record_bytes(claim)
    return size


def final_bytes(final: LastEvent) -> int:
    """Size of the result, or of the texts of a failure, which are in the event and in the headers of the dead letter."""
    texts = text_bytes(final.error) + text_bytes(final.exception)
    return len(final.result or b"") + text_bytes(final.traceback) + texts * (2 if final.dead else 1)


def record_bytes(claim: Claim) -> int:
    """Size of the dead letter of a claim, without its texts."""
    record = claim.record
    return (
        LETTER_BYTES
        + len(record.key or b"")
        + headers_bytes(record.headers)
        + (0 if claim.bare > 1 else len(record.value))
    )


def letter_bytes(letter: DeadLetter) -> int:
    """Size of a dead letter without a task."""
    record = letter.record
    size = LETTER_BYTES + text_bytes(letter.text) + len(record.key or b"") + headers_bytes(record.headers)
    return size if letter.reference else size + len(record.value)
