"""The ops of 4-bit weights in groups against the reference, on every kernel that this CPU can run."""

import json
import math
from itertools import product

import cases
import pytest
import torch
from cases import assert_near_the_reference
from torch import Tensor

from ao_arm import _ops

DTYPES = pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
SCALES = pytest.mark.parametrize("scale_dtype", (torch.bfloat16, torch.float32), ids=cases.name_of)
ZEROS = pytest.mark.parametrize("zeros", (False, True), ids=("symmetric", "zero_points"))

#: (n, k, group_size); with k = group_size whole rows are groups.
LAYERS = (
    (1, 1, 1),
    (7, 33, 33),
    (5, 32, 32),
    (9, 64, 32),
    (8, 130, 130),
    (33, 96, 32),
    (16, 128, 64),
    (23, 256, 128),
    (24, 512, 256),
    (3, 300, 300),
    (17, 1024, 1024),
    (259, 160, 32),
    (10, 2304, 256),
    (6, 2080, 32),
    (4, 192, 96),
)
ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 31, 33, 65)
EVERYWHERE = [(n, k, group) for n, k, group in LAYERS if group in (32, k) and n in (7, 33)]


@pytest.fixture(params=cases.INT4_KERNELS)
def kernel4(request: pytest.FixtureRequest) -> str:
    """Each kernel for 4-bit weights that this CPU can run."""
    return request.param


Plain = tuple[Tensor, Tensor, Tensor | None]


