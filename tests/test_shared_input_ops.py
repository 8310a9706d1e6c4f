"""The ops that multiply one input by several weights: each output has the bits that a call of its own gives."""

from typing import Any

import cases
import pytest
import torch
from int4_layers import plain_of
from int8_layers import GRANULARITIES, SYMMETRIES, layer_of
from torch import Tensor

from ao_arm import _ops, reference

#: Rows in whole blocks and not and, on a real CPU, in more than one stretch.
ROWS = (0, 7) if cases.EMULATED_CPU else (0, 1, 2, 7, 31, 64, 65, 257)
#: Column steps are cut, and outputs are narrower than one.
COLUMNS = (33, 1, 64) if cases.EMULATED_CPU else (33, 1, 385, 64, 7)
GROUPS = (32, 192, 64, 32, 96)[: len(COLUMNS)]


def same(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return all(cases.same_bits(*pair) for pair in zip(actual, expected, strict=True))


@SYMMETRIES
@GRANULARITIES
def test_int8_outputs_have_the_bits_of_their_own_calls(
    symmetric: bool, per_token: bool, kernel: str, threads: int
) -> None:
    k = 130
    rule = (symmetric, per_token)
    columns = [n for n in COLUMNS if cases.fits(kernel, n, k)]
    assert columns
    layers = [layer_of(n, k, torch.bfloat16) for n in columns]
    qdata, scales = [layer[0] for layer in layers], [layer[1] for layer in layers]
    biases = [[*layer[2].values()][at % 3] for at, layer in enumerate(layers)]
    packed = [_ops.pack_int8(values, kernel) for values in qdata]
    for at, m in enumerate(ROWS):
        x = torch.randn(m, k).to(cases.FLOATS[at % len(cases.FLOATS)])
        with cases.torch_threads(threads):
            actual = _ops.linear_int8_dynamic_shared(x, packed, scales, biases, *rule)
        alone = [_ops.linear_int8_dynamic(x, *of, *rule) for of in zip(packed, scales, biases, strict=True)]
        assert same(actual, alone), f"{m=}"
        if m == 7:
            assert same(actual, reference.linear_int8_dynamic_shared(x, qdata, scales, biases, *rule))


@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zero_points"])
def test_int4_outputs_have_the_bits_of_their_own_calls(zeros: bool, kernel4: str, threads: int) -> None:
    """Also of weights with other groups, and with scales of another type."""
    k = 192
    scale_types = [torch.float32 if n == 64 else torch.bfloat16 for n in COLUMNS]
    weights = [
        (n, plain_of(n, k, group, scale_type, zeros))
        for n, group, scale_type in zip(COLUMNS, GROUPS, scale_types, strict=True)
        if cases.fits(kernel4, n, k, group, scale_type == torch.float32, zeros)
    ]
    if not weights:
        return
    columns, plain = [n for n, _ in weights], [plain for _, plain in weights]
    packed = [_ops.pack_int4(*of, kernel4) for of in plain]
    biases = [torch.randn(n) if n % 2 else None for n in columns]
    for m in ROWS:
        x = torch.randn(m, k)
        with cases.torch_threads(threads):
            actual = _ops.linear_qta8a_qga4w_shared(x, packed, columns, biases)
        calls = zip(packed, columns, biases, strict=True)
        assert same(actual, [_ops.linear_qta8a_qga4w(x, *call) for call in calls]), f"{m=}"
        if m == 7:
            expected = reference.linear_qta8a_qga4w_shared(x, *zip(*plain, strict=True), biases)  # type: ignore[call-arg]
            assert [output.shape for output in actual] == [output.shape for output in expected]
            for output, near, of, bias in zip(actual, expected, plain, biases, strict=True):
                cases.assert_near_the_reference(output, x, of, bias)
                cases.assert_near_the_reference(near, x, of, bias)


@pytest.mark.parametrize("threads", [1, 3])
def test_weights_packed_for_different_kernels(threads: int) -> None:
    """Kernels that arrange activations in ways of their own are served apart, in whatever order they come."""
    k, x = 160, torch.randn(19, 160)
    kernels = [kernel for kernel in (*cases.KERNELS, *cases.KERNELS) if cases.fits(kernel, 40, k)]
    qdata, scale, _ = layer_of(40, k)
    int8 = [_ops.pack_int8(qdata, kernel) for kernel in kernels]
    full_range = torch.full((40, k), -128, dtype=torch.int8)
    expected = reference.linear_int8_dynamic(x, qdata, scale, None, False, True)
    expected_of_full_range = reference.linear_int8_dynamic(x, full_range, scale, None, False, True)
    count = len(kernels) + 1
    with cases.torch_threads(threads):
        actual = _ops.linear_int8_dynamic_shared(
            x, [*int8, _ops.pack_int8(full_range, "")], [scale] * count, [None] * count, False, True
        )
    assert same(actual, [*[expected] * len(kernels), expected_of_full_range])
    kernels4 = [kernel for kernel in (*cases.INT4_KERNELS, *cases.INT4_KERNELS) if cases.fits(kernel, 40, k, 32)]
    int4 = [_ops.pack_int4(*plain_of(40, k, 32, torch.bfloat16, False), kernel) for kernel in kernels4]
    with cases.torch_threads(threads):
        actual = _ops.linear_qta8a_qga4w_shared(x, int4, [40] * len(int4), [None] * len(int4))
    assert same(actual, [_ops.linear_qta8a_qga4w(x, packed, 40, None) for packed in int4])


@pytest.mark.parametrize("m", [1, 130])
def test_any_number_of_threads_gives_the_same_bits(m: int) -> None:
    """Large enough for the team; shares end inside of weights and columns."""
    k, columns = 416, (701, 1, 256)
    x = torch.randn(m, k)
    layers = [layer_of(n, k) for n in columns]
    packed, scales = [_ops.pack_int8(qdata, "") for qdata, _, _ in layers], [scale for _, scale, _ in layers]
    packed4 = [_ops.pack_int4(*plain_of(n, k, 32, torch.bfloat16, False), "") for n in columns]

    def outputs() -> list[Tensor]:
        int8 = _ops.linear_int8_dynamic_shared(x, packed, scales, [None] * 3, False, True)
        return [*int8, *_ops.linear_qta8a_qga4w_shared(x, packed4, columns, [None] * 3)]

    with cases.torch_threads(1):
        expected = outputs()
    for threads in (3, 16):
        with cases.torch_threads(threads):
            assert same(outputs(), expected), f"{threads} threads"


def shared_and(**others: Any) -> tuple[Any, ...]:
    layers = [layer_of(n, 64) for n in (7, 40)]
    arguments = {
        "input": torch.randn(5, 64),
        "packed_weights": [_ops.pack_int8(qdata, "") for qdata, _, _ in layers],
        "weight_scales": [scale for _, scale, _ in layers],
        "biases": [torch.randn(7), None],
    }
    return (*{**arguments, **others}.values(), False, True)


def shared4_and(**others: Any) -> tuple[Any, ...]:
    packed = [_ops.pack_int4(*plain_of(n, 64, 32, torch.bfloat16, False), "") for n in (7, 40)]
    arguments = {"input": torch.randn(5, 64), "packed_weights": packed, "n": [7, 40], "biases": [None, torch.randn(40)]}
    return tuple({**arguments, **others}.values())


WRONG = {
    "no weights": (dict(packed_weights=[], weight_scales=[], biases=[]), "packed_weights must hold one weight"),
    "few scales": (dict(weight_scales=[torch.ones(7)]), "weight_scales .* each of the 2 packed_weights, not 1"),
    "many biases": (dict(biases=[None] * 3), "biases must have one element for each of the 2 packed_weights, not 3"),
    "scales of another weight": (dict(weight_scales=[torch.ones(7)] * 2), r"of the 40 .*\(weight 1 of 2, counted from"),
    "a bias of another weight": (dict(biases=[torch.ones(40)] * 2), r"shape \(7\) \(weight 0 of 2, counted from 0\)"),
    "input of another k": (dict(input=torch.ones(5, 33)), r"\(5, 33\).* must be 64 \(weight 0 of 2"),
    "integer input": (dict(input=torch.ones(5, 64, dtype=torch.int8)), "input must be torch.float32"),
    "4-bit weights": (dict(packed_weights=shared4_and()[1]), r"\(weight 0 of 2"),
    "a bias on another device": (dict(biases=[None, torch.ones(40, device="meta")]), "bias is on meta"),
}
WRONG4 = {
    "no weights": (dict(packed_weights=[], n=[], biases=[]), "packed_weights must hold one weight"),
    "few columns": (dict(n=[7]), "n must have one element for each of the 2 packed_weights, not 1"),
    "columns of another weight": (dict(n=[7, 7]), r"n = 7 is not that .*\(40, 64\) \(weight 1 of 2, counted from 0\)"),
    "integer input": (dict(input=torch.ones(5, 64, dtype=torch.int8)), "input must be torch.float32"),
    "8-bit weights": (dict(packed_weights=shared_and()[1]), r"\(weight 0 of 2"),
}


@pytest.mark.x86
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_of_int8(wrong: str) -> None:
    given, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        _ops.call(_ops.linear_int8_dynamic_shared, *shared_and(**given))


@pytest.mark.x86
@pytest.mark.parametrize("wrong", WRONG4)
def test_wrong_arguments_of_int4(wrong: str) -> None:
    given, message = WRONG4[wrong]
    with pytest.raises(ValueError, match=message):
        _ops.call(_ops.linear_qta8a_qga4w_shared, *shared4_and(**given))


INPUTS = {
    "two dimensions": torch.randn(5, 64),
    "three, bfloat16": torch.randn(2, 3, 64).bfloat16(),
    "transposed": torch.randn(64, 5).t(),
    "no rows": torch.randn(0, 64),
}


@pytest.mark.x86
@pytest.mark.parametrize("name", INPUTS)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(_ops.linear_int8_dynamic_shared, shared_and(input=INPUTS[name]))
    torch.library.opcheck(_ops.linear_qta8a_qga4w_shared, shared4_and(input=INPUTS[name]))
