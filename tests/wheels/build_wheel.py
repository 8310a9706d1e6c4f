"""Builds a wheel from a source distribution: `python tests/wheels/build_wheel.py [--arm64]`, into `build/wheels/`.

The one for AArch64 is cross-built on x86, with Arm Compute Library and KleidiAI in it. `auditwheel` names the oldest
system that a wheel runs on, and the library in it has passed `library_gate.py`.
"""

import argparse
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "arm64"))

import kept_objects
from library_gate import violations
from machine import Machine
from project import TOOLCHAIN
from wheel_folder import CHECKOUT, WHEELS, run, say

LIBRARY = "ao_arm/libao_arm.so"
#: torch's wheels need this one of glibc 2.
NEWEST_GLIBC = 28
LINKED_IN = ("libarm-compute-dev", "libkleidiai-dev")


def source_distribution(into: Path) -> Path:
    """Makes the source distribution of this checkout."""
    into.mkdir(parents=True, exist_ok=True)
    for old in into.glob("*.tar.gz"):
        old.unlink()
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", into, CHECKOUT)
    (made,) = into.glob("*.tar.gz")
    return made


def build(sdist: Path, tree: Path, into: Path, arm64: bool) -> Path:
    """Builds a wheel of the unpacked source distribution; `tree` is the folder that CMake builds in."""
    settings = {"build-dir": str(tree), "cmake.define.CMAKE_CXX_COMPILER_LAUNCHER": kept_objects.launcher()}
    env = {}
    machine = Machine(say) if arm64 else None
    if machine:
        definitions = {"CMAKE_TOOLCHAIN_FILE": TOOLCHAIN, **machine.definitions()}
        settings |= {f"cmake.define.{name}": str(path) for name, path in definitions.items()}
        env["_PYTHON_HOST_PLATFORM"] = "linux-aarch64"
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(sdist, folder, filter="data")
        (source,) = Path(folder).iterdir()
        if machine:
            # What is linked in is passed on with its terms.
            for package in LINKED_IN:
                terms = source / "ao_arm/licenses" / f"{package}.txt"
                terms.parent.mkdir(exist_ok=True)
                shutil.copyfile(machine.root / "usr/share/doc" / package / "copyright", terms)
        words = [f"-C{name}={value}" for name, value in settings.items()]
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", *words, "--outdir", into, source, env=env)
    (made,) = into.glob("*.whl")
    return made


def main() -> int:
    """Builds, tags and judges the wheel; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build a wheel for this machine, or for AArch64.")
    parser.add_argument("--arm64", action="store_true", help="cross-build for AArch64, on x86")
    arm64 = parser.parse_args().arm64
    architecture = "aarch64" if arm64 else platform.machine()
    tree = WHEELS / f"tree-{architecture}"
    shutil.rmtree(tree, ignore_errors=True)
    for old in WHEELS.glob(f"*_{architecture}.whl"):
        old.unlink()
    say("the source distribution")
    sdist = source_distribution(WHEELS)
    with tempfile.TemporaryDirectory() as folder:
        say(f"the wheel for {architecture}")
        plain = build(sdist, tree, Path(folder), arm64)
        # torch is not for a wheel to bring; nothing else is to be copied into it, so nothing is searched for.
        run("auditwheel", "repair", "--exclude=libtorch_cpu.so", "--only-plat", f"--wheel-dir={WHEELS}", plain)
        (wheel,) = WHEELS.glob(f"*_{architecture}.whl")
        with zipfile.ZipFile(wheel) as archive:
            library = Path(archive.extract(LIBRARY, folder))
            foreign = [name for name in archive.namelist() if ".so" in name and name != LIBRARY]
        found = violations(library, tree / "ao_arm.map", tree) + [f"it brings {name}" for name in foreign]
        glibc = re.search(r"manylinux_2_(\d+)_", wheel.name)
        if not glibc or int(glibc[1]) > NEWEST_GLIBC:
            found.append(f"it needs a newer system than torch's wheels, which run with glibc 2.{NEWEST_GLIBC}")
        say(f"{wheel.relative_to(CHECKOUT)}: {wheel.stat().st_size:,} bytes, its library {library.stat().st_size:,}")
    for violation in found:
        say(violation)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
