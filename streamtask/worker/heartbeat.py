"""What a worker process shares with its supervisor while it lives: its member id, and signs of life.

This is an unnamed file that both hold open: whatever was written is available the moment the process dies, however it dies.
Layout: the member id in NOTE_BYTES, padded with zeros; then the number of beats, 8 bytes, little-endian.
"""

from __future__ import annotations

import os
import sys
import tempfile

NOTE_FD = "STREAMTASK_NOTE_FD"  # environment of a child: descriptor of this file
NOTE_BYTES = 1_024  # the member id is always written with padding, so nothing of an older one remains
BEAT_BYTES = 8


class NoteFile:
    """The supervisor's side of the file."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self.fd = os.memfd_create("streamtask-note")  # works even without a writable directory
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())

    def member(self) -> str:
        """The last member id of the child; "" if it had left the group, or had not joined."""
        return os.pread(self.fd, NOTE_BYTES, 0).partition(b"\0")[0].decode(errors="replace")

    def beats(self) -> int:
        """Number of signs of life so far."""
        return int.from_bytes(os.pread(self.fd, BEAT_BYTES, NOTE_BYTES), "little")

    def close(self) -> None:
        os.close(self.fd)


class Note:
    """The child's side of the file; does nothing without a supervisor. It removes the variable from the environment, because
    processes that are started from here are not the supervisor's children.
    """

    def __init__(self) -> None:
        text = os.environ.pop(NOTE_FD, "")
        self._fd = int(text) if text.isdigit() else None
        self._beats = 0
        if self._fd is not None:
            os.set_inheritable(self._fd, False)

    def member(self, member_id: str) -> None:
        """Store the member id for the supervisor; "" while not a member."""
        value = member_id.encode()
        assert len(value) < NOTE_BYTES, f"a member id of {len(value)} bytes"
        if self._fd is not None:
            os.pwrite(self._fd, value.ljust(NOTE_BYTES, b"\0"), 0)

    def beat(self) -> None:
        """Give a sign of life, about once a second. A process that stops giving them is killed after 30 s."""
        self._beats += 1
        if self._fd is not None:
            os.pwrite(self._fd, self._beats.to_bytes(BEAT_BYTES, "little"), NOTE_BYTES)
