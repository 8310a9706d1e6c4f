"""Layers with static activations: the op against the reference, on every kernel that this CPU can run."""

import math
from collections.abc import Iterator
from itertools import product

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ao_arm import _ops, reference

#: The activations' integers: dtype, and zero points in the middle and at the extremes.
ACTIVATIONS = {
    "s8 symmetric": (torch.int8, (0,)),
    "s8": (torch.int8, (-128, -5, 127)),
    "u8": (torch.uint8, (0, 113, 255)),
}
EACH_ACTIVATION = pytest.mark.parametrize(("dtype", "zero_points"), ACTIVATIONS.values(), ids=ACTIVATIONS)
FLOATS = pytest.mark.parametrize("float_dtype", cases.FLOATS, ids=cases.name_of)
LAYERS = cases.thinned([(1, 1), (7, 33), (40, 130), (385, 65)])
ROWS = (0, 1, 13, 67) if cases.EMULATED_CPU else (0, 1, 2, 3, 5, 8, 13, 67)


def a_scale(value: float) -> Tensor:
    return torch.tensor([value])


def a_zero_point(value: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor([value], dtype=dtype)


def quantized(m: int, k: int, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, (m, k), dtype=dtype)


def layers(kernel: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Weights that the kernel can serve: integers, packed, scales, bias."""
    for n, k in LAYERS:
        if cases.fits(kernel, n, k):
            qdata = cases.int8_values(n, k)
            yield qdata, _ops.pack_int8(qdata, kernel), torch.rand(n) * 0.01 + 1e-4, torch.randn(n)


@EACH_ACTIVATION
@FLOATS
def test_float_outputs_have_the_bits_of_the_reference(
    dtype: torch.dtype, zero_points: tuple[int, ...], float_dtype: torch.dtype, kernel: str, kernels_met: set[str]
) -> None:
    for qdata, packed, scale, bias in layers(kernel):
        everything = torch.randn(max(ROWS), qdata.shape[1]).to(float_dtype) * 3
        for zero_point, some_bias in cases.thinned([*product(zero_points, (None, bias, bias.to(float_dtype)))]):
            given = (a_scale(0.04), a_zero_point(zero_point, dtype))
            expected = reference.linear_int8_static(everything, qdata, scale, some_bias, *given)
            for m in ROWS:
                actual = _ops.linear_int8_static(everything[:m], packed, scale, some_bias, *given)
                assert cases.same_bits(actual, expected[:m]), f"{m=} {tuple(qdata.shape)} {zero_point=}"
        kernels_met.add(kernel)


@EACH_ACTIVATION
def test_inputs_that_are_already_quantized(dtype: torch.dtype, zero_points: tuple[int, ...], kernel: str) -> None:
    """They give what floats of the same values give, in any float dtype that is asked for."""
    for qdata, packed, scale, bias in layers(kernel):
        q = quantized(max(ROWS), qdata.shape[1], dtype)
        for zero_point, m in product(zero_points, ROWS):
            given = (a_scale(0.25), a_zero_point(zero_point, dtype))
            floats = (q[:m].float() - zero_point) * 0.25
            expected = _ops.linear_int8_static(floats, packed, scale, bias, *given)
            assert cases.same_bits(_ops.linear_int8_static(q[:m], packed, scale, bias, *given), expected)
            for float_dtype in cases.FLOATS:
                actual = _ops.linear_int8_static(q[:m], packed, scale, bias, *given, output_dtype=float_dtype)
                assert cases.same_bits(actual, expected.to(float_dtype))


OUTPUTS = {"s8 -> s8": (torch.int8, torch.int8), "u8 -> u8": (torch.uint8, torch.uint8)} | {
    "s8 -> u8": (torch.int8, torch.uint8),
    "u8 -> s8": (torch.uint8, torch.int8),
}


def output_quantization(output: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A scale and a zero point that just hold these values."""
    low, high = min(0.0, float(output.min())), max(0.0, float(output.max()))
    scale = max((high - low) / 255, 1e-6)
    zero_point = torch.iinfo(dtype).min - round(low / scale)
    return a_scale(scale), a_zero_point(zero_point, dtype)


@pytest.mark.parametrize(("input_dtype", "output_dtype"), OUTPUTS.values(), ids=OUTPUTS)
def test_quantized_outputs_equal_the_reference(
    input_dtype: torch.dtype, output_dtype: torch.dtype, kernel: str, threads: int
) -> None:
    for qdata, packed, scale, bias in layers(kernel):
        q = quantized(max(ROWS), qdata.shape[1], input_dtype)
        given = (a_scale(0.04), a_zero_point(3, input_dtype))
        all_bounds = ({}, {"output_min": 0.0}, {"output_max": 0.5})
        for some_bias, bounds in cases.thinned([*product((None, bias, bias.bfloat16()), all_bounds)]):
            real = reference.linear_int8_static(q, qdata, scale, some_bias, *given, **bounds)
            wanted = output_quantization(real, output_dtype)
            expected = reference.linear_int8_static(q, qdata, scale, some_bias, *given, *wanted, **bounds)
            for m in ROWS:
                with cases.torch_threads(threads):
                    actual = _ops.linear_int8_static(q[:m], packed, scale, some_bias, *given, *wanted, **bounds)
                assert actual.dtype == output_dtype
                assert torch.equal(actual, expected[:m]), f"{m=} {tuple(qdata.shape)} {bounds}"


@pytest.mark.parametrize(("input_dtype", "output_dtype"), OUTPUTS.values(), ids=OUTPUTS)
def test_requantizing_is_within_a_step_of_rounding_the_float_output(
    input_dtype: torch.dtype, output_dtype: torch.dtype
) -> None:
    qdata, scale, bias = cases.int8_values(384, 257), torch.rand(384) * 0.01 + 1e-4, torch.randn(384)
    q, given = quantized(67, 257, input_dtype), (a_scale(0.04), a_zero_point(7, input_dtype))
    packed = _ops.pack_int8(qdata, "")
    real = _ops.linear_int8_static(q, packed, scale, bias, *given)
    wanted = output_quantization(real, output_dtype)
    limits = torch.iinfo(output_dtype)
    rounded = (torch.round(real / wanted[0]) + wanted[1].float()).clamp(limits.min, limits.max)
    difference = (_ops.linear_int8_static(q, packed, scale, bias, *given, *wanted).float() - rounded).abs()
    assert int(difference.max()) <= 1
    assert (difference == 0).float().mean() >= 0.99


def test_s8_and_u8_agree_on_the_same_data(kernel: str) -> None:
    for qdata, packed, scale, bias in layers(kernel):
        x = torch.randn(13, qdata.shape[1])
        s8 = (a_scale(0.03), a_zero_point(-20, torch.int8))
        u8 = (a_scale(0.03), a_zero_point(108, torch.uint8))
        outputs = [_ops.linear_int8_static(x, packed, scale, bias, *given) for given in (s8, u8)]
        assert cases.same_bits(*outputs)
        wanted_s8, wanted_u8 = ((a_scale(0.1), a_zero_point(*z)) for z in ((-8, torch.int8), (120, torch.uint8)))
        signed = _ops.linear_int8_static(x, packed, scale, bias, *s8, *wanted_s8)
        unsigned = _ops.linear_int8_static(x, packed, scale, bias, *u8, *wanted_u8)
        assert torch.equal(signed.int() + 128, unsigned.int())


# --- seeds of trouble elsewhere ---


def test_one_row_into_more_columns_than_it_has(kernel: str) -> None:
    """A bias of n elements where a buffer for m * k was thought enough."""
    qdata, scale, bias = cases.int8_values(3072, 768), torch.rand(3072) * 0.01, torch.randn(3072)
    packed, x = _ops.pack_int8(qdata, kernel), torch.randn(1, 768)
    given = (a_scale(0.04), a_zero_point(0, torch.int8))
    expected = reference.linear_int8_static(x, qdata, scale, bias, *given)
    assert cases.same_bits(_ops.linear_int8_static(x, packed, scale, bias, *given), expected)
    wanted = output_quantization(expected, torch.int8)
    actual = _ops.linear_int8_static(x, packed, scale, bias, *given, *wanted)
    assert torch.equal(actual, reference.linear_int8_static(x, qdata, scale, bias, *given, *wanted))


@pytest.mark.parametrize("multiplier", [1e-12, 0.3, 1.0, 1.5, 40.0, 1e9])
def test_multipliers_of_any_size(multiplier: float, kernel: str) -> None:
    qdata, q = cases.int8_values(33, 17), quantized(5, 17, torch.int8)
    given, wanted = (a_scale(1.0), a_zero_point(1, torch.int8)), (a_scale(1.0), a_zero_point(-3, torch.int8))
    scale, bias = torch.full((33,), multiplier), torch.randn(33) * multiplier * 100
    actual = _ops.linear_int8_static(q, _ops.pack_int8(qdata, kernel), scale, bias, *given, *wanted)
    assert torch.equal(actual, reference.linear_int8_static(q, qdata, scale, bias, *given, *wanted))


@pytest.mark.parametrize("size", [1e9, -1e9, math.inf, -math.inf], ids=str)
def test_a_bias_beyond_int32_saturates(size: float, kernel: str) -> None:
    qdata, q = cases.int8_values(33, 17), quantized(5, 17, torch.int8)
    given, wanted = (a_scale(1e-3), a_zero_point(-128, torch.int8)), (a_scale(0.1), a_zero_point(5, torch.int8))
    scale, bias = torch.full((33,), 1e-3), torch.full((33,), size)
    actual = _ops.linear_int8_static(q, _ops.pack_int8(qdata, kernel), scale, bias, *given, *wanted)
    assert torch.equal(actual, reference.linear_int8_static(q, qdata, scale, bias, *given, *wanted))
    assert set(actual.unique().tolist()) == {127 if size > 0 else -128}


@EACH_ACTIVATION
def test_activations_that_are_all_zero_give_the_bias(
    dtype: torch.dtype, zero_points: tuple[int, ...], kernel: str
) -> None:
    for qdata, packed, scale, bias in layers(kernel):
        x = torch.zeros(5, qdata.shape[1])
        for zero_point in zero_points:
            actual = _ops.linear_int8_static(x, packed, scale, bias, a_scale(0.04), a_zero_point(zero_point, dtype))
            assert torch.equal(actual, bias.expand_as(actual))


@FLOATS
@EACH_ACTIVATION
def test_values_far_outside_the_range(
    dtype: torch.dtype, zero_points: tuple[int, ...], float_dtype: torch.dtype, kernel: str
) -> None:
    """They saturate, whatever their size; a NaN counts as 0."""
    powers = torch.logspace(-30, 38, 69).to(float_dtype)
    special = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0], dtype=float_dtype)
    x = torch.cat([powers, -powers, special])[:, None].repeat(1, 17)
    qdata, scale = cases.int8_values(4, 17), torch.rand(4)
    if not cases.fits(kernel, *qdata.shape):
        pytest.skip(f"{kernel} does not serve this shape")
    packed = _ops.pack_int8(qdata, kernel)
    for zero_point, input_scale in product(zero_points, (1e-20, 1.0, 1e20)):
        given = (a_scale(input_scale), a_zero_point(zero_point, dtype))
        actual = _ops.linear_int8_static(x, packed, scale, None, *given, output_dtype=torch.float32)
        expected = reference.linear_int8_static(x, qdata, scale, None, *given, output_dtype=torch.float32)
        assert cases.same_bits(actual, expected), f"{zero_point=} {input_scale=}"


