"""The command line: `streamtask …` and `python -m streamtask …`."""

from __future__ import annotations

import sys

import streamtask
from streamtask.distribution import foreign_files

EXIT_CONFIG = 2


def main() -> None:
    """The entry point of the console script. Exit code 2 if another project has replaced files of this one."""
    if not hasattr(streamtask, "__all__"):  # the other project's `__init__.py` in place of ours: no command would start
        sys.stderr.write(f"{foreign_files()}\n")
        sys.exit(EXIT_CONFIG)
    from streamtask.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
