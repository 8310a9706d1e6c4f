"""4-bit weights packed for a kernel and back, and which kernel is taken."""

import json

import cases
import pytest
import torch
from int4_layers import LAYERS, SCALES, ZEROS, linear, plain_of

from ao_arm import _ops

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
        rows = torch.tensor([n - 1, 0, n // 2, n - 1])
        some = _ops.unpack_int4(packed, n, k, group, floats, zeros, rows)
        assert torch.equal(some[0], qdata[rows]) and cases.same_bits(some[1], scale[rows])
        assert torch.equal(some[2], values[2] if zero_point is None else zero_point[rows])


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