def test_new_scales_need_no_repacking() -> None:
    qdata, scale, x = cases.int8_values(40, 66), torch.rand(40), torch.randn(5, 66)
    packed, input_scale, zero_point = _ops.pack_int8(qdata, ""), a_scale(0.1), a_zero_point(3, torch.int8)
    before = packed.clone()
    for new in (0.1, 0.02, 0.5):
        input_scale.fill_(new)
        actual = _ops.linear_int8_static(x, packed, scale, None, input_scale, zero_point)
        expected = reference.linear_int8_static(x, qdata, scale, None, input_scale, zero_point)
        assert cases.same_bits(actual, expected)
    assert torch.equal(packed, before)


@pytest.mark.x86
@given(
    st.integers(0, 20),
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([torch.int8, torch.uint8]),
    st.floats(1e-4, 10),
    st.randoms(use_true_random=False),
)
def test_any_layer(m: int, n: int, k: int, dtype: torch.dtype, output_scale: float, random: object) -> None:
    limits = torch.iinfo(dtype)
    zero_points = [a_zero_point(random.randint(limits.min, limits.max), dtype) for _ in range(2)]  # type: ignore[attr-defined]
    qdata, scale, bias = cases.int8_values(n, k), torch.rand(n) * 0.1 + 1e-6, torch.randn(n)
    given, wanted = (a_scale(0.05), zero_points[0]), (a_scale(output_scale), zero_points[1])
    q, packed = quantized(m, k, dtype), _ops.pack_int8(qdata, "")
    actual = _ops.linear_int8_static(q, packed, scale, bias, *given, *wanted)
    assert torch.equal(actual, reference.linear_int8_static(q, qdata, scale, bias, *given, *wanted))


