"""Tables in plain text, for terminals, logs and bug reports."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


def lines(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> Iterator[str]:
    """Each row as a line, its cells padded to the width of their column; ``right`` numbers the right-aligned ones."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def with_rule(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A header, a rule of dashes and rows as lines."""
    made = list(lines([header, *rows], right))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [made[0], "  ".join("-" * width for width in widths), *made[1:]]


def listed(names: Sequence[str]) -> str:
    """The first names of layers, and how many more there are."""
    shown = ", ".join(name or "the model" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
