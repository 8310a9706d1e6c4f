"""QEMU's user-mode emulator, built from Debian's source.

Debian's own build is a static program, which cannot load a plugin, and slow with floats: see `VECTORS`.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from cache import Report, piece
from commands import call
from debian import codename, unpack, unpack_source
from pieces import LIBRARIES, SUITE
from project import program
from scripts import write_script

RECIPE = 2  # raise it when the way in which the piece is filled changes
MEGABYTES = 540  # while it is built

# Where the processor has them, QEMU's own C code is compiled with them as well. The code that it generates leaves the
# upper halves of vectors in use, and instructions that know only the lower ones then cost hundreds of cycles each time
# they meet others: multiplications of floats, as in Debian's own build, took ten times as long where there is SVE.
VECTORS = ("avx2", "fma")

BUILD_PACKAGES = ("libglib2.0-dev", "pkgconf-bin", "zlib1g-dev")
# Of all that those depend on, what building needs besides the machine's own compiler and C library.
BUILD_PACKAGES_UNPACKED = frozenset({*BUILD_PACKAGES, "libpcre2-dev", "libpkgconf3", "libsysprof-capture-4-dev"})
BUILD_PINS = ("meson==1.5.0", "pycotap==1.3.1")  # what QEMU's source package would bring, had Debian not removed it
CONFIGURE = (
    "--target-list=aarch64-linux-user",
    "--without-default-features",
    "--enable-tcg",
    "--enable-linux-user",
    "--enable-plugins",
    "--disable-system",
    "--disable-tools",
    "--disable-debug-info",
    "--disable-install-blobs",
    # Compiles in three quarters of the time, and emulates no slower: what runs is mostly code that QEMU generates.
    "-Doptimization=1",
    # What a plugin needs to read a register into; all else of GLib is hidden in the emulator.
    "--extra-ldflags=-Wl,--export-dynamic-symbol=g_byte_array_new",
)


def emulator(report: Report) -> Path:
    """A folder with a `qemu-aarch64` that loads plugins, and in `include` what a plugin is compiled with."""

    def fill(folder: Path) -> None:
        report("arm64: building the emulator, which takes two minutes or so")
        work = folder / "work"
        packages = work / "packages"
        packages.mkdir(parents=True)
        unpack(
            BUILD_PACKAGES,
            suite=codename(),
            architecture="amd64",
            into=packages,
            wanted=lambda package: package in BUILD_PACKAGES_UNPACKED,
        )
        # With only the archives left, nothing but the C library is needed to run what is linked with them.
        for link in (packages / LIBRARIES).glob("*.so"):
            link.unlink()
        source = unpack_source("qemu", suite=SUITE, into=work / "source")
        _build_emulator(source, packages, work)
        (work / "build/qemu-aarch64").rename(folder / "qemu-aarch64")
        shutil.copytree(packages / "usr/include/glib-2.0", folder / "include")
        shutil.copy2(packages / LIBRARIES / "glib-2.0/include/glibconfig.h", folder / "include")
        shutil.copy2(source / "include/qemu/qemu-plugin.h", folder / "include")
        shutil.rmtree(work)

    asked = {"suite": SUITE, "configure": _configured(), "python": BUILD_PINS, "recipe": RECIPE}
    return piece("emulator", asked, fill, report, megabytes=MEGABYTES)


def _configured() -> tuple[str, ...]:
    """What QEMU is configured with on this processor."""
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    has = flags is not None and {*VECTORS} <= {*flags[1].split()}
    return (*CONFIGURE, f"--extra-cflags={' '.join(f'-m{name}' for name in VECTORS)}") if has else CONFIGURE


def _build_emulator(source: Path, packages: Path, work: Path) -> None:
    pkg_config = work / "pkg-config"
    folders = f'"{packages / LIBRARIES}/pkgconfig:{packages}/usr/share/pkgconfig"'
    write_script(
        pkg_config,
        f'export LD_LIBRARY_PATH="{packages / LIBRARIES}"',
        f'export PKG_CONFIG_SYSROOT_DIR="{packages}" PKG_CONFIG_LIBDIR={folders}',
        f'exec "{packages}/usr/bin/pkgconf" --static "$@"',
    )
    python = work / "python/bin/python"
    call((sys.executable, "-m", "venv", work / "python"))
    call((python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *BUILD_PINS))
    build = work / "build"
    build.mkdir()
    ninja = program("ninja")
    env = {**os.environ, "PKG_CONFIG": str(pkg_config), "LC_ALL": "C"}
    command: tuple[str | Path, ...] = (source / "configure", *_configured(), f"--python={python}", f"--ninja={ninja}")
    call(("env", "-C", build, *command), env)
    call((ninja, "-C", build, "qemu-aarch64"), env)
    call(("strip", build / "qemu-aarch64"))
