"""What CMake says about Arm Compute Library when ao_arm is configured for AArch64."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from test_kernel_test import CHECKOUT, program

VERSION_TEXT = "arm_compute_version=v{} Build options: {{'arch': 'arm64-v8a'}}"


def configure(folder: Path, acl: Path) -> subprocess.CompletedProcess[str]:
    """Configures only, so this machine's own compiler will do."""
    command = [program("cmake"), "-S", str(CHECKOUT / "csrc"), "-B", str(folder), "-G", "Ninja"]
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_MAKE_PROGRAM": program("ninja"),
        "AO_ARM_TORCH_DIR": str(Path(torch.__file__).parent),
        "ACL_ROOT_DIR": str(acl),
        "CMAKE_FIND_USE_CMAKE_SYSTEM_PATH": "OFF",
    }
    command += [f"-D{name}={value}" for name, value in settings.items()]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def make_acl(folder: Path, text: str) -> Path:
    """A folder that looks like an installed Arm Compute Library."""
    header = folder / "include/arm_compute/runtime/experimental/operators/CpuGEMMLowp.h"
    header.parent.mkdir(parents=True)
    header.touch()
    library = folder / "lib/libarm_compute-static.a"
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF\0" + text.encode() + b"\0rest")
    return folder


@pytest.mark.x86
@pytest.mark.parametrize("version", ["24.11", "24.11.1", "52.4.0"])
def test_acl_is_found_and_named(version: str, tmp_path: Path) -> None:
    done = configure(tmp_path / "build", make_acl(tmp_path / "acl", VERSION_TEXT.format(version)))
    assert done.returncode == 0, done.stdout
    assert f"Arm Compute Library {version} in {tmp_path / 'acl'}" in done.stdout


@pytest.mark.x86
def test_old_acl_is_refused_by_version(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", make_acl(tmp_path / "acl", VERSION_TEXT.format("24.02")))
    assert done.returncode != 0
    message = re.sub(r"\s+", " ", done.stdout)
    assert "is Arm Compute Library 24.02, which is too old. Install 24.11 or newer and set ACL_ROOT_DIR" in message


@pytest.mark.x86
def test_acl_of_unknown_version_is_refused(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", make_acl(tmp_path / "acl", "no version here"))
    assert done.returncode != 0
    assert "does not tell its version" in re.sub(r"\s+", " ", done.stdout)


@pytest.mark.x86
def test_missing_acl_is_said_plainly(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", tmp_path)
    assert done.returncode == 0, done.stdout
    message = re.sub(r"\s+", " ", done.stdout)
    assert "no Arm Compute Library found: on CPUs without dot product instructions int8" in message
    assert "libarm-compute-dev" in message
