"""Installs a wheel that `build_wheel.py` built where nothing else of ao_arm is, and tests it there.

`python tests/wheels/try_wheel.py` makes a new environment and runs the quick tests that are run on each kind of CPU;
with `--arm64`, on emulated CPUs beside the torch there, those of packed weights and ops.
"""

import argparse
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "arm64"))

from machine import Machine
from wheel_folder import WHEELS, run, say
from wheels import PYTHON

#: What the tests need besides, those that ask for no more.
TOOLS = ("pytest>=8", "hypothesis", "expecttest", "parameterized", "safetensors")

#: Where Arm Compute Library is chosen, and where Neon's widest kernels are.
ARM_TESTS = {
    "a64fx": ("test_packed_bytes.py", "test_dynamic_ops.py"),
    "neoverse-v1": ("test_int4_packing.py", "test_tensor.py"),
}

# Tests start processes in the project's folder too, where Python would find a package of that name first.
PACKAGE = "ao_arm"
SHOW = f"""
import hashlib, importlib.metadata, base64, pathlib
import {PACKAGE}
files = importlib.metadata.files("{PACKAGE}")
for file in files:
    if file.hash:
        digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
        assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == file.hash.value, file
loaded = {{pathlib.Path({PACKAGE}.__file__).resolve(), pathlib.Path({PACKAGE}._library.PATH).resolve()}}
assert loaded <= {{file.locate().resolve() for file in files}}, loaded
print("tested:", *sorted(map(str, loaded)))
"""

#: Runs the Python that the wheel is installed for, with arguments, in a folder; returns the exit code.
Python = Callable[[Sequence[str], Path], int]


def the_one(pattern: str) -> Path:
    """What `build_wheel.py` made."""
    found = list(WHEELS.glob(pattern))
    if len(found) != 1:
        sys.exit(f"wheels: {len(found)} files match {WHEELS / pattern}, not one: run tests/wheels/build_wheel.py first")
    return found[0]


def unpacked(sdist: Path, folder: Path, package: Path) -> Path:
    """The source distribution with the installed package in the place of its own."""
    shutil.unpack_archive(sdist, folder, filter="data")
    (source,) = folder.iterdir()
    shutil.rmtree(source / PACKAGE)
    (source / PACKAGE).symlink_to(package)
    return source


def test(python: Python, source: Path, marks: str, files: Sequence[str]) -> int:
    """Shows that the package is the wheel's, every file of it as it was built, and runs tests."""
    selected = [f"tests/{name}" for name in files]
    return python(["-c", SHOW], source) or python(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--pairs", "-m", marks, *selected], source
    )


def here(folder: Path) -> int:
    """In a new environment of this Python."""
    wheel = the_one(f"*_{platform.machine()}.whl")
    say("a new environment")
    environment = folder / "env"
    run(sys.executable, "-m", "venv", environment)
    interpreter = environment / "bin/python"
    torch = importlib.metadata.version("torch").partition("+")[0]
    run(interpreter, "-m", "pip", "install", "--quiet", "--no-compile", f"torch=={torch}", wheel, *TOOLS)
    package = next(environment.glob(f"lib/python*/site-packages/{PACKAGE}"))

    def python(arguments: Sequence[str], cwd: Path) -> int:
        return subprocess.run([interpreter, *arguments], cwd=cwd).returncode

    source = unpacked(the_one("*.tar.gz"), folder / "source", package)
    files = [path.name for path in sorted(source.glob("tests/test_*.py"))]
    return test(python, source, "quick and not x86", files)


def emulated(folder: Path) -> int:
    """On emulated CPUs, where pip would install it beside their torch."""
    wheel = the_one("*_aarch64.whl")
    machine = Machine(say)
    site = folder / "site"
    tag = wheel.stem.rpartition("-")[2]
    asked = ["--no-deps", "--only-binary=:all:", f"--platform={tag}", f"--python-version={PYTHON}", f"--target={site}"]
    run(sys.executable, "-m", "pip", "install", "--quiet", *asked, wheel)
    source = unpacked(the_one("*.tar.gz"), folder / "source", site / PACKAGE)

    def on(cpu: str) -> int:
        def python(arguments: Sequence[str], cwd: Path) -> int:
            done = machine.run(cpu, arguments, env={"PYTHONPATH": str(site)}, cwd=cwd)
            say(f"{wheel.name} on {cpu}:\n{done.stdout}")
            return done.returncode

        return test(python, source, "not x86", ARM_TESTS[cpu])

    with ThreadPoolExecutor() as runs:
        return 1 if any(list(runs.map(on, ARM_TESTS))) else 0


def main() -> int:
    """Tests a wheel; returns the exit code."""
    parser = argparse.ArgumentParser(description="Install a wheel that build_wheel.py built, and test it there.")
    parser.add_argument("--arm64", action="store_true", help="the one for AArch64, on emulated CPUs")
    arm64 = parser.parse_args().arm64
    with tempfile.TemporaryDirectory(prefix="ao-arm-wheel-") as folder:
        return emulated(Path(folder)) if arm64 else here(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