# --- what is refused ---


@pytest.mark.x86
def test_errors_name_what_was_given() -> None:
    qdata, scale = cases.int8_values(4, 6), torch.rand(4)
    packed, x, one, zero = _ops.pack_int8(qdata, ""), torch.randn(3, 6), a_scale(1.0), a_zero_point(0, torch.int8)
    for message, arguments, keywords in (
        ("its last dimension must be 6", (x[:, :5], packed, scale, None, one, zero), {}),
        ("as input_zero_point is, torch.int8, not torch.uint8", (x.byte(), packed, scale, None, one, zero), {}),
        ("not torch.float64", (x.double(), packed, scale, None, one, zero), {}),
        ("input_scale must be torch.float32, not torch.float64", (x, packed, scale, None, one.double(), zero), {}),
        ("input_scale must be positive and finite, not 0", (x, packed, scale, None, one * 0, zero), {}),
        ("input_scale must be positive and finite, not nan", (x, packed, scale, None, one * math.nan, zero), {}),
        ("one element each", (x, packed, scale, None, torch.ones(2), zero), {}),
        (
            "torch.int8 or torch.uint8, as the quantized values are, not torch.int32",
            (x, packed, scale, None, one, zero.int()),
            {},
        ),
        ("output_scale must be positive", (x, packed, scale, None, one, zero, -one, zero), {}),
        ("give both or neither", (x, packed, scale, None, one, zero, one), {}),
        ("output_zero_point's, or left", (x, packed, scale, None, one, zero, one, zero), {"output_dtype": torch.float}),
        ("without output_scale, not torch.int8", (x, packed, scale, None, one, zero), {"output_dtype": torch.int8}),
        ("at most output_max", (x, packed, scale, None, one, zero), {"output_min": 1.0, "output_max": 0.5}),
    ):
        with pytest.raises(RuntimeError, match=message):
            _ops.linear_int8_static(*arguments, **keywords)


