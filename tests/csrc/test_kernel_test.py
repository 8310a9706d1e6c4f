"""Builds the kernels' own test program for this machine, and runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import kept_objects
import pytest
import torch

CHECKOUT = Path(__file__).parents[2]


def program(name: str) -> str:
    """A build tool, from this Python's environment first: tests may run without it being activated."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    found = shutil.which(name, path=path)
    assert found, f"{name} is not installed: pip install {name}"
    return found


@pytest.mark.x86
@pytest.mark.slow
def test_kernels_on_this_cpu(tmp_path: Path) -> None:
    cmake = program("cmake")
    settings = {
        "AO_ARM_BUILD_TESTS": "ON",
        "AO_ARM_TORCH_DIR": str(Path(torch.__file__).parent),
        "CMAKE_MAKE_PROGRAM": program("ninja"),
        "CMAKE_CXX_COMPILER_LAUNCHER": kept_objects.launcher(),
    }
    for command in (
        [cmake, "-S", CHECKOUT / "csrc", "-B", tmp_path, "-G", "Ninja", *(f"-D{k}={v}" for k, v in settings.items())],
        [cmake, "--build", tmp_path, "--target", "kernel_test"],
        [tmp_path / "kernel_test", "exhaustive"],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
    print(done.stdout)
    assert done.stdout.rstrip().endswith(" passed, 0 failed")
