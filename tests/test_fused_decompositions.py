"""Programs of torchao's layers fuse the same after ``run_decompositions``, which makes elementary ops of torchao's."""

import pytest
import stock
import torch
from torch.export import ExportedProgram

import ao_arm

pytestmark = [pytest.mark.x86, pytest.mark.slow]

#: One of each kind: other roundings, group sizes and numbers of bits take the same ops.
KINDS = (
    "Int8Tensor dynamic symmetric, per_token x per_channel",
    "Int8Tensor dynamic asymmetric, per_token x per_channel",
    "Int8Tensor dynamic symmetric, per_tensor x per_tensor",
    "Intx 8 bits by row",
    "Intx 4 bits symmetric 32 None",
    "Intx 4 bits asymmetric 32 None",
)
#: Older versions of torchao have no asymmetric Int8Tensor.
NAMES = [name for name in KINDS if name in stock.WAYS or stock.HAS_ASYMMETRIC_INT8]


def ops(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if str(node.target).startswith("ao_arm.")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_same_ops_and_same_bits(name: str, dtype: torch.dtype) -> None:
    layer = stock.layer_by(stock.WAYS[name], dtype)
    x = torch.randn(2, 3, layer.in_features, dtype=dtype)
    program = torch.export.export(layer, (x,))
    fused, after = (ao_arm.passes.fuse(form) for form in (program, program.run_decompositions()))
    assert len(ops(fused)) == 1
    assert ops(after) == ops(fused)
    assert torch.equal(after.module()(x), fused.module()(x))
