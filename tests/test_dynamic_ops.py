"""The op of dynamic int8 layers against the reference, on every kernel that this CPU can run."""

import math
from functools import partial
from itertools import product

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from int8_layers import DTYPES, GRANULARITIES, LARGE, MOST_K, SYMMETRIES, float_matrices, layer_of

from ao_arm import _ops, reference

ROWS = (0, 1, 2, 3, 5, 7, 11, 13, 17, 31, 61, 64, 65, 127, 131)
LAYERS = cases.thinned([(1, 1), (7, 33), (40, 130), (385, 65)])


@pytest.mark.slow
@DTYPES
@SYMMETRIES
@GRANULARITIES
def test_linear_has_the_bits_of_the_reference(
    dtype: torch.dtype, symmetric: bool, per_token: bool, kernel: str, kernels_met: set[str]
) -> None:
    """No rounding differs: the reference states one order of operations and every kernel follows it."""
    for n, k in LAYERS:
        if not cases.fits(kernel, n, k):
            continue
        qdata, scale, biases = layer_of(n, k, dtype)
        packed = _ops.pack_int8(qdata, kernel)
        # Magnitudes from 1e-6 to 1e4 among the tokens.
        x = (torch.randn(max(ROWS), k) * torch.logspace(-6, 4, max(ROWS))[:, None]).to(dtype)
        for turn, ((name, bias), m) in enumerate(cases.thinned([*product(biases.items(), ROWS)])):
            rows = x[len(x) - m :]
            with cases.torch_threads(1 + turn % 2):  # of an odd number of rows, so that each has one thread and two
                actual = _ops.linear_int8_dynamic(rows, packed, scale, bias, symmetric, per_token)
            expected = reference.linear_int8_dynamic(rows, qdata, scale, bias, symmetric, per_token)
            assert cases.same_bits(actual, expected), f"{m=} {n=} {k=} bias {name}"
        kernels_met.add(kernel)


@pytest.mark.slow
@pytest.mark.x86
@pytest.mark.parametrize(("m", "k", "n"), LARGE)
@SYMMETRIES
def test_linear_of_large_layers(m: int, k: int, n: int, symmetric: bool, kernel: str, threads: int) -> None:
    qdata, scale, biases = layer_of(n, k)
    x, packed = torch.randn(m, k), _ops.pack_int8(qdata, kernel)
    for per_token in (True, False):
        with cases.torch_threads(threads):
            actual = _ops.linear_int8_dynamic(x, packed, scale, biases["float32"], symmetric, per_token)
        expected = reference.linear_int8_dynamic(x, qdata, scale, biases["float32"], symmetric, per_token)
        assert cases.same_bits(actual, expected), f"{per_token=}"


@pytest.mark.parametrize("shape", [(33,), (1, 33), (5, 33), (2, 3, 33), (2, 1, 3, 33), (0, 33), (2, 0, 3, 33)], ids=str)
@SYMMETRIES
@GRANULARITIES
def test_inputs_of_one_to_four_dimensions(shape: tuple[int, ...], symmetric: bool, per_token: bool) -> None:
    qdata, scale, biases = layer_of(7, 33)
    packed = _ops.pack_int8(qdata, "")
    x, bias = torch.randn(shape), biases["float32"]
    actual = _ops.linear_int8_dynamic(x, packed, scale, bias, symmetric, per_token)
    assert actual.shape == (*shape[:-1], 7)
    if x.numel() == 0:
        return
    rows = _ops.linear_int8_dynamic(x.reshape(-1, 33), packed, scale, bias, symmetric, per_token)
    assert cases.same_bits(actual, rows.reshape(actual.shape))
    assert cases.same_bits(actual, reference.linear_int8_dynamic(x, qdata, scale, bias, symmetric, per_token))


