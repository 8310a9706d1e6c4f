"""What `tests/fuzzed.py` searches for is judged right, and what it begins with is there; a search takes a minute."""

import fuzzed
import fuzzed_ops
import pytest
import torch
from hypothesis import given, settings

from ao_arm import _ops

pytestmark = pytest.mark.x86


@settings(max_examples=100)
@given(fuzzed_ops.calls())
def test_ops_serve_or_refuse(call: fuzzed_ops.Call) -> None:
    assert fuzzed_ops.outcome(*call) in ("served", "refused", "refused by torch")


@pytest.mark.parametrize("op", sorted(fuzzed_ops.OPS))
def test_calls_that_searches_begin_with_are_right(op: str) -> None:
    right = fuzzed_ops.right_arguments(op)
    arguments = {argument.name: right[argument.name] for argument in fuzzed_ops.OPS[op]._schema.arguments}
    assert fuzzed_ops.outcome(op, arguments) == "served"


def test_another_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setitem(fuzzed_ops.OPS, "system_info", fails)
    with pytest.raises(AssertionError, match="RuntimeError: something else"):
        fuzzed_ops.outcome("system_info", {})


def test_memory_that_begins_anywhere_is_copied_or_refused() -> None:
    """What other libraries lend to torch, and slices of bytes, may begin where no number may."""
    qdata, scale = torch.randint(-127, 128, (21, 96), dtype=torch.int8), torch.rand(21)
    packed, x, bias = _ops.pack_int8(qdata, ""), torch.randn(5, 96), torch.randn(21)
    expected = _ops.linear_int8_dynamic(x, packed, scale, bias, False, True)
    odd = fuzzed_ops.misaligned
    assert odd(x).data_ptr() % 4 and torch.equal(odd(x), x)
    assert torch.equal(_ops.linear_int8_dynamic(odd(x), packed, scale, odd(bias), False, True), expected)
    for arguments, name in (((x, odd(packed), scale), "packed_weight"), ((x, packed, odd(scale)), "weight_scale")):
        with pytest.raises(ValueError, match=rf"{name} must begin in memory at a multiple of .*; clone\(\) does"):
            _ops.call(_ops.linear_int8_dynamic, *arguments, bias, False, True)


@pytest.mark.parametrize("subject", fuzzed.LONGEST)
def test_inputs_are_checked_in(subject: str) -> None:
    inputs = fuzzed.checked_in(subject)
    assert len(inputs) > 50 and max(map(len, inputs)) <= fuzzed.LONGEST[subject]


def test_digests_are_read_by_name() -> None:
    text = "/some/folder/0a\n0123456789abcdef 0a\nfedcba9876543210 b1\nnothing\n"
    assert fuzzed.digests(text) == {"0a": "0123456789abcdef", "b1": "fedcba9876543210"}
