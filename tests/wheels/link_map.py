"""Reads the map that GNU ld writes: which object each piece of a linked section is from."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MEMORY_MAP = "Linker script and memory map"
PIECE = re.compile(
    r"^ (?P<section>\.\S+)\s+0x(?P<start>[0-9a-f]+)\s+0x(?P<size>[0-9a-f]+) (?P<object>\S.*)\n"
    r"(?P<symbols>(?:^ {16,}0x[0-9a-f]+ {16}\S.*\n)*)",
    re.MULTILINE,
)


class Piece(NamedTuple):
    """A section of an object, where the linker put it; an archive's member is `archive(member)`."""

    start: int
    end: int
    section: str
    object: str
    symbols: tuple[str, ...]


def linked_section(link_map: Path, name: str) -> tuple[int, int] | None:
    """Where a section of the library begins and how long it is."""
    found = re.search(rf"^{re.escape(name)}\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)$", _memory(link_map), re.MULTILINE)
    return (int(found[1], 16), int(found[2], 16)) if found else None


def linked_pieces(link_map: Path) -> Iterator[Piece]:
    """What was linked, by its addresses; what was left out is not among it."""
    for piece in PIECE.finditer(_memory(link_map)):
        start, size = int(piece["start"], 16), int(piece["size"], 16)
        symbols = tuple(line.split(maxsplit=1)[1] for line in piece["symbols"].splitlines())
        if size:
            yield Piece(start, start + size, piece["section"], piece["object"], symbols)


def _memory(link_map: Path) -> str:
    _, found, memory = link_map.read_text().partition(MEMORY_MAP)
    if not found:
        raise ValueError(f"{link_map} is no map of GNU ld: it has no '{MEMORY_MAP}'. Link with -Wl,-Map={link_map}")
    return memory
