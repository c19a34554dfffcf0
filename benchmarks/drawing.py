"""Stacks with their counts → a flame graph as SVG: no script in it, small enough to be kept. Pure.

A frame is as wide as its share of all looks and stands on its caller; frames of one caller with one name are one. Colours
tell whose code it is. Whoever points at a frame reads its name and share (the title of its element).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape

Stack = tuple[str, ...]  # from the outermost frame to the innermost

WIDTH, ROW, HEAD, MARGIN = 1_200, 17, 48, 10
SHARE_MIN = 0.0015  # of all looks; a narrower frame is two pixels that nobody reads
LETTER = 6.4  # pixels of a character
COLOURS = (  # the first whose text is in the frame's name
    ("streamtask/core", "#e8743b"),
    ("streamtask/kafka", "#d9a514"),
    ("streamtask/codec", "#8fae3a"),
    ("streamtask", "#e5a07c"),
    ("benchmarks", "#6fa8dc"),
)
OTHER = "#c9c4bd"


@dataclass(slots=True)
class _Frame:
    name: str
    count: int = 0
    callees: dict[str, _Frame] = field(default_factory=dict)


def svg(stacks: Mapping[Stack, int], title: str) -> str:
    """The graph as a document."""
    root = _Frame("all")
    for stack, count in stacks.items():
        root.count += count
        at = root
        for name in stack:
            at = at.callees.setdefault(name, _Frame(name))
            at.count += count
    placed = list(_placed(root, 0.0, 0, max(root.count, 1)))
    depth = max(level for _, _, level in placed) + 1
    height = HEAD + depth * ROW + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fffdf8"/>',
        f'<text x="{MARGIN}" y="20" font-size="14">{escape(title)}</text>',
        *_legend(),
    ]
    for frame, left, level in placed:
        lines.append(_drawn(frame, left, height - MARGIN - (level + 1) * ROW, root.count))
    return "\n".join([*lines, "</svg>"]) + "\n"


def folded(stacks: Mapping[Stack, int]) -> str:
    """A line of each stack with its count, as flame graph programs read it."""
    return "".join(f"{';'.join(stack)} {count}\n" for stack, count in sorted(stacks.items()))


def unfolded(text: str) -> Counter[Stack]:
    """The stacks in such a text."""
    stacks: Counter[Stack] = Counter()
    for line in text.splitlines():
        names, _, count = line.rpartition(" ")
        if names:
            stacks[tuple(names.split(";"))] += int(count)
    return stacks


def _placed(frame: _Frame, left: float, level: int, whole: int) -> Iterator[tuple[_Frame, float, int]]:
    """(frame, where it begins as a share of the whole, its row) of all that are wide enough."""
    yield frame, left, level
    for callee in sorted(frame.callees.values(), key=lambda one: one.name):
        if callee.count >= SHARE_MIN * whole:
            yield from _placed(callee, left, level + 1, whole)
        left += callee.count / whole


def _drawn(frame: _Frame, left: float, y: float, whole: int) -> str:
    inner = WIDTH - 2 * MARGIN
    x, width = MARGIN + left * inner, frame.count / max(whole, 1) * inner
    letters = int((width - 4) / LETTER)
    colour = next((colour for part, colour in COLOURS if part in frame.name), OTHER)
    text = frame.name if len(frame.name) <= letters else frame.name[: letters - 1] + "…"
    label = f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(text)}</text>' if letters >= 4 else ""
    share = f"{frame.count / max(whole, 1):.1%}"
    return (
        f'<g><title>{escape(frame.name)} {share}</title><rect x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.5):.1f}" '
        f'height="{ROW - 1}" fill="{colour}"/>{label}</g>'
    )


def _legend() -> Iterator[str]:
    x = MARGIN
    for name, colour in (*COLOURS, ("other libraries, Python", OTHER)):
        yield f'<rect x="{x}" y="29" width="11" height="11" fill="{colour}"/>'
        yield f'<text x="{x + 15}" y="39">{escape(name)}</text>'
        x += 30 + round(len(name) * LETTER)
