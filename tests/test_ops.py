"""The custom ops against the reference, on every kernel that this CPU can run."""

import math
from functools import partial
from itertools import product

import cases
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from ao_arm import _ops, reference

SIZES = (1, 2, 3, 5, 7, 8, 12, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130)
# A panel has 384 columns.
BORDERS = (383, 384, 385, 400, 769)
ROWS = 33
MOST_K = 66311  # 255 * 127 times this is just below 2^31

SYMMETRIES = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
GRANULARITIES = pytest.mark.parametrize("per_token", [True, False], ids=["per_token", "per_tensor"])
DTYPES = pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)


def sizes_of_k(n: int) -> list[int]:
    """The k that go with n. Under emulation few, and others for each n: all n together still meet all k."""
    if n in BORDERS:
        return [*cases.thinned(BORDERS), 1, 2, 33, 64, 129]
    shift = SIZES.index(n)
    return [*cases.thinned(SIZES[shift:] + SIZES[:shift]), *(BORDERS if shift % cases.STEP == 0 else ())]


# --- matmul_int8, pack_int8, unpack_int8 ---


@pytest.mark.parametrize("n", SIZES + BORDERS, ids="n={}".format)
def test_matmul_is_exact_and_unpacking_inverts_packing(n: int, kernel: str, kernels_met: set[str]) -> None:
    for k in sizes_of_k(n):
        if not cases.fits(kernel, n, k):
            continue
        weight, activations = cases.int8_values(n, k), cases.int8_values(ROWS, k, least=-128)
        expected = reference.matmul_int8(activations, weight)
        packed = _ops.pack_int8(weight, kernel)
        for m in range(1, ROWS + 1) if n in SIZES else cases.thinned(range(1, ROWS + 1)):
            actual = _ops.matmul_int8(activations[:m], packed)
            assert torch.equal(actual, expected[:m]), f"{m=} {n=} {k=}: {first_difference(actual, expected[:m])}"
        assert torch.equal(_ops.unpack_int8(packed, *weight.shape), weight), (
            f"{n=} {k=}: other values are unpacked than were packed"
        )
        kernels_met.add(kernel)


def first_difference(actual: Tensor, expected: Tensor) -> str:
    place = tuple((actual != expected).nonzero()[0].tolist())
    return f"{actual[place].item()} at {place} should be {expected[place].item()}"


@pytest.mark.parametrize("m", (0, 64, 65, 130), ids="m={}".format)
def test_matmul_takes_rows_in_blocks(m: int, kernel: str) -> None:
    for n, k in cases.thinned([(7, 33), (385, 65), (400, 128), (769, 31)]):
        if not cases.fits(kernel, n, k):
            continue
        weight, activations = cases.int8_values(n, k), cases.int8_values(m, k, least=-128)
        actual = _ops.matmul_int8(activations, _ops.pack_int8(weight, kernel))
        assert torch.equal(actual, reference.matmul_int8(activations, weight)), f"{m=} {n=} {k=}"


# Rows are taken in stretches of at least 256 and those in blocks of 64.
LARGE = [(257, 65, 385), (1, 3072, 768), *([] if cases.EMULATED_CPU else [(64, 768, 3072), (128, 1024, 4096)])]


@pytest.mark.parametrize(("m", "k", "n"), LARGE)
def test_matmul_of_large_layers(m: int, k: int, n: int, kernel: str, threads: int) -> None:
    weight, activations = cases.int8_values(n, k), cases.int8_values(m, k, least=-128)
    packed = _ops.pack_int8(weight, kernel)
    with cases.torch_threads(threads):
        actual = _ops.matmul_int8(activations, packed)
    assert torch.equal(actual, reference.matmul_int8(activations, weight))
    assert torch.equal(_ops.unpack_int8(packed, *weight.shape), weight)


@pytest.mark.parametrize("weight_value", (-127, 127))
@pytest.mark.parametrize("activation", (-128, 127))
def test_extreme_values_do_not_overflow(activation: int, weight_value: int, kernel: str) -> None:
    for n, k in ((1, 1), (3, 2), (17, 33), (65, 130), (385, 64), (2, 3072), (1, MOST_K)):
        if not cases.fits(kernel, n, k):
            continue
        packed = _ops.pack_int8(torch.full((n, k), weight_value, dtype=torch.int8), kernel)
        for m in (1, 2, 5, 33):
            actual = _ops.matmul_int8(torch.full((m, k), activation, dtype=torch.int8), packed)
            expected = activation * weight_value * k
            assert bool((actual == expected).all()), f"{m=} {n=} {k=}: {actual.unique().tolist()} for {expected}"


