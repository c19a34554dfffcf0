"""What a worker process leaves with its supervisor while it lives: its member id, and signs of life.

A file without a name that both hold open: whatever was written is there the moment the process dies, however it does.
Layout: the member id in NOTE_BYTES, padded with zeroes; then the number of beats, 8 bytes, little-endian.
"""

from __future__ import annotations

import os
import sys
import tempfile

NOTE_FD = "STREAMTASK_NOTE_FD"  # environment of a child: this file
NOTE_BYTES = 1_024  # the member id is written whole, so that nothing of an older one is left
BEAT_BYTES = 8


class NoteFile:
    """The supervisor's side."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self.fd = os.memfd_create("streamtask-note")  # also where no directory can be written to
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())

    def member(self) -> str:
        """The member id that the child held last; "" when it had left, or had not joined."""
        return os.pread(self.fd, NOTE_BYTES, 0).partition(b"\0")[0].decode(errors="replace")

    def beats(self) -> int:
        """Signs of life so far; 0: none yet."""
        return int.from_bytes(os.pread(self.fd, BEAT_BYTES, NOTE_BYTES), "little")

    def close(self) -> None:
        os.close(self.fd)


class Note:
    """The child's side; does nothing when there is no supervisor. Popped from the environment: what is started from here
    is not the supervisor's child."""

    def __init__(self) -> None:
        text = os.environ.pop(NOTE_FD, "")
        self._fd = int(text) if text.isdigit() else None
        self._beats = 0
        if self._fd is not None:
            os.set_inheritable(self._fd, False)

    def member(self, member_id: str) -> None:
        """Keep the member id where the supervisor finds it; "" while not a member."""
        value = member_id.encode()
        assert len(value) < NOTE_BYTES, f"a member id of {len(value)} bytes"
        if self._fd is not None:
            os.pwrite(self._fd, value.ljust(NOTE_BYTES, b"\0"), 0)

    def beat(self) -> None:
        """A sign of life, about once a second: whoever gave one and gives none for 30 s is killed."""
        self._beats += 1
        if self._fd is not None:
            os.pwrite(self._fd, self._beats.to_bytes(BEAT_BYTES, "little"), NOTE_BYTES)
