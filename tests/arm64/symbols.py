"""The functions that counted code belongs to, by the symbols of the files that it was loaded from."""

import bisect
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from struct import unpack_from
from typing import NamedTuple

from counting import Mapping
from llvm_tools import run_tool

LOADED = 1  # PT_LOAD


class Symbol(NamedTuple):
    """A function, at its addresses in a file or in memory."""

    start: int
    end: int
    name: str


def function_at(llvm: Path, address: int, mappings: Sequence[Mapping]) -> str:
    """The file that holds an address, and its function if the file's symbols name it."""
    for mapping in mappings:
        if mapping.start <= address < mapping.end:
            base = _base(mapping.file, mappings)
            symbols = _symbols_of(llvm, mapping.file)
            before = bisect.bisect(symbols, address - base, key=lambda symbol: symbol.start) - 1
            named = before >= 0 and address - base < symbols[before].end
            return f"{Path(mapping.file).name}: {symbols[before].name if named else '?'}"
    return "code made at run time"


def functions_of(llvm: Path, file: str, mappings: Sequence[Mapping]) -> Iterator[Symbol]:
    """The functions, in memory, of the loaded files whose names match the pattern `file`."""
    for path in sorted({mapping.file for mapping in mappings}):
        if re.fullmatch(file, Path(path).name):
            base = _base(path, mappings)
            for start, end, name in _symbols_of(llvm, path):
                yield Symbol(base + start, base + end, name)


def _base(file: str, mappings: Sequence[Mapping]) -> int:
    """How far in memory a file's symbols are from the addresses that they have in the file."""
    first = min(mapping for mapping in mappings if mapping.file == file)
    return first.start - first.offset - _moved(file)


@cache
def _moved(file: str) -> int:
    """The difference of address and offset of the first segment to load; linkers do not all begin at 0."""
    with open(file, "rb") as elf:
        header = elf.read(64)
        (table,), (size, count) = unpack_from("<Q", header, 32), unpack_from("<HH", header, 54)
        elf.seek(table)
        segments = [unpack_from("<IIQQ", elf.read(size)) for _ in range(count)]
    moved: int = next(address - offset for kind, _, offset, address in segments if kind == LOADED)
    return moved


@cache
def _symbols_of(llvm: Path, file: str) -> list[Symbol]:
    found = set()
    for table in ([], ["--dynamic"]):
        printed = run_tool(llvm, "llvm-nm", ["--demangle", "--format=posix", *table, file]).stdout
        for name, start, size in re.findall(r"^(.+) [tTwWi] (\w+) (\w+)$", printed, re.MULTILINE):
            # Without a size it says little: in a stripped file everything comes after some such symbol.
            if int(size, 16):
                found.add(Symbol(int(start, 16), int(start, 16) + int(size, 16), shortened(name)))
    return sorted(found)


def shortened(symbol: str) -> str:
    """A C++ symbol without parameters, template arguments and return type."""
    name = symbol.replace("(anonymous namespace)::", "")
    while (less := re.sub(r"<[^<>]*>", "", name)) != name:
        name = less
    return re.sub(r"\(.*", "", name).rpartition(" ")[2] or symbol
