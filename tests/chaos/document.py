"""The table of faults in docs/chaos.md, written anew by `python -m tests.chaos.document`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.chaos.faults import table

PAGE = Path(__file__).parents[2] / "docs" / "chaos.md"
MARKS = re.compile(r"(<!-- generated: faults -->\n).*?(<!-- /generated -->)", re.S)


def rows() -> str:
    lines = ["| fault | does | undone by | brokers |", "|---|---|---|---|"]
    lines += [
        f"| `{one.name}` | {one.does} | {one.undone} | {'three' if one.brokers > 1 else 'any'} |"
        for one in table().values()
    ]
    return "\n".join(lines)


def written(text: str) -> str:
    return MARKS.sub(lambda found: f"{found[1]}{rows()}\n{found[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
