"""The kernels' own test program on emulated CPUs, among them one that torch's wheels do not run on."""

import re

import pytest
from machine import CPUS, Machine

#: What each model has, and so which kernels must have been tested on it.
ANY = {"acl/s8s32+epilogue", "portable/baseline", "portable/int4_baseline"}
DOTPROD = {*ANY, "neon/dotprod", "portable/dotprod", "neon/int4_dotprod", "kleidiai/qai8dxp_qsi4c32p_dot"}
I8MM = {*DOTPROD, "neon/i8mm", "portable/i8mm", "neon/int4_i8mm", "kleidiai/qai8dxp_qsi4c32p_i8mm"}
#: The emulated a64fx and max have SVE as well, but vectors of 512 bits.
SVE256 = {*I8MM, "sve/i8mm_256"}
EXPECTED = {"cortex-a72": ANY, "a64fx": ANY, "neoverse-n1": DOTPROD, "neoverse-v1": SVE256, "max": I8MM}


@pytest.mark.parametrize("model", ["cortex-a72", *CPUS])
def test_kernels_on_emulated_cpu(model: str, machine: Machine) -> None:
    done = machine.run_kernel_test(model)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    tested = set(re.findall(r"^(\S+): [1-9]\d* checks passed", done.stdout, re.MULTILINE))
    assert tested == EXPECTED[model], done.stdout
    # The others were never entered, which is why none can end on an instruction that this CPU does not have.
    lacking = dict(re.findall(r"^(\S+): .*?(this CPU has no \w+)", done.stdout, re.MULTILINE))
    assert {*lacking} >= SVE256 - tested, done.stdout
    assert re.search(r"^[1-9]\d+ passed, 0 failed$", done.stdout, re.MULTILINE), done.stdout
