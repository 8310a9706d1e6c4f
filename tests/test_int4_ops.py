"""The op of layers with 4-bit weights against the reference, on every kernel that this CPU can run."""

import math
from itertools import product

import cases
import pytest
import torch
from cases import assert_near_the_reference
from int4_layers import DTYPES, EVERYWHERE, LAYERS, ROWS, SCALES, ZEROS, linear, plain_of

from ao_arm import _ops


@pytest.mark.x86
@SCALES
@ZEROS
def test_linear_is_near_the_reference(
    scale_dtype: torch.dtype, zeros: bool, kernel4: str, kernels_met: set[str]
) -> None:
    for index, (n, k, group) in enumerate(LAYERS):
        if not cases.fits(kernel4, n, k, group, scale_dtype == torch.float32, zeros):
            continue
        plain = plain_of(n, k, group, scale_dtype, zeros)
        packed = _ops.pack_int4(*plain, kernel4)
        # Magnitudes from 1e-4 to 1e3 among the tokens, and ranges that do not reach 0.
        everything = torch.randn(max(ROWS), k) * torch.logspace(-4, 3, max(ROWS))[:, None] + torch.randn(max(ROWS), 1)
        bias = torch.randn(n) if index % 2 else None
        for m in ROWS:
            x = everything[len(everything) - m :]
            assert_near_the_reference(linear(x, packed, n, bias), x, plain, bias)
        kernels_met.add(kernel4)


@DTYPES
@ZEROS
def test_dtypes_bias_and_bounds(
    dtype: torch.dtype, zeros: bool, kernel4: str, threads: int, kernels_met: set[str]
) -> None:
    for n, k, group in EVERYWHERE:
        if not cases.fits(kernel4, n, k, group, False, zeros):
            continue
        plain = plain_of(n, k, group, torch.bfloat16, zeros)
        packed = _ops.pack_int4(*plain, kernel4)
        x = torch.randn(19, k).to(dtype)
        biases = [None, *(torch.randn(n).to(bias_dtype) for bias_dtype in cases.FLOATS)]
        all_bounds = ({}, {"output_min": -0.25}, {"output_min": 0.0, "output_max": 0.5})
        for bias, bounds in cases.thinned([*product(biases, all_bounds)]):
            with cases.torch_threads(threads):
                actual = linear(x, packed, n, bias, **bounds)
            assert_near_the_reference(actual, x, plain, bias, **bounds)
        kernels_met.add(kernel4)


@ZEROS
def test_given_token_scales(zeros: bool, kernel4: str) -> None:
    for n, k, group in EVERYWHERE:
        if not cases.fits(kernel4, n, k, group, False, zeros):
            continue
        plain = plain_of(n, k, group, torch.bfloat16, zeros)
        packed = _ops.pack_int4(*plain, kernel4)
        for m in (1, 6, 18):
            scale, zero_point = torch.rand(m) * 0.05 + 1e-3, torch.randint(-128, 128, (m,), dtype=torch.int32)
            floats, quantized = torch.randn(m, k) * 3, cases.int8_values(m, k, least=-128)
            for x in (floats, floats.bfloat16(), quantized):
                for given in ({"act_scale": scale, "act_zero_point": zero_point}, {"act_scale": scale}):
                    assert_near_the_reference(linear(x, packed, n, **given), x, plain, **given)


@pytest.mark.slow
@pytest.mark.x86
def test_large_layers_on_threads(kernel4: str, threads: int) -> None:
    for n, k, group in ((520, 1536, 32), (264, 2048, 128)):
        plain = plain_of(n, k, group, torch.bfloat16, False)
        packed = _ops.pack_int4(*plain, kernel4)
        for m in (1, 70, 300):
            x = torch.randn(m, k)
            with cases.torch_threads(threads):
                actual = linear(x, packed, n)
            assert_near_the_reference(actual, x, plain)


@pytest.mark.x86
@ZEROS
@pytest.mark.parametrize("group", (32, 64, 256, 512))
def test_extreme_values(group: int, zeros: bool, kernel4: str) -> None:
    """Sums at the ends of what accumulators hold."""
    n, k = 9, 1024
    if not cases.fits(kernel4, n, k, group, True, zeros):
        pytest.skip("another kernel's case")
    for weight, activation in product((-8, 7), (-128, 127)):
        zero_point = torch.full((n, k // group), 7 if weight < 0 else -8, dtype=torch.int8) if zeros else None
        plain = torch.full((n, k), weight, dtype=torch.int8), torch.full((n, k // group), 0.5), zero_point
        packed = _ops.pack_int4(*plain, kernel4)
        for m in (1, 3, 16):
            x = torch.full((m, k), activation, dtype=torch.int8)
            given = {"act_scale": torch.ones(m)}
            assert_near_the_reference(linear(x, packed, n, **given), x, plain, **given)


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf), ids=str)
@DTYPES
def test_a_token_that_is_not_finite_gives_nan_and_leaves_the_others_alone(
    value: float, dtype: torch.dtype, kernel4: str
) -> None:
    n, k = 33, 96
    plain = plain_of(n, k, 32, torch.bfloat16, False)
    packed = _ops.pack_int4(*plain, kernel4)
    finite = torch.randn(9, k).to(dtype)
    for m, row, column in ((1, 0, 0), (9, 0, 95), (9, 4, 33), (9, 8, 1)):
        x = finite[:m].clone()
        x[row, column] = value
        actual = linear(x, packed, n, torch.randn(n), output_min=-1.0)
        assert bool(actual[row].isnan().all())
        assert not bool(actual[torch.arange(m) != row].isnan().any())
        assert_near_the_reference(linear(x, packed, n), x, plain)


@pytest.mark.parametrize("shape", [(32,), (5, 32), (2, 3, 32), (0, 32), (2, 0, 3, 32)], ids=str)
def test_inputs_of_any_dimensions(shape: tuple[int, ...]) -> None:
    plain = plain_of(7, 32, 32, torch.bfloat16, False)
    x = torch.randn(shape)
    actual = linear(x, _ops.pack_int4(*plain, ""), 7)
    assert actual.shape == (*shape[:-1], 7)
    assert_near_the_reference(actual, x, plain)


def test_inputs_and_bias_arranged_in_any_way() -> None:
    plain = plain_of(40, 64, 32, torch.bfloat16, False)
    packed = _ops.pack_int4(*plain, "")
    bias = torch.randn(80)[::2]
    for x in (torch.randn(64, 9).t(), torch.randn(9, 128)[:, ::2], torch.randn(64).expand(9, 64), torch.randn(577)[1:]):
        x = x.view(9, 64) if x.dim() == 1 else x
        assert_near_the_reference(linear(x, packed, 40, bias), x, plain, bias)


# --- the record ---


def test_every_int4_kernel_of_this_cpu_met_a_case(all_were_asked_for: None, kernels_met: set[str]) -> None:
    missing = set(cases.TRIED_INT4_KERNELS) - kernels_met
    assert not missing, f"no test compared results of {', '.join(sorted(missing))} with the reference"
