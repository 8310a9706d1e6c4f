"""Wrong arguments of the int8 ops, and the ops as torch sees them."""

import math

import cases
import pytest
import torch
from int8_layers import layer_of

from ao_arm import _ops


def packed_and(**others: object) -> dict[str, object]:
    qdata, scale, _ = layer_of(7, 33)
    arguments = {"input": torch.randn(5, 33), "packed_weight": _ops.pack_int8(qdata, ""), "weight_scale": scale}
    return {**arguments, "bias": None, "symmetric": True, "per_token": True, **others}


WRONG_LINEAR = {
    "integer input": (dict(input=torch.ones(5, 33, dtype=torch.int32)), "input must be torch.float32"),
    "double input": (dict(input=torch.ones(5, 33, dtype=torch.float64)), "input must be torch.float32"),
    "input of another k": (dict(input=torch.ones(5, 32)), r"\(5, 32\).* must be 33"),
    "input of no dimension": (dict(input=torch.tensor(1.0)), r"shape \(\) .* must be 33"),
    "integer bias": (dict(bias=torch.ones(7, dtype=torch.int64)), "bias must be torch.float32"),
    "bias of another length": (dict(bias=torch.ones(8)), r"bias of shape \(8\) must have shape \(7\)"),
    "bias of two dimensions": (dict(bias=torch.ones(1, 7)), r"bias of shape \(1, 7\) must have shape \(7\)"),
    "bias of no dimension": (dict(bias=torch.tensor(1.0)), r"bias of shape \(\) must have shape \(7\)"),
    "scales of another length": (dict(weight_scale=torch.ones(8)), "weight_scale must have one element for each"),
    "scales of another dtype": (dict(weight_scale=torch.ones(7).double()), "weight_scale must be torch.float32"),
    "scales with gaps": (dict(weight_scale=torch.ones(14)[::2]), "weight_scale must be contiguous"),
    "packed weight of another dtype": (dict(packed_weight=torch.ones(512)), "packed_weight must be torch.uint8"),
    "input on another device": (dict(input=torch.ones(5, 33, device="meta")), "input is on meta"),
    "bias on another device": (dict(bias=torch.ones(7, device="meta")), "bias is on meta"),
    "scales on another device": (dict(weight_scale=torch.ones(7, device="meta")), "weight_scale is on meta"),
}


@pytest.mark.x86
@pytest.mark.parametrize("wrong", WRONG_LINEAR)
def test_linear_refuses_wrong_arguments(wrong: str) -> None:
    given_instead, message = WRONG_LINEAR[wrong]
    with pytest.raises(ValueError, match=message):
        _ops.call(_ops.linear_int8_dynamic, *packed_and(**given_instead).values())


@pytest.mark.x86
def test_the_other_ops_refuse_wrong_arguments() -> None:
    weight = cases.int8_values(7, 33)
    packed = _ops.pack_int8(weight, "")
    for message, op, arguments in (
        ("must have shape", _ops.matmul_int8, (cases.int8_values(5, 32), packed)),
        ("must have shape", _ops.matmul_int8, (cases.int8_values(33), packed)),
        ("qdata must be torch.int8", _ops.matmul_int8, (torch.ones(5, 33), packed)),
        ("qdata must be contiguous", _ops.matmul_int8, (cases.int8_values(33, 5).t(), packed)),
        ("qdata must be torch.int8", _ops.pack_int8, (weight.float(), "")),
        ("must be a matrix", _ops.pack_int8, (weight[0], "")),
        ("unknown kernel 'none/such'", _ops.pack_int8, (weight, "none/such")),
        ("input must be torch.float32", _ops.quantize_activations, (weight, True)),
        ("contiguous matrix", _ops.quantize_activations, (torch.ones(3), True)),
        ("uint8", _ops.unpack_int8, (weight, 33, 40)),
        ("rows must be torch.int64", _ops.unpack_int8, (packed, *weight.shape, torch.tensor([1.0]))),
        ("rows must be a list of row numbers", _ops.unpack_int8, (packed, *weight.shape, torch.tensor([[1]]))),
        ("row -1 is not within", _ops.unpack_int8, (packed, *weight.shape, torch.tensor([0, -1]))),
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
        "unpack_int8, rows": (_ops.unpack_int8, (packed, 33, 40, torch.tensor([32, 0]))),
    }


@pytest.mark.x86
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


# --- what these tests are made of ---


@pytest.mark.x86
def test_bits() -> None:
    some = torch.tensor([1.0, -1.0, 0.0, math.nan])
    assert cases.same_bits(some, some.clone())
    assert not cases.same_bits(some, some.nextafter(torch.tensor(9.0)))
    assert not cases.same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not cases.same_bits(some, some.double())
