"""Judges a built library: `python tests/wheels/library_gate.py LIBRARY MAP`, where MAP is the linker's map beside it.

What it may import and export, how it is protected in memory, and which instructions it may have where.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "arm64"))

import torch
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection
from instructions import beyond_baseline

TORCH = "libtorch_cpu.so"
LOADERS = ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")
SYSTEM = frozenset(("libc.so.6", "libm.so.6", "libpthread.so.0", "libgcc_s.so.1", "libstdc++.so.6", *LOADERS))
#: Where torch declares the C functions that stay.
STABLE_HEADERS = ("stable/c", "inductor/aoti_torch/c")
#: What may be missing in the end: the C runtime's hooks, and the KleidiAI that libtorch has on some systems.
WEAK = re.compile(r"__cxa_finalize|__gmon_start__|_ITM_(de)?registerTMCloneTable|kai_\w+")

PF_X, PF_W = 1, 2
DF_BIND_NOW, DF_1_NOW = 8, 1


def violations(library: Path, link_map: Path, tree: Path) -> list[str]:
    """A sentence for each rule that a library breaks; `tree` is the folder it was linked in."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        found = [*_imports(elf), *_exports(elf), *_protection(elf)]
    return found + list(beyond_baseline(library, link_map, tree))


def _imports(elf: ELFFile) -> Iterator[str]:
    for tag in _dynamic(elf).iter_tags("DT_NEEDED"):
        needed: str = getattr(tag, "needed")  # noqa: B009 # the types do not know it
        if needed not in SYSTEM | {TORCH}:
            yield f"it needs {needed}"
    origins = _origins(elf)
    stable = stable_functions()
    for index, symbol in enumerate(_symbols(elf).iter_symbols()):
        if symbol["st_shndx"] != "SHN_UNDEF" or not symbol.name:
            continue
        weak = symbol["st_info"]["bind"] == "STB_WEAK" and WEAK.fullmatch(symbol.name)
        if origins[index] not in SYSTEM and symbol.name not in stable and not weak:
            origin = f"from {origins[index]}" if origins[index] else "from no library by name"
            yield f"it takes {symbol.name} {origin}, which neither the system's libraries nor torch's stable ABI have"


def _origins(elf: ELFFile) -> list[str]:
    """For each dynamic symbol the library that it is asked of, by its version; "" for those without."""
    needed = elf.get_section_by_name(".gnu.version_r")
    versions = elf.get_section_by_name(".gnu.version")
    libraries: dict[int, str] = {}
    if isinstance(needed, GNUVerNeedSection):
        for library, its_versions in needed.iter_versions():
            libraries |= {version["vna_other"]: library.name for version in its_versions}
    if not isinstance(versions, GNUVerSymSection):
        return [""] * _symbols(elf).num_symbols()
    return [libraries.get(symbol["ndx"], "") for symbol in versions.iter_symbols()]


def stable_functions() -> set[str]:
    """The C functions of torch's stable ABI, by the headers of the torch that is installed."""
    headers = Path(torch.__file__).parent / "include/torch/csrc"
    text = "".join(path.read_text() for folder in STABLE_HEADERS for path in sorted((headers / folder).glob("*.h")))
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", text))


def _exports(elf: ELFFile) -> Iterator[str]:
    for symbol in _symbols(elf).iter_symbols():
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL":
            yield f"it exports {symbol.name}; other libraries need nothing of it"


def _protection(elf: ELFFile) -> Iterator[str]:
    flags: dict[str, int] = {}
    for segment in elf.iter_segments():
        flags.setdefault(segment["p_type"], segment["p_flags"])
        if segment["p_type"] == "PT_LOAD" and segment["p_flags"] & PF_X and segment["p_flags"] & PF_W:
            yield "it has memory that is both written and run"
    if "PT_GNU_RELRO" not in flags:
        yield "what is relocated stays writable: link with -z relro"
    if "PT_GNU_STACK" not in flags or flags["PT_GNU_STACK"] & PF_X:
        yield "the stack is executable: link with -z noexecstack"
    tags = {tag.entry.d_tag: tag.entry.d_val for tag in _dynamic(elf).iter_tags()}
    now = tags.get("DT_FLAGS", 0) & DF_BIND_NOW or tags.get("DT_FLAGS_1", 0) & DF_1_NOW or "DT_BIND_NOW" in tags
    if not now:
        yield "functions are bound when they are first called, from memory that stays writable: link with -z now"
    for tag in ("DT_RPATH", "DT_RUNPATH"):
        if tag in tags:
            yield f"it has a {tag.removeprefix('DT_')}: it searches folders of its own for libraries"
    if "DT_TEXTREL" in tags:
        yield "its code is relocated: compile with -fPIC"


def _dynamic(elf: ELFFile) -> DynamicSection:
    section = elf.get_section_by_name(".dynamic")
    if not isinstance(section, DynamicSection):
        raise ValueError("it is no shared library: it has no dynamic section")
    return section


def _symbols(elf: ELFFile) -> SymbolTableSection:
    section = elf.get_section_by_name(".dynsym")
    if not isinstance(section, SymbolTableSection):
        raise ValueError("it is no shared library: it has no dynamic symbols")
    return section


def main() -> int:
    """Prints what a library breaks; returns the exit code."""
    parser = argparse.ArgumentParser(description="Judge a built library.")
    parser.add_argument("library", type=Path)
    parser.add_argument("map", type=Path, help="what the linker wrote, in the folder that the library was linked in")
    given = parser.parse_args()
    found = violations(given.library, given.map, given.map.parent)
    for violation in found:
        print(f"{given.library.name}: {violation}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