def test_alternating_extreme_values_do_not_overflow(kernel: str) -> None:
    for n, k in ((5, 12), (33, 65), (64, 128), (385, 130)):
        if not cases.fits(kernel, n, k):
            continue
        signs = 1 - 2 * (torch.arange(n)[:, None] + torch.arange(k)).remainder(2)
        weight = (127 * signs).to(torch.int8)
        activations = torch.where(torch.arange(k).remainder(3) == 0, 127, -128).to(torch.int8).expand(9, k).contiguous()
        actual = _ops.matmul_int8(activations, _ops.pack_int8(weight, kernel))
        assert torch.equal(actual, reference.matmul_int8(activations, weight)), f"{n=} {k=}"


def test_weights_take_turns(kernel: str) -> None:
    """Kernels may keep what they prepared for a shape, but never a weight."""
    n, k = 40, 300
    weights = [cases.int8_values(n, k) for _ in range(3)]
    packed = [_ops.pack_int8(weight, kernel) for weight in weights]
    activations = cases.int8_values(9, k, least=-128)
    for turn in (0, 1, 0, 2, 2, 1, 0):
        for m in (9, 1):
            actual = _ops.matmul_int8(activations[:m], packed[turn])
            assert torch.equal(actual, reference.matmul_int8(activations[:m], weights[turn])), f"weight {turn}, {m=}"


def test_weights_of_minus_128_are_not_packed(kernel: str) -> None:
    values = cases.int8_values(9, 64)
    values[8, 63] = -128
    with pytest.raises(ValueError, match=r"qdata must lie in \[-127, 127\], but holds -128"):
        _ops.call(_ops.pack_int8, values, kernel)


def test_packed_bytes_depend_on_nothing_but_the_values(kernel: str) -> None:
    weight = cases.int8_values(70, 65)
    assert torch.equal(_ops.pack_int8(weight, kernel), _ops.pack_int8(weight.clone(), kernel))
    assert _ops.pack_int8(weight, kernel).numel() == _ops.packed_bytes(70, 65, kernel)


def test_packed_bytes_may_lie_anywhere_in_memory(kernel: str) -> None:
    """As when a checkpoint is mapped into memory."""
    weight, activations = cases.int8_values(40, 301), cases.int8_values(5, 301, least=-128)
    packed = _ops.pack_int8(weight, kernel)
    expected = reference.matmul_int8(activations, weight)
    for offset in (4, 8, 16):
        memory = torch.empty(packed.numel() + offset, dtype=torch.uint8)
        moved = memory[offset:].copy_(packed)
        assert torch.equal(_ops.matmul_int8(activations, moved), expected), f"{offset} bytes past an aligned address"
        assert torch.equal(_ops.unpack_int8(moved, *weight.shape), weight), f"{offset} bytes past an aligned address"


# --- linear_int8_dynamic ---

PRIMES = (2, 3, 5, 7, 11, 13, 17, 31, 61, 127, 131)
ROWS_OF_LINEAR = (0, 1, *cases.thinned((*PRIMES, 64, 65)))
LAYERS = cases.thinned([(1, 1), (7, 33), (40, 130), (385, 65)])
ALLOWED_ULPS = 2


