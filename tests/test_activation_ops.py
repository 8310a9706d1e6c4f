"""How activations are quantized: as by the reference."""

import cases
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from int8_layers import DTYPES, SYMMETRIES, first_difference, float_matrices, odd_activations
from torch import Tensor

from ao_arm import _ops, reference


def assert_quantized_as_the_reference(x: Tensor, symmetric: bool) -> None:
    qdata, scale, zero_point = _ops.quantize_activations(x, symmetric)
    expected_qdata, expected_scale, expected_zero_point = reference.quantize_activations(x, symmetric)
    assert cases.same_bits(scale, expected_scale), f"scale: {first_difference(scale, expected_scale)}"
    assert torch.equal(zero_point, expected_zero_point), first_difference(zero_point, expected_zero_point)
    assert torch.equal(qdata, expected_qdata), f"qdata: {first_difference(qdata, expected_qdata)}"


@DTYPES
@SYMMETRIES
@pytest.mark.parametrize("k", (1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 257), ids="k={}".format)
def test_activations_are_quantized_as_by_the_reference(dtype: torch.dtype, symmetric: bool, k: int) -> None:
    rows = odd_activations(k, dtype)
    for row in rows.values():
        assert_quantized_as_the_reference(row[None], symmetric)
    assert_quantized_as_the_reference(torch.stack([*rows.values()]), symmetric)
    assert_quantized_as_the_reference(torch.empty(0, k, dtype=dtype), symmetric)


@pytest.mark.slow
@DTYPES
@SYMMETRIES
@given(data=st.data())
def test_any_activations_are_quantized_as_by_the_reference(
    dtype: torch.dtype, symmetric: bool, data: st.DataObject
) -> None:
    assert_quantized_as_the_reference(data.draw(float_matrices(dtype)), symmetric)


@SYMMETRIES
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True), min_size=1, max_size=50),
)
@example(values=[0.0])
@example(values=[1e-45])
def test_quantized_activations_are_near_the_values(symmetric: bool, values: list[float]) -> None:
    """Half a step by rounding. Another half at the end of the range: 127.5 is cut, or the zero point was rounded."""
    x = torch.tensor([values])
    qdata, scale, zero_point = _ops.quantize_activations(x, symmetric)
    restored = (qdata.double() - zero_point.double()) * scale.double()
    steps = float(((restored - x.double()) / scale.double()).abs().max())
    assert steps <= 1.0 + 1e-4, f"{steps} steps off: {restored.tolist()}"