def plain_of(n: int, k: int, group: int, scale_dtype: torch.dtype, zeros: bool) -> Plain:
    """qdata, scale and zero_point of a random weight."""
    qdata = torch.randint(-8, 8, (n, k), dtype=torch.int8)
    # Negative scales are allowed: that of a group may map its largest value to -8.
    sign = torch.randint(0, 2, (n, k // group)) * 2 - 1
    scale = ((torch.rand(n, k // group) * 0.02 + 1e-3) * sign).to(scale_dtype)
    return qdata, scale, torch.randint(-8, 8, scale.shape, dtype=torch.int8) if zeros else None


def linear(x: Tensor, packed: Tensor, n: int, bias: Tensor | None = None, **others: object) -> Tensor:
    arguments = {"act_scale": None, "act_zero_point": None, "output_min": None, "output_max": None, **others}
    return _ops.linear_qta8a_qga4w(x, packed, n, bias, *arguments.values())


# --- linear_qta8a_qga4w ---


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


# --- pack_int4, unpack_int4 ---


@SCALES
@ZEROS
def test_unpacking_inverts_packing(scale_dtype: torch.dtype, zeros: bool, kernel4: str) -> None:
    floats = scale_dtype == torch.float32
    for n, k, group in LAYERS:
        if not cases.fits(kernel4, n, k, group, floats, zeros):
            continue
        qdata, scale, zero_point = plain_of(n, k, group, scale_dtype, zeros)
        scale.view(-1)[0] = -torch.finfo(scale_dtype).smallest_normal / 2
        packed = _ops.pack_int4(qdata, scale, zero_point, kernel4)
        assert packed.numel() == _ops.packed_bytes_int4(n, k, group, floats, zeros, kernel4)
        values = _ops.unpack_int4(packed, n, k, group, floats, zeros)
        assert torch.equal(values[0], qdata)
        assert cases.same_bits(values[1], scale)
        assert torch.equal(values[2], torch.empty(0, 0, dtype=torch.int8) if zero_point is None else zero_point)
        assert torch.equal(packed, _ops.pack_int4(qdata, scale, zero_point, kernel4))


OWN_SIZES = {32: 1.14, 64: 1.075, 128: 1.045}


@pytest.mark.parametrize("group", OWN_SIZES)
def test_size_of_packed_bytes(group: int, kernel4: str) -> None:
    """Scales, column sums and header take a few percent of the nibbles."""
    if kernel4.startswith("kleidiai/"):
        pytest.skip("KleidiAI packs column sums and a bias of its own as well")
    assert _ops.packed_bytes_int4(768, 768, group, False, False, kernel4) <= OWN_SIZES[group] * 768 * 768 / 2


def test_packed_bytes_may_lie_anywhere_in_memory(kernel4: str) -> None:
    plain = plain_of(40, 320, 32, torch.bfloat16, False)
    packed, x = _ops.pack_int4(*plain, kernel4), torch.randn(5, 320)
    expected = linear(x, packed, 40)
    for offset in (4, 8, 16):
        memory = torch.empty(packed.numel() + offset, dtype=torch.uint8)
        moved = memory[offset:].copy_(packed)
        assert torch.equal(linear(x, moved, 40), expected)
        assert torch.equal(_ops.unpack_int4(moved, 40, 320, 32, False, False)[0], plain[0])


def test_damaged_and_foreign_bytes_are_refused(kernel4: str) -> None:
    plain = plain_of(9, 64, 32, torch.bfloat16, False)
    packed, x = _ops.pack_int4(*plain, kernel4), torch.randn(2, 64)
    for place in range(0, 256, 7):
        damaged = packed.clone()
        damaged[place] ^= 0x10
        with pytest.raises(ValueError, match="packed weight"):
            _ops.call(linear, x, damaged, 9)
    for wrong in (packed[:-1].clone(), packed[:100].clone(), torch.zeros(600, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="packed weight"):
            _ops.call(linear, x, wrong, 9)
    other = _ops.pack_int8(cases.int8_values(9, 64), "")
    with pytest.raises(ValueError, match="takes 4-bit weights in groups"):
        _ops.call(linear, x, other, 9)
    with pytest.raises(ValueError, match="takes int8 weights"):
        _ops.call(_ops.unpack_int8, packed, 8, 64)


# --- the kernel table ---


def test_selection_and_info(kernel4: str) -> None:
    qdata, scale, zero_point = plain_of(33, 96, 32, torch.bfloat16, False)
    packed = _ops.pack_int4(qdata, scale, zero_point, kernel4)
    info = json.loads(_ops.packed_weight_info(packed))
    assert (info["n"], info["k"], info["kernel"], info["group_size"]) == (33, 96, kernel4, 32)
    assert (info["scale_dtype"], info["zero_points"]) == ("bfloat16", False)
    assert _ops.select_kernel_int4(33, 96, 32, False, False, kernel4) == kernel4
    table = json.loads(_ops.kernel_table_int4(33, 96, 32, False, False))
    cheapest = min((row for row in table if not row["reasons"]), key=lambda row: row["cost"])
    assert _ops.select_kernel_int4(33, 96, 32, False, False, "") == cheapest["id"]


def test_kernels_that_do_not_fit_say_why() -> None:
    for message, arguments in (
        (r"k = 100 is no multiple of the group size 32; group sizes that fit: 100 \(whole rows\)", (8, 100, 32)),
        (r"k = 96 is no multiple of the group size 64; group sizes that fit: 96 \(whole rows\); 32", (8, 96, 64)),
        (r"group size 48 is neither a multiple of 32 nor k = 96", (8, 96, 48)),
        ("n and k must be at least 1", (0, 96, 32)),
        ("may not fit in int32", (8, 1 << 20, 32)),
    ):
        with pytest.raises(ValueError, match=message):
            _ops.call(_ops.select_kernel_int4, *arguments, False, False, "")
    with pytest.raises(ValueError, match="unknown kernel 'none/such'"):
        _ops.call(_ops.select_kernel_int4, 8, 96, 32, False, False, "none/such")


# --- arguments ---

WRONG_LINEAR = {
    "double input": (dict(input=torch.ones(5, 64, dtype=torch.float64)), "must be float32"),
    "input of another k": (dict(input=torch.ones(5, 32)), r"\(5, 32\).* must be 64"),
    "another n": (dict(n=8), r"n = 8 is not that of the packed weight, which has shape \(7, 64\)"),
    "int8 without scales": (dict(input=torch.ones(5, 64, dtype=torch.int8)), "int8 input needs act_scale"),
    "zero points without scales": (dict(act_zero_point=torch.zeros(5, dtype=torch.int32)), "without act_scale"),
    "scales of another length": (dict(act_scale=torch.ones(4)), "one element for each of the 5 tokens, or one for all"),
    "scales of another dtype": (dict(act_scale=torch.ones(5).double()), "act_scale must be float32"),
    "zero points out of range": (
        dict(act_scale=torch.ones(5), act_zero_point=torch.full((5,), 128, dtype=torch.int32)),
        r"must lie in \[-128, 127\], but holds 128",
    ),
    "bias of another length": (dict(bias=torch.ones(8)), r"bias of shape \(8\) must have shape \(7\)"),
    "bounds that cross": (dict(output_min=1.0, output_max=0.0), "output_min must be at most output_max"),
}


@pytest.mark.x86
@pytest.mark.parametrize("wrong", WRONG_LINEAR)
def test_linear_refuses_wrong_arguments(wrong: str) -> None:
    given_instead, message = WRONG_LINEAR[wrong]
    packed = _ops.pack_int4(*plain_of(7, 64, 32, torch.bfloat16, False), "")
    arguments = {"input": torch.randn(5, 64), "packed_weight": packed, "n": 7, "bias": None, "act_scale": None}
    arguments |= {"act_zero_point": None, "output_min": None, "output_max": None, **given_instead}
    with pytest.raises(ValueError, match=message):
        _ops.call(_ops.linear_qta8a_qga4w, *arguments.values())


@pytest.mark.x86
def test_packing_refuses_wrong_arguments() -> None:
    qdata, scale, zero_point = plain_of(7, 64, 32, torch.bfloat16, True)
    for message, arguments in (
        ("qdata must be int8", (qdata.float(), scale, None)),
        ("scale must be bfloat16 or float32", (qdata, scale.half(), None)),
        (r"scale \(n, k / group_size\)", (qdata, scale[:6].contiguous(), None)),
        (r"is no multiple of 3 groups", (qdata, torch.ones(7, 3), None)),
        ("must have the shape of scale", (qdata, scale, zero_point[:, :1].contiguous())),
        (r"qdata must lie in \[-8, 7\], but holds 8", (torch.full_like(qdata, 8), scale, None)),
        (r"zero_point must lie in \[-8, 7\], but holds -9", (qdata, scale, torch.full_like(zero_point, -9))),
    ):
        with pytest.raises(ValueError, match=message):
            _ops.call(_ops.pack_int4, *arguments, "")
    packed = _ops.pack_int4(qdata, scale, zero_point, "")
    with pytest.raises(ValueError, match=r"is \(7, 64\) in groups of 32, bfloat16 scales, with zero points"):
        _ops.call(_ops.unpack_int4, packed, 7, 64, 64, False, True)


# --- as torch sees the ops ---


def op_calls() -> dict[str, tuple[object, tuple[object, ...]]]:
    plain, affine = plain_of(33, 64, 32, torch.bfloat16, False), plain_of(5, 33, 33, torch.float32, True)
    packed, affine_packed = _ops.pack_int4(*plain, ""), _ops.pack_int4(*affine, "")
    op, x, tokens = _ops.linear_qta8a_qga4w, torch.randn(5, 64), (torch.rand(5), torch.zeros(5, dtype=torch.int32))
    return {
        "linear": (op, (x, packed, 33, torch.randn(33), None, None, None, None)),
        "linear, 3-D bfloat16, bounds": (op, (x.bfloat16()[None], packed, 33, None, None, None, 0.0, 6.0)),
        "linear, int8": (op, (cases.int8_values(5, 64), packed, 33, None, *tokens, None, None)),
        "linear, zero points, no rows": (op, (torch.randn(0, 33), affine_packed, 5, None, None, None, None, None)),
        "pack_int4": (_ops.pack_int4, (*plain, "")),
        "pack_int4, zero points": (_ops.pack_int4, (*affine, "")),
        "unpack_int4": (_ops.unpack_int4, (packed, 33, 64, 32, False, False)),
        "unpack_int4, zero points": (_ops.unpack_int4, (affine_packed, 5, 33, 33, True, True)),
    }


@pytest.mark.x86
@pytest.mark.parametrize("call", op_calls())
def test_opcheck(call: str) -> None:
    op, arguments = op_calls()[call]
    torch.library.opcheck(op, arguments)


# --- the record ---


def test_every_int4_kernel_of_this_cpu_met_a_case(all_were_asked_for: None, kernels_met: set[str]) -> None:
    missing = set(cases.INT4_KERNELS) - kernels_met
    assert not missing, f"no test compared results of {', '.join(sorted(missing))} with the reference"