def layer_of(n: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """A weight's int8 values, its scales, and every kind of bias."""
    scale = torch.rand(n) * 0.01 + 1e-4
    biases = {"none": None, "float32": torch.randn(n), "same dtype": torch.randn(n).to(dtype)}
    return cases.int8_values(n, k), scale, biases


@DTYPES
@SYMMETRIES
@GRANULARITIES
def test_linear_equals_the_reference(
    dtype: torch.dtype, symmetric: bool, per_token: bool, kernel: str, kernels_met: set[str]
) -> None:
    for n, k in LAYERS:
        if not cases.fits(kernel, n, k):
            continue
        qdata, scale, biases = layer_of(n, k, dtype)
        packed = _ops.pack_int8(qdata, kernel)
        everything = torch.randn(max(ROWS_OF_LINEAR), k).to(dtype) * 3
        for name, bias in biases.items():
            expected = reference.linear_int8_dynamic(everything, qdata, scale, bias, symmetric, per_token)
            for m in ROWS_OF_LINEAR:
                x = everything[:m]
                actual = _ops.linear_int8_dynamic(x, packed, scale, bias, symmetric, per_token)
                if not per_token:  # then it matters which rows come together
                    expected = reference.linear_int8_dynamic(x, qdata, scale, bias, symmetric, per_token)
                distance = cases.ulps_apart(actual, expected[:m])
                assert distance <= ALLOWED_ULPS, f"{m=} {n=} {k=} bias {name}: {distance} ulps apart"
        kernels_met.add(kernel)


@DTYPES
@SYMMETRIES
@GRANULARITIES
def test_linear_has_the_bits_of_the_reference(
    dtype: torch.dtype, symmetric: bool, per_token: bool, kernel: str, threads: int
) -> None:
    """No rounding differs: the reference states one order of operations and every kernel follows it."""
    n, k = 385, 130
    qdata, scale, biases = layer_of(n, k, dtype)
    packed = _ops.pack_int8(qdata, kernel)
    # Magnitudes from 1e-6 to 1e4 among the tokens.
    x = (torch.randn(67, k) * torch.logspace(-6, 4, 67)[:, None]).to(dtype)
    for (name, bias), m in product(biases.items(), (1, 2, 67)):
        with cases.torch_threads(threads):
            actual = _ops.linear_int8_dynamic(x[-m:], packed, scale, bias, symmetric, per_token)
        expected = reference.linear_int8_dynamic(x[-m:], qdata, scale, bias, symmetric, per_token)
        assert cases.same_bits(actual, expected), f"{m=} bias {name}"


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


# --- quantize_activations ---


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


def float_matrices(dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Matrices of any bit patterns: subnormals, huge values, zeros, now and then NaN or infinity."""
    integer, top = (torch.int32, 31) if dtype == torch.float32 else (torch.int16, 15)
    information = torch.finfo(dtype)
    extremes = [information.max, information.min, information.smallest_normal, information.eps]
    common = [0.0, -0.0, 1.0, -1.0, 127.5, *extremes]
    least = [1, 1 - (1 << top)]  # the subnormals of both signs that are nearest to 0
    special = [*cases.bits(torch.tensor(common, dtype=dtype)).tolist(), *least]
    pattern = st.one_of(st.sampled_from(special), st.integers(-(1 << top), (1 << top) - 1))

    def matrix(shape: tuple[int, int]) -> st.SearchStrategy[Tensor]:
        m, k = shape
        return st.lists(pattern, min_size=m * k, max_size=m * k).map(
            lambda patterns: torch.tensor(patterns, dtype=integer).view(dtype).reshape(m, k)
        )

    return st.tuples(st.integers(1, 3), st.integers(1, 40)).flatmap(matrix)


@DTYPES
@SYMMETRIES
@given(data=st.data())
def test_any_activations_are_quantized_as_by_the_reference(
    dtype: torch.dtype, symmetric: bool, data: st.DataObject
) -> None:
    assert_quantized_as_the_reference(data.draw(float_matrices(dtype)), symmetric)


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


# --- arguments ---


def packed_and(**others: object) -> dict[str, object]:
    qdata, scale, _ = layer_of(7, 33)
    arguments = {"input": torch.randn(5, 33), "packed_weight": _ops.pack_int8(qdata, ""), "weight_scale": scale}
    return {**arguments, "bias": None, "symmetric": True, "per_token": True, **others}


WRONG_LINEAR = {
    "integer input": (dict(input=torch.ones(5, 33, dtype=torch.int32)), "input must be float32"),
    "double input": (dict(input=torch.ones(5, 33, dtype=torch.float64)), "input must be float32"),
    "input of another k": (dict(input=torch.ones(5, 32)), r"\(5, 32\).* must be 33"),
    "input of no dimension": (dict(input=torch.tensor(1.0)), r"shape \(\) .* must be 33"),
    "integer bias": (dict(bias=torch.ones(7, dtype=torch.int64)), "bias must be float32"),
    "bias of another length": (dict(bias=torch.ones(8)), r"bias of shape \(8\) must have shape \(7\)"),
    "bias of two dimensions": (dict(bias=torch.ones(1, 7)), r"bias of shape \(1, 7\) must have shape \(7\)"),
    "bias of no dimension": (dict(bias=torch.tensor(1.0)), r"bias of shape \(\) must have shape \(7\)"),
    "scales of another length": (dict(weight_scale=torch.ones(8)), "weight_scale must have one element for each"),
    "scales of another dtype": (dict(weight_scale=torch.ones(7).double()), "weight_scale must be float32"),
    "scales with gaps": (dict(weight_scale=torch.ones(14)[::2]), "weight_scale must be contiguous"),
    "packed weight of another dtype": (dict(packed_weight=torch.ones(512)), "packed_weight must be uint8"),
    "input on another device": (dict(input=torch.ones(5, 33, device="meta")), "input is on meta"),
    "bias on another device": (dict(bias=torch.ones(7, device="meta")), "bias is on meta"),
    "scales on another device": (dict(weight_scale=torch.ones(7, device="meta")), "weight_scale is on meta"),
}


@pytest.mark.parametrize("wrong", WRONG_LINEAR)
def test_linear_refuses_wrong_arguments(wrong: str) -> None:
    given_instead, message = WRONG_LINEAR[wrong]
    with pytest.raises(ValueError, match=message):
        _ops.call(_ops.linear_int8_dynamic, *packed_and(**given_instead).values())


def test_the_other_ops_refuse_wrong_arguments() -> None:
    weight = cases.int8_values(7, 33)
    packed = _ops.pack_int8(weight, "")
    for message, op, arguments in (
        ("must have shape", _ops.matmul_int8, (cases.int8_values(5, 32), packed)),
        ("must have shape", _ops.matmul_int8, (cases.int8_values(33), packed)),
        ("qdata must be int8", _ops.matmul_int8, (torch.ones(5, 33), packed)),
        ("qdata must be contiguous", _ops.matmul_int8, (cases.int8_values(33, 5).t(), packed)),
        ("qdata must be int8", _ops.pack_int8, (weight.float(), "")),
        ("must be a matrix", _ops.pack_int8, (weight[0], "")),
        ("unknown kernel 'none/such'", _ops.pack_int8, (weight, "none/such")),
        ("input must be float32", _ops.quantize_activations, (weight, True)),
        ("contiguous matrix", _ops.quantize_activations, (torch.ones(3), True)),
        ("uint8", _ops.unpack_int8, (weight, 33, 40)),
        ("no packed weight", _ops.unpack_int8, (torch.zeros(600, dtype=torch.uint8), 33, 40)),
    ):
        with pytest.raises(ValueError, match=message):
            _ops.call(op, *arguments)


# --- as torch sees the ops ---


def op_calls() -> dict[str, tuple[object, tuple[object, ...]]]:
    qdata, scale, biases = layer_of(33, 40, torch.bfloat16)
    packed, x = _ops.pack_int8(qdata, ""), torch.randn(5, 40)
    linear = _ops.linear_int8_dynamic
    return {
        "linear_int8_dynamic": (linear, (x, packed, scale, biases["float32"], True, True)),
        "linear_int8_dynamic, 3-D bfloat16": (linear, (x.bfloat16()[None], packed, scale, None, False, False)),
        "linear_int8_dynamic, 1-D float16": (linear, (x[0].half(), packed, scale, None, False, True)),
        "linear_int8_dynamic, no rows": (linear, (x[:0], packed, scale, biases["same dtype"], True, False)),
        "linear_int8_dynamic, transposed": (linear, (torch.randn(40, 5).t(), packed, scale, None, True, True)),
        "matmul_int8": (_ops.matmul_int8, (cases.int8_values(5, 40, least=-128), packed)),
        "quantize_activations": (_ops.quantize_activations, (x, True)),
        "quantize_activations, bfloat16": (_ops.quantize_activations, (x.bfloat16(), False)),
        "pack_int8": (_ops.pack_int8, (qdata, "")),
        "unpack_int8": (_ops.unpack_int8, (packed, 33, 40)),
    }


@pytest.mark.one_cpu
@pytest.mark.parametrize("call", op_calls())
def test_opcheck(call: str) -> None:
    op, arguments = op_calls()[call]
    torch.library.opcheck(op, arguments)


def test_pack_int8_has_its_exact_size_when_traced(kernel: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    weight = cases.int8_values(385, 65)
    with FakeTensorMode() as mode:
        traced = _ops.pack_int8(mode.from_tensor(weight), kernel)
    assert traced.shape == _ops.pack_int8(weight, kernel).shape


# --- the record ---


def test_every_kernel_of_this_cpu_met_a_case(all_were_asked_for: None, kernels_met: set[str]) -> None:
    missing = set(cases.KERNELS) - kernels_met
    assert not missing, f"no test compared results of {', '.join(sorted(missing))} with the reference"


def test_ulps_apart() -> None:
    one = torch.tensor([1.0, -1.0, 0.0, math.nan])
    assert cases.ulps_apart(one, one.clone()) == 0
    assert cases.ulps_apart(one, one.nextafter(torch.tensor(9.0))) == 1
    assert cases.ulps_apart(torch.tensor([0.0]), torch.tensor([-0.0])) == 0
    assert cases.ulps_apart(torch.tensor([1e-45]), torch.tensor([-1e-45])) == 2
    assert cases.ulps_apart(one, torch.ones(4)) > 1 << 30
    assert cases.ulps_apart(torch.tensor([1.0]).bfloat16(), torch.tensor([1.0078125]).bfloat16()) == 1
    assert not cases.same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert cases.same_bits(one, one.clone())
