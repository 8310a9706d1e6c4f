"""How activations are quantized: as by the reference, and symmetric ones as by torchao."""

import math

import cases
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from int8_layers import DTYPES, SYMMETRIES, first_difference, float_matrices
from torch import Tensor

from ao_arm import _ops, reference


def assert_quantized_as_the_reference(x: Tensor, symmetric: bool) -> None:
    qdata, scale, zero_point = _ops.quantize_activations(x, symmetric)
    expected_qdata, expected_scale, expected_zero_point = reference.quantize_activations(x, symmetric)
    assert cases.same_bits(scale, expected_scale), f"scale: {first_difference(scale, expected_scale)}"
    assert torch.equal(zero_point, expected_zero_point), first_difference(zero_point, expected_zero_point)
    assert torch.equal(qdata, expected_qdata), f"qdata: {first_difference(qdata, expected_qdata)}"


def odd_activations(k: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Named rows of values that are easily got wrong."""
    information = torch.finfo(dtype)
    half_steps = torch.arange(-k, k, 2) / 2  # with 127.5 among them each lies between two steps
    half_steps[0] = 127.5
    rows = {
        "zeros": torch.zeros(k),
        "negative zeros": torch.full((k,), -0.0),
        "normal": torch.randn(k),
        "positive": torch.rand(k) + 1,
        "negative": -torch.rand(k) - 1,
        "equal": torch.full((k,), 0.3),
        "smallest subnormal": torch.full((k,), information.smallest_normal * information.eps),
        "subnormal": torch.randn(k) * information.smallest_normal / 8,
        "tiny": torch.randn(k) * 1e-7,
        "largest": torch.full((k,), information.max),
        "both largest": torch.where(torch.arange(k).remainder(2) == 0, information.max, information.min),
        "one large": torch.where(torch.arange(k) == k - 1, information.max, 1.0),
        "mixed magnitudes": torch.randn(k) * torch.logspace(-30, 4, k),
        "half steps": half_steps,
        "NaN": torch.where(torch.arange(k) == k // 2, math.nan, 1.0),
        "infinity": torch.where(torch.arange(k) == 0, -math.inf, 1.0),
    }
    return {name: row.to(dtype) for name, row in rows.items()}


@DTYPES
@SYMMETRIES
@pytest.mark.parametrize("k", (1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 257), ids="k={}".format)
def test_activations_are_quantized_as_by_the_reference(dtype: torch.dtype, symmetric: bool, k: int) -> None:
    rows = odd_activations(k, dtype)
    for row in rows.values():
        assert_quantized_as_the_reference(row[None], symmetric)
    assert_quantized_as_the_reference(torch.stack([*rows.values()]), symmetric)
    assert_quantized_as_the_reference(torch.empty(0, k, dtype=dtype), symmetric)


@pytest.mark.parametrize("k", (2, 17, 768), ids="k={}".format)
@DTYPES
def test_symmetric_activations_are_quantized_as_by_torchao(dtype: torch.dtype, k: int) -> None:
    """As by the dynamic path of torchao's Int8DynamicActivationInt8WeightConfig; bfloat16 and float16 from 0.18 on."""
    workflows = pytest.importorskip("torchao.quantization.quantize_.workflows")
    from torchao.quantization.granularity import PerRow
    from torchao.quantization.quantize_.common import _choose_quant_func_and_quantize_tensor

    if cases.HAS_AQT and dtype != torch.float32:
        pytest.skip("this torchao keeps activation scales in the activations' dtype")
    wanted = workflows.QuantizeTensorToInt8Kwargs(granularity=PerRow())
    rows = {name: row for name, row in odd_activations(k, dtype).items() if bool(row.isfinite().all())}
    x = torch.stack([*rows.values(), *torch.randn(20, k).to(dtype)])
    theirs = _choose_quant_func_and_quantize_tensor(x, wanted)
    qdata, scale, zero_point = _ops.quantize_activations(x, True)
    assert cases.same_bits(scale, theirs.scale.reshape(-1, 1).float()), "scale"
    assert torch.equal(qdata, theirs.qdata), first_difference(qdata, theirs.qdata)
    assert not zero_point.any()


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
