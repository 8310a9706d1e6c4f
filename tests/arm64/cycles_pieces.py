"""What cycles.py needs besides the emulated machine: LLVM's tools, and the emulator's plugin that counts."""

import hashlib
import os
import shutil
from pathlib import Path

from cache import Report, piece
from commands import call
from debian import codename, unpack
from pieces import LIBRARIES, NOT_WITH_COMPILER

RECIPE = 1  # raise it when the way in which a piece is filled changes

LLVM = 19  # older ones know too little about Neoverse cores
LLVM_TOOLS = ("llvm-mc", "llvm-mca", "llvm-nm")

PLUGIN_SOURCES = tuple(Path(__file__).with_name(name) for name in ("regions.c", "caches.h", "hidden_accesses.h"))


def llvm(report: Report) -> Path:
    """A folder with LLVM's tools in `bin` and the libraries that they need in `lib`."""
    suite = codename()
    packages = (f"llvm-{LLVM}",)

    def fill(folder: Path) -> None:
        report("arm64: downloading LLVM")
        unpacked = folder / "unpacked"
        # The tools run on this machine's own C library, like the cross compiler.
        unpack(
            packages,
            suite=suite,
            architecture="amd64",
            into=unpacked,
            wanted=lambda package: package not in NOT_WITH_COMPILER,
        )
        (folder / "bin").mkdir()
        (folder / "lib").mkdir()
        paths = (str(unpacked / LIBRARIES), str(unpacked / LIBRARIES.removeprefix("usr/")))
        for tool in LLVM_TOOLS:
            path = unpacked / f"usr/lib/llvm-{LLVM}/bin" / tool
            for word in call(("ldd", path), {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)}).split():
                if word.startswith(paths):
                    shutil.copy2(word, folder / "lib")
            path.rename(folder / "bin" / tool)
        shutil.rmtree(unpacked)

    return piece("llvm", {"suite": suite, "packages": packages, "recipe": RECIPE}, fill, report)


def plugin(emulator: Path, report: Report) -> Path:
    """The plugin that counts, compiled for the emulator in a folder of `emulator_piece.py`."""

    def fill(folder: Path) -> None:
        command = ("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
        call((*command, f"-I{emulator / 'include'}", "-o", folder / "regions.so", PLUGIN_SOURCES[0]))

    source = hashlib.sha256(b"".join(path.read_bytes() for path in PLUGIN_SOURCES)).hexdigest()
    return piece("plugin", {"emulator": emulator.name, "source": source}, fill, report) / "regions.so"
