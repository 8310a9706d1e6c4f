"""Calls of the ops of 4-bit weights: wrong arguments, and what torch expects of an op."""

import cases
import pytest
import torch
from int4_layers import plain_of

from ao_arm import _ops

pytestmark = pytest.mark.x86

# --- arguments ---

WRONG_LINEAR = {
    "double input": (dict(input=torch.ones(5, 64, dtype=torch.float64)), "must be torch.float32"),
    "input of another k": (dict(input=torch.ones(5, 32)), r"\(5, 32\).* must be 64"),
    "another n": (dict(n=8), r"n = 8 is not that of the packed weight, which has shape \(7, 64\)"),
    "int8 without scales": (dict(input=torch.ones(5, 64, dtype=torch.int8)), "int8 input needs act_scale"),
    "zero points without scales": (dict(act_zero_point=torch.zeros(5, dtype=torch.int32)), "without act_scale"),
    "scales of another length": (dict(act_scale=torch.ones(4)), "one element for each of the 5 tokens, or one for all"),
    "scales of another dtype": (dict(act_scale=torch.ones(5).double()), "act_scale must be torch.float32"),
    "zero points out of range": (
        dict(act_scale=torch.ones(5), act_zero_point=torch.full((5,), 128, dtype=torch.int32)),
        r"must lie in \[-128, 127\], but holds 128",
    ),
    "bias of another length": (dict(bias=torch.ones(8)), r"bias of shape \(8\) must have shape \(7\)"),
    "bounds that cross": (dict(output_min=1.0, output_max=0.0), "output_min must be at most output_max"),
}


@pytest.mark.parametrize("wrong", WRONG_LINEAR)
def test_linear_refuses_wrong_arguments(wrong: str) -> None:
    given_instead, message = WRONG_LINEAR[wrong]
    packed = _ops.pack_int4(*plain_of(7, 64, 32, torch.bfloat16, False), "")
    arguments = {"input": torch.randn(5, 64), "packed_weight": packed, "n": 7, "bias": None, "act_scale": None}
    arguments |= {"act_zero_point": None, "output_min": None, "output_max": None, **given_instead}
    with pytest.raises(ValueError, match=message):
        _ops.call(_ops.linear_qta8a_qga4w, *arguments.values())


def test_packing_refuses_wrong_arguments() -> None:
    qdata, scale, zero_point = plain_of(7, 64, 32, torch.bfloat16, True)
    for message, arguments in (
        ("qdata must be torch.int8", (qdata.float(), scale, None)),
        ("scale must be torch.bfloat16 or torch.float32", (qdata, scale.half(), None)),
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
        "unpack_int4, rows": (_ops.unpack_int4, (packed, 33, 64, 32, False, False, torch.tensor([32, 0]))),
        "unpack_int4, zero points": (_ops.unpack_int4, (affine_packed, 5, 33, 33, True, True)),
    }


@pytest.mark.parametrize("call", op_calls())
def test_opcheck(call: str) -> None:
    op, arguments = op_calls()[call]
    torch.library.opcheck(op, arguments)
