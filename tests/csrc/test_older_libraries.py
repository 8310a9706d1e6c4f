"""What older_libraries.cpp defines works, and leaves nothing that only newer C and C++ libraries have."""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

SOURCES = (Path(__file__).with_name("older_libraries_test.cpp"), Path(__file__).parents[2] / "csrc/older_libraries.cpp")
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}


def versions(library: Path) -> set[str]:
    """Of the system's libraries, the versions that functions are asked of."""
    with library.open("rb") as file:
        needed = ELFFile(file).get_section_by_name(".gnu.version_r")
        assert isinstance(needed, GNUVerNeedSection)
        return {version.name for _, its_versions in needed.iter_versions() for version in its_versions}


@pytest.mark.x86
def test_it_works_and_asks_for_nothing_newer(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    exports = tmp_path / "exports.map"
    exports.write_text("{ global: check; local: *; };")
    options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", f"-Wl,--version-script={exports}"]
    subprocess.run(["g++", *options, "-o", library, *SOURCES], check=True)
    check = ctypes.CDLL(str(library)).check
    check.argtypes = (ctypes.c_double, ctypes.c_double, ctypes.c_double, ctypes.c_size_t)
    assert check(2.25, 3.5, 2.25**3.5, 2**61) == 0
    asked = [re.fullmatch(r"([A-Z]+)_([\d.]+)", name) for name in versions(library)]
    newer = [match[0] for match in asked if match and tuple(map(int, match[2].split("."))) > NEWEST.get(match[1], (9,))]
    assert newer == []
    assert {match[1] for match in asked if match} >= set(NEWEST)
