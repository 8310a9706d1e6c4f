"""Integer products, and what follows them element by element, as compilers see quantized layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import (
    OWN_WAY,
    QUANTIZED,
    STATIC,
    Calibrated,
    Layer,
    Weight,
    assert_fused,
    assert_left,
    targets,
)
from torch import Tensor, nn

K, N = 64, 33


def int_mm(
    scale: Callable[[Tensor], Tensor], weight_scale: tuple[int, ...] = (K,), bias: tuple[int, ...] | None = (K,)
) -> nn.Module:
    """A square product of integers for as many rows, so that a shape tells what is a row and what a column."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = Weight(K, K)
            self.register_buffer("weight_scale", torch.rand(weight_scale) + 0.5)
            self.bias = nn.Parameter(torch.randn(bias), requires_grad=False) if bias else None

        def forward(self, x: Tensor) -> Tensor:
            sums = torch._int_mm(x.round().clamp(-128, 127).to(torch.int8), self.weight.qdata.t())
            floats = sums.to(torch.float32) * scale(x) * self.weight_scale
            return floats if self.bias is None else floats + self.bias

    return Model()


@pytest.mark.slow
@pytest.mark.x86
@pytest.mark.parametrize("bias", [(K,), None], ids=str)
@pytest.mark.parametrize("weight_scale", [(K,), (1, K), (1,)], ids=str)
def test_activations_that_are_quantized_in_a_way_of_their_own(weight_scale: Any, bias: Any) -> None:
    """Nothing that is known stands in front, so that an op takes the integers and the scales."""
    tokens, op = (
        int_mm(lambda x: x.abs().amax(-1, keepdim=True), weight_scale, bias),
        f"ao_arm::{OWN_WAY[2].strip('`')}",
    )
    assert_fused(tokens, [op], torch.randn(K, K) * 40)
    repeated = int_mm(lambda x: x.abs().amax(-1, keepdim=True).expand(-1, K), weight_scale, bias)
    assert_fused(repeated, [op], torch.randn(K, K) * 40)
    smoothed = int_mm(lambda x: torch.exp(x[:, :1] / 100), weight_scale, bias)
    assert_fused(smoothed, [QUANTIZED], torch.randn(K, K) * 40)


EPILOGUES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "activations scaled by column": ("the shape of the scale", lambda: int_mm(lambda x: x[0].exp())),
    "activations scaled one by one": ("the shape of the scale", lambda: int_mm(lambda x: x.abs())),
    "weights scaled by row": ("its weight's scales have the shape", lambda: int_mm(lambda x: x[:, :1], (K, 1))),
}


@pytest.mark.x86
def test_a_bias_by_row_is_added_behind_the_op() -> None:
    changed = assert_fused(int_mm(lambda x: x[:, :1], (K,), (K, 1)), [QUANTIZED], torch.randn(K, K) * 40)
    assert targets(changed.graph)[-1] == "aten.add.Tensor"


@pytest.mark.x86
@pytest.mark.parametrize("name", EPILOGUES)
def test_an_epilogue_that_is_another_stays_as_it_was(name: str) -> None:
    reason, make = EPILOGUES[name]
    assert_left(make(), reason, torch.randn(K, K))


@pytest.mark.x86
def test_an_intermediate_result_that_is_used_again() -> None:
    model = int_mm(lambda x: x[:, :1])

    class Used(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sums = torch._int_mm(x.to(torch.int8), model.weight.qdata.t())
            return sums.to(torch.float32) * x[:, :1] * model.weight_scale + sums

    assert_left(Used(), "more than one node uses", torch.randn(K, K) * 40)


@pytest.mark.x86
@pytest.mark.parametrize("dims", ["row", "column", "all"])
def test_weights_that_are_dequantized_element_by_element(dims: str) -> None:
    shape = {"row": (K, 1), "column": (1, K), "all": (1, 1)}[dims]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Layer(Calibrated(), Weight(K, K))
            self.register_buffer("scale", torch.rand(K if dims != "all" else 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.ops.prims.convert_element_type(self.inner.weight.qdata, torch.float32)
            weight = weight * self.scale.view(shape)
            return self.inner.product(self.inner.activations(x), weight, self.inner.bias)

    if dims == "column":
        assert_left(Model(), "by column", torch.randn(5, K))
    else:
        assert_fused(Model(), [STATIC], torch.randn(5, K))
