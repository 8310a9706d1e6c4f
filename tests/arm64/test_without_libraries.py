"""On AArch64 without Arm Compute Library and KleidiAI: ao_arm builds and is right, and warns where it is slower."""

import pytest
from machine import Machine

INT8 = """
import warnings, torch, ao_arm
from torchao.quantization import quantize_
model = torch.nn.Sequential(torch.nn.Linear(768, 96), torch.nn.Linear(96, 768))
inputs = torch.randn(4, 768)
expected = model(inputs)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    quantize_(model, ao_arm.acl_int8_dynamic())
ours = [str(warning.message) for warning in caught if "slower kernel" in str(warning.message)]
print(len(ours), "warnings", *ours)
print(ao_arm.explain(model))
error = (model(inputs) - expected).norm() / expected.norm()
assert error < 0.05, error
"""

SEPARATOR = "--- 4 bits ---"
INT4 = f"""
import os
print("{SEPARATOR}")
os.environ["AO_ARM_KERNEL"] = "kleidiai/qai8dxp_qsi4c32p_torch"
linear = torch.nn.Linear(768, 100)
quantize_(linear, ao_arm.acl_int4_grouped(group_size=64))
print(ao_arm.explain(linear))
floats = linear.weight.dequantize()
for rows in (1, 4, 5, 67):
    inputs = torch.randn(rows, 768)
    error = (linear(inputs) - inputs @ floats.t() - linear.bias).norm() / linear(inputs).norm()
    assert error < 0.02, (rows, error)
"""


@pytest.mark.parametrize(
    ("cpu", "kernel", "warnings"), [("a64fx", "portable/baseline", 1), ("neoverse-v1", "sve/i8mm_256", 0)]
)
def test_layers(cpu: str, kernel: str, warnings: int, machine: Machine) -> None:
    """4-bit layers where libtorch has a KleidiAI of its own."""
    staged = machine.build_alone()
    has_kleidiai = cpu != "a64fx"
    code = INT8 + INT4 if has_kleidiai else INT8
    done = machine.run(cpu, ["-c", code], env={"PYTHONPATH": str(staged)}, cwd=staged)
    assert done.returncode == 0, done.stdout
    assert "built without Arm Compute Library: install it (Debian, Ubuntu: libarm-compute-dev" in done.stdout
    assert kernel in done.stdout
    warned = next(line for line in done.stdout.splitlines() if " warnings" in line)
    assert warned.startswith(f"{warnings} warnings")
    if warnings:
        assert "'0.weight' of Linear(in_features=768, out_features=96" in warned
        assert kernel in warned
    if has_kleidiai:
        assert "built without KleidiAI: install it (Debian, Ubuntu: libkleidiai-dev" in done.stdout
        assert "kleidiai/qai8dxp_qsi4c32p_torch" in done.stdout.partition(SEPARATOR)[2]