ARRANGEMENTS = {
    "transposed": lambda values: values(66, 9).t(),
    "strided along k": lambda values: values(9, 132)[:, ::2],
    "strided along m": lambda values: values(27, 66)[::3],
    "expanded along k": lambda values: values(9, 1).expand(9, 66),
    "expanded along m": lambda values: values(66).expand(9, 66),
    "part of a matrix": lambda values: values(12, 80)[2:11, 5:71],
    "not aligned": lambda values: values(9 * 66 + 1)[1:].view(9, 66),
    "permuted, 3-D": lambda values: values(3, 66, 5).permute(2, 0, 1),
    "channels last, 4-D": lambda values: values(2, 3, 4, 66).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@DTYPES
def test_inputs_arranged_in_memory_in_any_way(arrangement: str, dtype: torch.dtype) -> None:
    qdata, scale, biases = layer_of(40, 66)
    packed = _ops.pack_int8(qdata, "")
    x = ARRANGEMENTS[arrangement](partial(torch.randn, dtype=dtype))
    for symmetric, per_token in product((True, False), repeat=2):
        actual = _ops.linear_int8_dynamic(x, packed, scale, biases["float32"], symmetric, per_token)
        expected = reference.linear_int8_dynamic(x, qdata, scale, biases["float32"], symmetric, per_token)
        assert actual.is_contiguous()
        assert cases.same_bits(actual, expected), f"{symmetric=} {per_token=}"


@pytest.mark.x86
@pytest.mark.parametrize("bias_dtype", cases.FLOATS, ids=cases.name_of)
@DTYPES
def test_bias_of_any_dtype_and_arrangement(bias_dtype: torch.dtype, dtype: torch.dtype) -> None:
    qdata, scale, _ = layer_of(40, 33)
    packed, x = _ops.pack_int8(qdata, ""), torch.randn(5, 33, dtype=dtype)
    values = torch.randn(40, dtype=bias_dtype)
    for name, bias in {
        "contiguous": values,
        "strided": values.repeat_interleave(3)[::3],
        "expanded": values[:1].expand(40),
        "a column": torch.stack([values, values], dim=1)[:, 1],
        "not aligned": torch.cat([values[:1], values])[1:],
    }.items():
        actual = _ops.linear_int8_dynamic(x, packed, scale, bias, True, True)
        expected = reference.linear_int8_dynamic(x, qdata, scale, bias, True, True)
        assert cases.same_bits(actual, expected), f"bias {name}"


@pytest.mark.x86
@SYMMETRIES
def test_the_longest_rows_at_the_extremes(symmetric: bool, kernel: str) -> None:
    """Asymmetric activations of one sign are up to 255 steps from their zero point: the sum just fits in int32."""
    for sign, weight_value in product((1.0, -1.0), (127, -127)):
        if not cases.fits(kernel, 2, MOST_K):
            continue
        qdata = torch.full((2, MOST_K), weight_value, dtype=torch.int8)
        scale, x = torch.tensor([1e-3, 2e-3]), torch.full((3, MOST_K), 5.0 * sign)
        actual = _ops.linear_int8_dynamic(x, _ops.pack_int8(qdata, kernel), scale, None, symmetric, True)
        expected = reference.linear_int8_dynamic(x, qdata, scale, None, symmetric, True)
        assert cases.same_bits(actual, expected), f"input {5 * sign}, weight {weight_value}"
        exact = 5.0 * sign * weight_value * MOST_K * scale.double()
        torch.testing.assert_close(actual.double(), exact.expand(3, 2), rtol=0.006, atol=0)


@DTYPES
@given(data=st.data(), symmetric=st.booleans(), per_token=st.booleans(), n=st.integers(1, 20))
def test_linear_of_any_values_equals_the_reference(
    dtype: torch.dtype, data: st.DataObject, symmetric: bool, per_token: bool, n: int
) -> None:
    x = data.draw(float_matrices(dtype))
    qdata, scale, biases = layer_of(n, x.shape[1], dtype)
    bias = data.draw(st.sampled_from([*biases.values()]))
    actual = _ops.linear_int8_dynamic(x, _ops.pack_int8(qdata, ""), scale, bias, symmetric, per_token)
    expected = reference.linear_int8_dynamic(x, qdata, scale, bias, symmetric, per_token)
    assert cases.same_bits(actual, expected), f"{actual} should be {expected}"


# --- NaN and infinity ---


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf), ids=str)
@DTYPES
@SYMMETRIES
@GRANULARITIES
def test_a_token_that_is_not_finite_gives_nan_and_leaves_the_others_alone(
    value: float, dtype: torch.dtype, symmetric: bool, per_token: bool, kernel: str
) -> None:
    qdata, scale, biases = layer_of(40, 65)
    packed = _ops.pack_int8(qdata, kernel)
    finite = torch.randn(9, 65).to(dtype)
    for m, row, column in ((1, 0, 0), (9, 0, 64), (9, 4, 33), (9, 8, 1)):
        x = finite[:m].clone()
        x[row, column] = value
        others = [i for i in range(m) if i != row]
        actual = _ops.linear_int8_dynamic(x, packed, scale, biases["float32"], symmetric, per_token)
        assert bool(actual[row].isnan().all()), f"{m=}: the token {row} with {value} at {column}: {actual[row]}"
        without = _ops.linear_int8_dynamic(x[others], packed, scale, biases["float32"], symmetric, per_token)
        assert cases.same_bits(actual[others], without), f"{m=}: {value} in token {row} changed others"
        expected = reference.linear_int8_dynamic(x, qdata, scale, biases["float32"], symmetric, per_token)
        assert cases.same_bits(actual, expected), f"{m=}: {value} in token {row}"


# --- the record ---


def test_every_kernel_of_this_cpu_met_a_case(all_were_asked_for: None, kernels_met: set[str]) -> None:
    missing = set(cases.TRIED_KERNELS) - kernels_met
    assert not missing, f"no test compared results of {', '.join(sorted(missing))} with the reference"
