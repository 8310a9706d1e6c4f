"""Layers of which only the weights are quantized are none of the passes': they are left, with that as the reason."""

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import ao_arm

pytestmark = pytest.mark.x86


def test_the_reason_names_the_float_activations() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32)).eval().requires_grad_(False)
    quantize_(model, Int8WeightOnlyConfig(version=2))
    x = torch.randn(3, 64)
    program = torch.export.export(model, (x,))
    with pytest.warns(UserWarning, match="0: its weight's integers are multiplied as floats"):
        fused = ao_arm.passes.fuse(program)
    assert torch.equal(fused.module()(x), model(x))
