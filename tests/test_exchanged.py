"""What one kind of CPU writes others read: weights are equal, and outputs, or near for 4 bits; packed anew for each.

On emulated CPUs x86 wrote it; what these write is the same, and is read on x86 again when they are done.
"""

import os
from pathlib import Path

import cases
import exchanged
import pytest
import torch

#: What serves an int8 weight that has just been loaded, and one of 4 bits.
LOADED = {
    "": ("portable/", "portable/int4_"),
    "a64fx": ("acl/", "portable/int4_"),
    "neoverse-v1": ("sve/", "neon/"),
}
ELSEWHERE = ("neon/", "neon/")


@pytest.fixture(scope="module")
def from_x86(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get(exchanged.FOLDER_VARIABLE)
    if given:
        return Path(given) / exchanged.X86
    folder = tmp_path_factory.mktemp("x86")  # or what an Arm CPU wrote for itself
    exchanged.write_checkpoint(folder)
    exchanged.write_programs(folder)
    return folder


def check_kernels(found: set[str], cpu: str) -> None:
    int8, int4 = LOADED.get(cpu, ELSEWHERE)
    of_int4 = {kernel for kernel in found if "int4" in kernel or kernel.startswith("kleidiai/")}
    assert any(kernel.startswith(int8) for kernel in found - of_int4), found
    assert len(of_int4) == 1 and all(kernel.startswith(int4) for kernel in of_int4), found


def test_a_checkpoint_is_read(from_x86: Path) -> None:
    check_kernels(exchanged.read_checkpoint(from_x86), cases.EMULATED_CPU)


def test_the_same_checkpoint_is_written(from_x86: Path, tmp_path: Path) -> None:
    given = os.environ.get(exchanged.FOLDER_VARIABLE)
    folder = Path(given) / cases.EMULATED_CPU if given else tmp_path
    folder.mkdir(exist_ok=True)
    exchanged.write_checkpoint(folder)
    (tensors, metadata), (theirs, said) = exchanged.contents(folder), exchanged.contents(from_x86)
    assert metadata == said
    assert tensors.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors.items())


@pytest.mark.one_cpu
def test_programs_of_torchao_are_fused(from_x86: Path) -> None:
    kernels = exchanged.read_programs(from_x86)
    if cases.EMULATED_CPU == "neoverse-v1":
        assert kernels == {"int8": "sve/i8mm_256", "int4": "neon/int4_i8mm"}
    else:
        assert kernels.keys() == exchanged.PROGRAMS.keys()
