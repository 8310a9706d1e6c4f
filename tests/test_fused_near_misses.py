"""Graphs that look like quantized layers: each stays as it was, and the reason is told."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import (
    DECOMPOSED,
    DYNAMIC,
    ChannelsByTorchao,
    GroupsByTorchao,
    Layer,
    TokensByTorchao,
    Weight,
    assert_left,
    assert_near,
    exported,
    layers,
)
from torch import Tensor, nn
from torchao.quantization.quant_primitives import choose_qparams_affine, dequantize_affine, quantize_affine

from ao_arm.passes import fuse

K, N = 64, 33


def near_misses() -> dict[str, tuple[str, Callable[[], nn.Module]]]:
    """By what is wrong: a part of the reason, and what makes the module."""

    def with_weight(**changes: Any) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            layer = Layer(TokensByTorchao(), changes.pop("kind", ChannelsByTorchao)(N, K))
            for name, change in changes.items():
                change(getattr(layer.weight, name))
            return layer

        return make

    def weighted(function: Callable[[Weight], Tensor], kind: Any = ChannelsByTorchao) -> Callable[[], nn.Module]:
        class Other(kind):  # type: ignore[misc]
            def forward(self) -> Tensor:
                return function(self)

        return lambda: Layer(TokensByTorchao(), Other(N, K))

    def activated(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
        class Other(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return function(x)

        return lambda: Layer(Other(), ChannelsByTorchao(N, K))

    def multiplied(product: Any, kind: Any = ChannelsByTorchao, n: int = N) -> Callable[[], nn.Module]:
        return lambda: Layer(TokensByTorchao(), kind(n, K), product)

    def in_blocks(x: Tensor, block: list[int]) -> Tensor:
        given = (torch.int8, -128, 127, 1e-7, torch.float32, torch.int32)
        scale, zero_point = choose_qparams_affine(x, TokensByTorchao().mapping, block, *given)
        q = quantize_affine(x, block, scale, zero_point, torch.int8, -128, 127)
        return dequantize_affine(q, block, scale, zero_point, torch.int8, -128, 127)

    def u8_tokens(x: Tensor) -> Tensor:
        given = (torch.uint8, 0, 255, 1e-7, torch.float32, torch.int32)
        scale, zero_point = choose_qparams_affine(x, TokensByTorchao().mapping, [1, K], *given)
        q = quantize_affine(x, [1, K], scale, zero_point, torch.uint8, 0, 255)
        return dequantize_affine(q, [1, K], scale, zero_point, torch.uint8, 0, 255)

    def calibrated(scale: float, zero_point: int, least: int = -128, dtype: Any = torch.int8) -> Any:
        def function(x: Tensor) -> Tensor:
            q = DECOMPOSED.quantize_per_tensor(x, 0.5, 0, least, 127, dtype)
            return DECOMPOSED.dequantize_per_tensor(q, scale, zero_point, least, 127, dtype)

        return activated(function)

    def unknown_zero_point(dtype: torch.dtype) -> Callable[[], nn.Module]:
        def function(x: Tensor) -> Tensor:
            zero_point = x.sum().to(dtype)
            q = DECOMPOSED.quantize_per_tensor(x, 0.5, 0, -128, 127, torch.int8)
            return (
                ((q.to(torch.int32) - zero_point) * 0.5)
                if dtype == torch.int64
                else (DECOMPOSED.dequantize_per_tensor.tensor(q, torch.tensor(0.5), zero_point, -128, 127, torch.int8))
            )

        return activated(function)

    def changed_weight(weight: Weight) -> Tensor:
        copy = weight.qdata.clone()
        copy.add_(1)
        return dequantize_affine(copy, [1, K], weight.scale, None, torch.int8, -127, 127)

    def columns(weight: Weight) -> Tensor:
        scale = (weight.qdata[:1] % 7 + 9) * 0.01
        return dequantize_affine(weight.qdata, [N, 1], scale, None, torch.int8, -127, 127)

    def blocks(weight: Weight) -> Tensor:
        return dequantize_affine(weight.qdata, [3, K], weight.scale[::3], None, torch.int8, -127, 127)

    def axis_1(weight: Weight) -> Tensor:
        given = ((weight.qdata[0] % 7 + 9) * 0.01, weight.qdata[0] * 0, 1, -127, 127, torch.int8)
        return DECOMPOSED.dequantize_per_channel(weight.qdata, *given)

    def in_groups_of_8_bits(weight: Weight) -> Tensor:
        return dequantize_affine(weight.qdata, [1, 32], weight.scale.expand(N, 2).clone(), None, torch.int8, -127, 127)

    def zero_points(weight: Weight) -> Tensor:
        return dequantize_affine(weight.qdata, [1, K], weight.scale, weight.zero_point + 1, torch.int8, -127, 127)

    def of_16_bits(weight: Weight) -> Tensor:
        return dequantize_affine(weight.qdata.to(torch.int16), [1, K], weight.scale, None, torch.int16, -127, 127)

    return {
        "float activations": ("its activations are floats", activated(lambda x: x * 2)),
        "blocks within rows": ("neither rows nor all", activated(lambda x: in_blocks(x, [1, 32]))),
        "blocks of rows": ("neither rows nor all", activated(lambda x: in_blocks(x, [2, K]))),
        "uint8 tokens": ("torch.uint8", activated(u8_tokens)),
        "int16 activations": ("torch.int16", calibrated(0.5, 0, dtype=torch.int16)),
        "activations scaled by 0": ("the scale 0.0", calibrated(0.0, 0)),
        "a negative scale": ("the scale -0.5", calibrated(-0.5, 0)),
        "an infinite scale": ("the scale inf", calibrated(math.inf, 0)),
        "a scale that is no number": ("the scale nan", calibrated(math.nan, 0)),
        "a scale without a reciprocal": ("the scale 1e-42", calibrated(1e-42, 0)),
        "a zero point out of range": ("the zero point 200", calibrated(0.5, 200)),
        "a zero point that may be out of range": ("may be none of torch.int8", unknown_zero_point(torch.int32)),
        "weights scaled by 0": ("positive, finite", with_weight(scale=lambda scale: scale[3].zero_())),
        "a negative weight scale": ("positive, finite", with_weight(scale=lambda scale: scale[3].neg_())),
        "weights without a scale": ("positive, finite", with_weight(scale=lambda scale: scale[3].fill_(math.nan))),
        "an infinite weight scale": ("positive, finite", with_weight(scale=lambda scale: scale[3].fill_(math.inf))),
        "groups without a scale": (
            "finite floats other than 0",
            with_weight(kind=GroupsByTorchao, scale=lambda scale: scale[3].zero_()),
        ),
        "more than 4 bits": ("[-8, 7]", with_weight(kind=GroupsByTorchao, qdata=lambda qdata: qdata[2].fill_(99))),
        "a weight per column": ("blocks of [33, 1]", weighted(columns)),
        "a weight in blocks of rows": ("blocks of [3, 64]", weighted(blocks)),
        "a weight along axis 1": ("along axis 1", weighted(axis_1)),
        "8 bits in groups": ("8 bits in groups of 32", weighted(in_groups_of_8_bits)),
        "8 bits with zero points": ("zero points", weighted(zero_points)),
        "16 bits": ("int16", weighted(of_16_bits)),
        "a weight that changes": ("no constant", weighted(changed_weight)),
        "an unknown dequantization": ("in a way that is known", weighted(lambda weight: weight.qdata.float().pow(2))),
        "a weight that is not transposed": (
            "as (k, n)",
            multiplied(lambda x, weight, bias: torch.mm(x, weight), n=K),
        ),
        "a scaled product": (
            "scaled by 2",
            multiplied(lambda x, weight, bias: torch.addmm(bias, x, weight.t(), alpha=2)),
        ),
        "a bias for each token": (
            "its bias has the shape (6, 1)",
            multiplied(lambda x, weight, bias: torch.addmm(x[:, :1], x, weight.t())),
        ),
        "a bias of one": (
            "its bias has the shape (1,)",
            multiplied(lambda x, weight, bias: torch.addmm(bias[:1], x, weight.t())),
        ),
    }  # fmt: skip


NEAR_MISSES = near_misses()


@pytest.mark.x86
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays_as_it_was(name: str) -> None:
    reason, make = NEAR_MISSES[name]
    assert_left(make(), reason, torch.randn(6, K))


@pytest.mark.x86
def test_weights_that_are_inputs_stay_as_they_were() -> None:
    def function(x: Tensor, qdata: Tensor, scale: Tensor) -> Tensor:
        weight = dequantize_affine(qdata, [1, K], scale, None, torch.int8, -127, 127)
        return nn.functional.linear(TokensByTorchao()(x), weight)

    weight = ChannelsByTorchao(N, K)
    assert_left(function, "no constant", torch.randn(5, K), weight.qdata, weight.scale)


@pytest.mark.x86
def test_a_program_with_a_near_miss_warns_and_is_served_but_for_it() -> None:
    good, bad = Layer(TokensByTorchao(), ChannelsByTorchao(K, K)), NEAR_MISSES["weights scaled by 0"][1]()
    model, x = nn.Sequential(good, bad), torch.randn(5, K)
    program = exported(model, x)
    with pytest.warns(UserWarning, match="1 quantized linear layers were left as they were: .*positive, finite"):
        changed = fuse(program)
    assert layers(changed.graph) == [DYNAMIC]
    assert_near(changed.module()(x), model(x), 1e-2)
