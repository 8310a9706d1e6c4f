"""Cross-builds the project's library and stages a copy of the checkout with it."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import kept_objects
from cache import REPORT_SECONDS, Report, cache_folder, key, locked, meter, used
from commands import Unavailable

LIBRARY = "libao_arm.so"
PACKAGE = "ao_arm"
TOOLCHAIN = Path(__file__).with_name("toolchain.cmake")

# The rest of the checkout (build folders, environments, data) may be large and is not needed.
STAGED_FOLDERS = (PACKAGE, "csrc", "docs", "tests", "tutorials")
NOT_STAGED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", "*.dylib", ".*_cache", ".ipynb_checkpoints")

STAGE_KEPT_SECONDS = 24 * 3600
# Checkouts come and go; what was compiled once is kept apart, so that a build that is wanted again takes seconds.
BUILD_KEPT_SECONDS = 7 * 24 * 3600


class BuildError(RuntimeError):
    """The project does not build for AArch64; the message is what the build printed."""


def program(name: str) -> str:
    """A build tool, from this Python's environment first: tests may run without it being activated."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    if found := shutil.which(name, path=path):
        return found
    raise Unavailable(f"{name} is not installed (python -m pip install {name})")


def build(
    checkout: Path,
    *,
    settings: Mapping[str, str | Path],
    targets: Sequence[str],
    env: Mapping[str, str],
    report: Report,
    what: str = "arm64: building the library",
) -> Path:
    """Configure `csrc/` and build these targets, incrementally; returns the build folder, one for each settings."""
    cmake, ninja = program("cmake"), program("ninja")
    asked = {"checkout": str(checkout), "settings": {name: str(value) for name, value in settings.items()}}
    name = f"build-{key(asked)}"
    tree = cache_folder() / name / "tree"
    configure = [cmake, "-S", str(checkout / "csrc"), "-B", str(tree), "-G", "Ninja"]
    configure += ["-DCMAKE_BUILD_TYPE=Release", "-DAO_ARM_BUILD_TESTS=ON", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [f"-DCMAKE_CXX_COMPILER_LAUNCHER={kept_objects.launcher()}"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    with locked(name, report):
        report(what)
        tree.mkdir(parents=True, exist_ok=True)
        used("build", tree.parent, BUILD_KEPT_SECONDS)
        _step(configure, env, report)
        _step([cmake, "--build", str(tree), "--target", *targets], env, report)
    return tree


def build_library(
    checkout: Path,
    *,
    definitions: Mapping[str, Path],
    env: Mapping[str, str],
    report: Report,
) -> tuple[Path, Path]:
    """Configure, build and install `csrc/` for AArch64, incrementally; returns the library and the build folder."""
    settings = {"CMAKE_TOOLCHAIN_FILE": TOOLCHAIN, **definitions}
    tree = build(checkout, settings=settings, targets=["all"], env=env, report=report)
    installed = tree.parent / "installed"
    with locked(tree.parent.name, report):
        _step([program("cmake"), "--install", str(tree), "--prefix", str(installed)], env, report)
    library = installed / PACKAGE / LIBRARY
    if not library.is_file():
        raise BuildError(f"the build installed no {PACKAGE}/{LIBRARY} below its prefix")
    return library, tree


def _step(command: Sequence[str], env: Mapping[str, str], report: Report) -> None:
    """Runs a program to its end; of what it counts, as Ninja counts files, it is told now and then how far it is."""
    begun = reported = time.monotonic()
    lines = []
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            counted = re.match(r"\[(\d+)/(\d+)\]", line)
            if counted and time.monotonic() > reported + REPORT_SECONDS:
                reported = time.monotonic()
                report(f"arm64: building: {meter(int(counted[1]), int(counted[2]), begun, ' files')}")
    if process.returncode:
        raise BuildError(f"`{' '.join(command)}` failed:\n{''.join(lines)}")


def stage(checkout: Path, library: Path, report: Report) -> Path:
    """A copy of the checkout's files with the AArch64 library in the package, named after its content.

    An emulated run that takes minutes thus never sees an edit that was made after it started.
    """
    with locked("stage", report):
        part = Path(tempfile.mkdtemp(prefix=".stage-", dir=cache_folder()))
        try:
            for path in checkout.iterdir():
                if path.is_file():
                    shutil.copy2(path, part)
                elif path.name in STAGED_FOLDERS:
                    shutil.copytree(path, part / path.name, ignore=NOT_STAGED)
            (part / PACKAGE).mkdir(exist_ok=True)
            shutil.copy2(library, part / PACKAGE / LIBRARY)
            final = cache_folder() / f"stage-{_digest(part)}"
            if not final.is_dir():
                part.chmod(0o755)
                part.rename(final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        used("stage", final, STAGE_KEPT_SECONDS)
    return final


def _digest(folder: Path) -> str:
    content = hashlib.sha256()
    for path in _files(folder):
        content.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        content.update(path.read_bytes())
    return content.hexdigest()[:12]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