def op_calls() -> dict[str, tuple[tuple[object, ...], dict[str, object]]]:
    qdata, scale, bias = cases.int8_values(33, 40), torch.rand(33), torch.randn(33)
    packed, x = _ops.pack_int8(qdata, ""), torch.randn(5, 40)
    s8, u8 = (a_scale(0.1), a_zero_point(3, torch.int8)), (a_scale(0.1), a_zero_point(3, torch.uint8))
    return {
        "float -> float": ((x, packed, scale, bias, *s8), {}),
        "3-D bfloat16 -> float16": ((x[None].bfloat16(), packed, scale, None, *u8), {"output_dtype": torch.float16}),
        "u8 -> float": ((quantized(5, 40, torch.uint8), packed, scale, None, *u8), {}),
        "s8 -> u8": ((quantized(5, 40, torch.int8), packed, scale, bias, *s8, *u8), {"output_min": 0.0}),
        "no rows": ((x[:0], packed, scale, bias, *s8), {}),
        "transposed": ((torch.randn(40, 5).t(), packed, scale, bias, *s8, *s8), {}),
    }


@pytest.mark.x86
@pytest.mark.parametrize("call", op_calls())
def test_opcheck(call: str) -> None:
    arguments, keywords = op_calls()[call]
    torch.library.opcheck(_ops.linear_int8_static, arguments, keywords)


@pytest.mark.parametrize(("scale", "value"), [(math.nan, 1), (math.inf, 0), (3e38, 0)])
def test_channels_whose_scale_is_no_number_stay_within_the_bounds(scale: float, value: int) -> None:
    """In columns that fill vectors and in those that are left over."""
    packed = _ops.pack_int8(torch.full((21, 32), value, dtype=torch.int8), "")
    quantization = a_scale(0.04), a_zero_point(5, torch.int8), a_scale(0.02), a_zero_point(-111, torch.int8)
    scales = torch.full((21,), scale)
    output = _ops.linear_int8_static(torch.ones(3, 32), packed, scales, None, *quantization, None, 1.5, 2.0)
    assert torch.equal(output, torch.full((3, 21), -36, dtype=torch.int8))
