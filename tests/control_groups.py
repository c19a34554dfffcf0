"""Made-up control groups: what the files of a container would say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def tree(folder: Path, groups: str, files: Mapping[str, str]) -> tuple[Path, Path]:
    """A /proc/self/cgroup with this text and a /sys/fs/cgroup with these files, by their paths in it."""
    (folder / "groups").write_text(groups)
    mount = folder / "mount"
    mount.mkdir()
    for name, text in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "groups", mount
