"""Activations that a caller quantized, with a scale for each token: `linear_int8_quantized` on every kernel, and in
which forms it and `linear_qta8a_qga4w` take scales and zero points."""

import math
from functools import partial
from itertools import product
from typing import Any

import cases
import pytest
import torch
from int8_layers import DTYPES, LARGE, MOST_K, SYMMETRIES, layer_of
from torch import Tensor

from ao_arm import _ops, reference

ROWS = (0, 1, 2, 3, 7, 13, 31, 64, 65, 131)
LAYERS = cases.thinned([(1, 1), (7, 33), (40, 130), (385, 65)])


def tokens_of(m: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points, as a caller may choose them."""
    return torch.rand(m) * 0.05 + 1e-3, torch.randint(-128, 128, (m,), dtype=torch.int32)


@pytest.mark.slow
@DTYPES
@SYMMETRIES
def test_it_is_what_follows_the_quantization_of_activations(
    dtype: torch.dtype, symmetric: bool, kernel: str, threads: int, kernels_met: set[str]
) -> None:
    """The two ops one after the other give the bits of `linear_int8_dynamic`, and those of the reference."""
    for n, k in LAYERS:
        if not cases.fits(kernel, n, k):
            continue
        qdata, scale, biases = layer_of(n, k, dtype)
        packed = _ops.pack_int8(qdata, kernel)
        x = (torch.randn(max(ROWS), k) * torch.logspace(-6, 4, max(ROWS))[:, None]).to(dtype)
        for (name, bias), m in cases.thinned([*product(biases.items(), ROWS)]):
            rows = x[len(x) - m :]
            tokens = _ops.quantize_activations(rows, symmetric)
            with cases.torch_threads(threads):
                actual = _ops.linear_int8_quantized(*tokens, packed, scale, bias, dtype)
            at_once = _ops.linear_int8_dynamic(rows, packed, scale, bias, symmetric, True)
            assert cases.same_bits(actual, at_once), f"{m=} {n=} {k=} bias {name}"
            expected = reference.linear_int8_quantized(*tokens, qdata, scale, bias, dtype)
            assert cases.same_bits(actual, expected), f"{m=} {n=} {k=} bias {name}"
        kernels_met.add(kernel)


@pytest.mark.slow
@pytest.mark.x86
@pytest.mark.parametrize(("m", "k", "n"), LARGE)
def test_large_layers(m: int, k: int, n: int, kernel: str, threads: int) -> None:
    qdata, scale, biases = layer_of(n, k)
    packed, x = _ops.pack_int8(qdata, kernel), cases.int8_values(m, k, least=-128)
    for act_scale, zero_point in (tokens_of(m), (tokens_of(m)[0], None), tokens_of(1)):
        with cases.torch_threads(threads):
            actual = _ops.linear_int8_quantized(
                x, act_scale, zero_point, packed, scale, biases["float32"], torch.float32
            )
        expected = reference.linear_int8_quantized(
            x, act_scale, zero_point, qdata, scale, biases["float32"], torch.float32
        )
        assert cases.same_bits(actual, expected)


@pytest.mark.x86
def test_the_longest_rows_at_the_extremes(kernel: str) -> None:
    """255 steps from the zero point: the sum just fits in int32."""
    for value, weight_value in product((-128, 127), (127, -127)):
        if not cases.fits(kernel, 2, MOST_K):
            continue
        qdata = torch.full((2, MOST_K), weight_value, dtype=torch.int8)
        x, zero_point = torch.full((3, MOST_K), value, dtype=torch.int8), torch.tensor(-1 - value, dtype=torch.int8)
        arguments = (torch.tensor([1.0, 2e-3]), None, torch.float32)
        packed = _ops.pack_int8(qdata, kernel)
        actual = _ops.linear_int8_quantized(x, torch.tensor(0.5), zero_point, packed, *arguments)
        assert cases.same_bits(
            actual, reference.linear_int8_quantized(x, torch.tensor(0.5), zero_point, qdata, *arguments)
        )
        assert actual[0, 0] == 0.5 * (value - (-1 - value)) * weight_value * MOST_K


ARRANGEMENTS = {
    "transposed": lambda values: values(66, 6).t(),
    "strided along k": lambda values: values(6, 132)[:, ::2],
    "expanded along m": lambda values: values(66).expand(6, 66),
    "not aligned": lambda values: values(6 * 66 + 1)[1:].view(6, 66),
    "permuted, 3-D": lambda values: values(3, 66, 2).permute(2, 0, 1),
    "4-D": lambda values: values(2, 3, 1, 66),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_activations_arranged_in_any_way(arrangement: str) -> None:
    qdata, scale, biases = layer_of(40, 66)
    packed, x = _ops.pack_int8(qdata, ""), ARRANGEMENTS[arrangement](partial(cases.int8_values, least=-128))
    for bias, dtype in product((None, biases["float32"], torch.randn(80).half()[::2]), cases.FLOATS):
        actual = _ops.linear_int8_quantized(x, *tokens_of(6), packed, scale, bias, dtype)
        assert actual.shape == (*x.shape[:-1], 40)
        assert actual.is_contiguous()
    tokens = tokens_of(6)
    actual = _ops.linear_int8_quantized(x, *tokens, packed, scale, biases["float32"], torch.float32)
    expected = reference.linear_int8_quantized(x, *tokens, qdata, scale, biases["float32"], torch.float32)
    assert cases.same_bits(actual, expected)


# --- scales and zero points, of int8 and of 4-bit weights alike ---

OPS = pytest.mark.parametrize("bits", (8, 4))


def by_op(bits: int, x: Tensor, **given: Any) -> Tensor:
    """A layer of (7, 64) with given scales, whose weight is the same at each call."""
    act_scale, act_zero_point = given["act_scale"], given.get("act_zero_point")
    generator = torch.Generator().manual_seed(5)
    qdata = torch.randint(-8, 8, (7, 64), dtype=torch.int8, generator=generator)
    if bits == 4:
        packed = _ops.pack_int4(qdata, torch.ones(7, 2), None, "")
        return _ops.call(_ops.linear_qta8a_qga4w, x, packed, 7, None, act_scale, act_zero_point, None, None)
    packed, scale = _ops.pack_int8(qdata, ""), torch.ones(7)
    return _ops.call(_ops.linear_int8_quantized, x, act_scale, act_zero_point, packed, scale, None, torch.float32)


@OPS
@pytest.mark.parametrize("m", (1, 2, 6))
def test_tokens_in_every_form(bits: int, m: int) -> None:
    x, (scale, zero_point) = cases.int8_values(m, 64, least=-128), tokens_of(m)
    expected = by_op(bits, x, act_scale=scale, act_zero_point=zero_point)
    for act_scale in (scale[:, None], scale[None], scale.view(m, 1, 1), torch.stack([scale, scale], dim=1)[:, 0]):
        assert cases.same_bits(by_op(bits, x, act_scale=act_scale, act_zero_point=zero_point), expected)
    for act_zero_point in (zero_point.to(torch.int8), zero_point[:, None], zero_point.repeat_interleave(2)[::2]):
        assert cases.same_bits(by_op(bits, x, act_scale=scale, act_zero_point=act_zero_point), expected)
    without = by_op(bits, x, act_scale=scale)
    for zeros in (torch.zeros(m, dtype=torch.int32), torch.zeros((), dtype=torch.int8)):
        assert cases.same_bits(by_op(bits, x, act_scale=scale, act_zero_point=zeros), without)


@OPS
@pytest.mark.parametrize("m", (0, 1, 5))
def test_one_scale_for_all_tokens(bits: int, m: int) -> None:
    x, (scale, zero_point) = cases.int8_values(m, 64, least=-128), tokens_of(1)
    expected = by_op(bits, x, act_scale=scale.expand(m), act_zero_point=zero_point.expand(m))
    assert expected.shape == (m, 7)
    for one in ((scale, zero_point), (scale[0], zero_point[0].to(torch.int8)), (scale[None], zero_point.expand(m))):
        assert cases.same_bits(by_op(bits, x, act_scale=one[0], act_zero_point=one[1]), expected)


@OPS
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf), ids=str)
def test_a_scale_that_is_not_finite_gives_nan_and_leaves_the_others_alone(bits: int, value: float) -> None:
    x, (scale, zero_point) = cases.int8_values(5, 64, least=-128), tokens_of(5)
    expected = by_op(bits, x, act_scale=scale, act_zero_point=zero_point)
    scale[2] = value
    actual = by_op(bits, x, act_scale=scale, act_zero_point=zero_point)
    assert bool(actual[2].isnan().all())
    others = torch.arange(5) != 2
    assert cases.same_bits(actual[others], expected[others])
    assert bool(by_op(bits, x, act_scale=torch.tensor(value)).isnan().all())


def test_the_reference_gives_nan_for_a_scale_that_is_not_finite() -> None:
    qdata, scale, _ = layer_of(7, 33)
    x, packed = cases.int8_values(3, 33), _ops.pack_int8(qdata, "")
    tokens = torch.tensor([math.inf, 0.5, math.nan]), torch.tensor(3, dtype=torch.int8)
    actual = _ops.linear_int8_quantized(x, *tokens, packed, scale, None, torch.float16)
    assert cases.same_bits(actual, reference.linear_int8_quantized(x, *tokens, qdata, scale, None, torch.float16))


WRONG_TOKENS = {
    "scales of another count": (dict(act_scale=torch.ones(4)), "one element for each of the 5 tokens, or one for all"),
    "no scales": (dict(act_scale=torch.ones(0)), "act_scale of shape .0. must have one element"),
    "scales of another dtype": (
        dict(act_scale=torch.ones(5).double()),
        "act_scale must be torch.float32, not torch.float64",
    ),
    "zero points of another count": (
        dict(act_zero_point=torch.zeros(2, 5, dtype=torch.int8)),
        r"act_zero_point of shape \(2, 5\) must have one element",
    ),
    "zero points of another dtype": (
        dict(act_zero_point=torch.zeros(5).long()),
        "must be torch.int8 or torch.int32, not torch.int64",
    ),
    "unsigned zero points": (
        dict(act_zero_point=torch.zeros(5).byte()),
        "must be torch.int8 or torch.int32, not torch.uint8",
    ),
    "zero points out of range": (
        dict(act_zero_point=torch.full((5,), 128, dtype=torch.int32)),
        r"must lie in \[-128, 127\], but holds 128",
    ),
    "scales on another device": (dict(act_scale=torch.ones(5, device="meta")), "act_scale is on meta"),
}


@pytest.mark.x86
@OPS
@pytest.mark.parametrize("wrong", WRONG_TOKENS)
def test_wrong_tokens(bits: int, wrong: str) -> None:
    given_instead, message = WRONG_TOKENS[wrong]
    with pytest.raises(ValueError, match=message):
        by_op(bits, cases.int8_values(5, 64), **{"act_scale": torch.ones(5), **given_instead})


# --- the other arguments, and the op as torch sees it ---

WRONG = {
    "float activations": (dict(qdata=torch.ones(5, 33)), "qdata must be torch.int8"),
    "uint8 activations": (dict(qdata=torch.ones(5, 33).byte()), "qdata must be torch.int8"),
    "activations of another k": (dict(qdata=torch.ones(5, 32).char()), r"qdata of shape \(5, 32\).* must be 33"),
    "activations of no dimension": (dict(qdata=torch.tensor(1).char()), r"qdata of shape \(\) .* must be 33"),
    "a scale for each column": (dict(act_scale=torch.ones(33)), "one element for each of the 5 tokens"),
    "integer output": (
        dict(output_dtype=torch.int32),
        "output_dtype must be torch.float32, torch.bfloat16 or torch.float16, not",
    ),
    "double output": (
        dict(output_dtype=torch.float64),
        "output_dtype must be torch.float32, torch.bfloat16 or torch.float16, not",
    ),
    "bias of another length": (dict(bias=torch.ones(8)), r"bias of shape \(8\) must have shape \(7\)"),
    "integer bias": (dict(bias=torch.ones(7).int()), "bias must be torch.float32"),
    "weight scales of another length": (dict(weight_scale=torch.ones(8)), "weight_scale must have one element"),
    "a weight that is not packed": (dict(packed_weight=torch.zeros(600).byte()), "no packed weight"),
    "a weight of 4 bits": (
        dict(packed_weight=_ops.pack_int4(torch.ones(7, 33).char(), torch.ones(7, 1), None, "")),
        "takes int8 weights",
    ),
    "weight on another device": (dict(weight_scale=torch.ones(7, device="meta")), "weight_scale is on meta"),
}


@pytest.mark.x86
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong: str) -> None:
    given_instead, message = WRONG[wrong]
    arguments: dict[str, Any] = {"qdata": cases.int8_values(5, 33), "act_scale": torch.ones(5), "act_zero_point": None}
    arguments |= {"packed_weight": _ops.pack_int8(cases.int8_values(7, 33), ""), "weight_scale": torch.ones(7)}
    arguments |= {"bias": None, "output_dtype": torch.float32, **given_instead}
    with pytest.raises(ValueError, match=message):
        _ops.call(_ops.linear_int8_quantized, *arguments.values())


def op_calls() -> dict[str, tuple[Any, ...]]:
    qdata, scale, biases = layer_of(33, 40, torch.bfloat16)
    packed, x = _ops.pack_int8(qdata, ""), cases.int8_values(6, 40, least=-128)
    act_scale, zero_point = tokens_of(6)
    columns = act_scale.view(2, 3, 1), zero_point.view(2, 3, 1).to(torch.int8)
    return {
        "per token": (x, act_scale, zero_point, packed, scale, biases["float32"], torch.float32),
        "3-D, int8 zero points": (x.view(2, 3, 40), *columns, packed, scale, biases["same dtype"], torch.bfloat16),
        "no zero points, 1-D": (x[0], act_scale[0], None, packed, scale, None, torch.float16),
        "no rows": (x[:0], act_scale[:0], zero_point[:0], packed, scale, None, torch.float32),
        "transposed, one for all": (x.t().contiguous().t(), act_scale[:1], None, packed, scale, None, torch.float32),
    }


@pytest.mark.x86
@pytest.mark.parametrize("call", op_calls())
def test_opcheck(call: str) -> None:
    torch.library.opcheck(_ops.linear_int8_quantized, op_calls()[call])
