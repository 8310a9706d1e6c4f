"""The kernels' own test program on emulated CPUs, among them one that torch's wheels do not run on."""

import re

import pytest
from machine import CPUS, Machine

#: What each model has, and so which kernels must have been tested on it.
EXPECTED = {
    "cortex-a72": {"acl/s8s32+epilogue", "portable/baseline"},
    "a64fx": {"acl/s8s32+epilogue", "portable/baseline"},
    "neoverse-n1": {"acl/s8s32+epilogue", "portable/dotprod", "portable/baseline"},
    "neoverse-v1": {"acl/s8s32+epilogue", "portable/i8mm", "portable/dotprod", "portable/baseline"},
    "max": {"acl/s8s32+epilogue", "portable/i8mm", "portable/dotprod", "portable/baseline"},
}


@pytest.mark.parametrize("model", ["cortex-a72", *CPUS])
def test_kernels_on_emulated_cpu(model: str, machine: Machine) -> None:
    done = machine.run_kernel_test(model, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    tested = set(re.findall(r"^(\S+): [1-9]\d* checks passed", done.stdout, re.MULTILINE))
    assert tested == EXPECTED[model], done.stdout
    assert re.search(r"^[1-9]\d+ passed, 0 failed$", done.stdout, re.MULTILINE), done.stdout
