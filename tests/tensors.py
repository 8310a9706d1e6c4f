"""What the tests of the packed tensor have in common: each layout, random weights, comparisons."""

import cases
import pytest
import torch
from torch import Tensor

from ao_arm import ACLPackedLayout, ACLPackedTensor

#: The shape of weights.
N, K = cases.LAYER

EACH_LAYOUT = pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=cases.LAYOUTS)
EACH_SCHEME = pytest.mark.parametrize("layout", cases.SCHEMES.values(), ids=cases.SCHEMES)
EACH_LAYOUT_AND_KERNEL = pytest.mark.parametrize(
    ("layout", "kernel"),
    [
        pytest.param(layout, kernel, id=f"{name}-{kernel}")
        for name, layout in cases.LAYOUTS.items()
        for kernel in cases.kernels_for(layout)
    ],
    indirect=["kernel"],
)
EACH_DTYPE = pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)


def packed(
    n: int = N, k: int = K, layout: ACLPackedLayout | None = None, dtype: torch.dtype = torch.float32
) -> ACLPackedTensor:
    return cases.packed(torch.randn(n, k, dtype=dtype), layout)


def dequantized(qdata: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """(q - zero_point) * scale, with one scale, n or (n, groups)."""
    scale = scale.float().reshape(len(scale), -1, 1)
    groups = qdata.float().unflatten(1, (scale.shape[1], -1))
    return ((groups if zero_point is None else groups - zero_point.float()[..., None]) * scale).flatten(1)


def assert_same_weight(actual: ACLPackedTensor | None, expected: ACLPackedTensor | None, case: str = "") -> None:
    """Same layout, same integers and scales, of weights and of activations."""
    assert type(actual) is type(expected) is ACLPackedTensor, case
    assert (actual.shape, actual.dtype, actual.get_layout()) == (expected.shape, expected.dtype, expected.get_layout())
    for ours, theirs in (
        *zip(actual.get_plain(), expected.get_plain(), strict=True),
        (actual.act_scale, expected.act_scale),
        (actual.act_zero_point, expected.act_zero_point),
    ):
        assert (ours is None) == (theirs is None), case
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs)), case
