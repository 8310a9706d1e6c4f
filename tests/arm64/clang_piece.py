"""Clang with its sanitizers and libFuzzer, which this machine's own compiler does not have."""

import os
from pathlib import Path

from cache import Report, piece
from debian import codename, unpack
from pieces import NOT_WITH_COMPILER

RECIPE = 1  # raise it when the way in which the piece is filled changes

CLANG = 19
PACKAGES = (f"clang-{CLANG}", f"libclang-rt-{CLANG}-dev")


def clang(report: Report) -> Path:
    """The folder of the compiler's packages."""
    suite = codename()

    def fill(folder: Path) -> None:
        report("downloading clang")
        # It compiles against this machine's own C library and C++ headers, and runs on them.
        unpack(
            PACKAGES,
            suite=suite,
            architecture="amd64",
            into=folder,
            wanted=lambda package: package not in NOT_WITH_COMPILER,
        )

    asked = {"suite": suite, "packages": PACKAGES, "recipe": RECIPE}
    return piece("clang", asked, fill, report, megabytes=900)


def clang_settings(report: Report) -> dict[str, Path]:
    """What CMake is told to compile with it, in `clang_environment`."""
    return {"CMAKE_CXX_COMPILER": clang(report) / f"usr/lib/llvm-{CLANG}/bin/clang++"}


def clang_environment(report: Report) -> dict[str, str]:
    """Where the compiler finds its own libraries."""
    usr = clang(report) / "usr/lib"
    return {"LD_LIBRARY_PATH": os.pathsep.join((str(usr / "x86_64-linux-gnu"), str(usr / f"llvm-{CLANG}/lib")))}
