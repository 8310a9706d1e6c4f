"""Arguments and packed bytes that somebody made up: refused by name and at once, and nothing else is read."""

import json
import struct
from typing import Any

import pytest
import torch
from packed_headers import HEADER, HEADER_BYTES, checksum, forged, with_header

from ao_arm import _ops

pytestmark = pytest.mark.one_cpu

HUGE = [-(1 << 63), -1, 0, 1 << 31, 1 << 60, 1 << 62, (1 << 63) - 1]


def refused(op: Any, *args: Any) -> str:
    """What the op says of its arguments, which it has to refuse."""
    with pytest.raises(ValueError) as caught:
        _ops.call(op, *args)
    return str(caught.value)


@pytest.mark.parametrize("size", HUGE)
def test_sizes_that_no_layer_has(size: int) -> None:
    for n, k in ((size, 64), (64, size), (size, size)):
        assert "no kernel can serve a layer" in refused(_ops.select_kernel, n, k, "")
        assert "no kernel can serve a 4-bit layer" in refused(_ops.select_kernel_int4, n, k, 32, False, False, "")
        refused(_ops.packed_bytes, n, k, "")
        refused(_ops.packed_bytes_int4, n, k, 32, True, True, "")
        for table in (_ops.kernel_table(n, k), _ops.kernel_table_int4(n, k, 32, False, False)):
            assert all(row["reasons"] and row["cost"] is None for row in json.loads(table))
    message = refused(_ops.select_kernel_int4, 64, 768, size, False, False, "")
    assert "k = 768 is no multiple of the group size" in message and "group sizes that fit: " in message
    table = json.loads(_ops.kernel_table_int4(768, 768, size, False, False))
    assert all(row["reasons"] and row["cost"] is None for row in table)


def test_no_library_works_on_what_is_too_large() -> None:
    """Arm Compute Library would take seconds and a gigabyte to refuse it."""
    for row in json.loads(_ops.kernel_table(384, 10**6)):
        assert any("k may be" in reason for reason in row["reasons"])
        assert not any("Arm Compute Library refuses" in reason for reason in row["reasons"])


def test_a_header_forged_to_the_checksum_of_an_honest_one() -> None:
    """After the honest weight was opened, a few bytes claim to be it."""
    n = k = 768
    qdata = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    honest = _ops.pack_int8(qdata, "")
    assert torch.equal(_ops.unpack_int8(honest, n, k), qdata)
    header = bytes(honest[:HEADER_BYTES].tolist())
    (wanted,) = struct.unpack("<Q", header[-8:])
    *fields, reserved = HEADER.unpack(header[:-8])
    fields[6] = HEADER_BYTES + 64  # its bytes in all
    made = forged(HEADER.pack(*fields, reserved), wanted)
    assert checksum(made[:-8]) == wanted and made != header
    small = torch.tensor([*made, *bytes(64)], dtype=torch.uint8)
    assert "in another arrangement" in refused(_ops.unpack_int8, small, n, k)
    x, scale = torch.randn(2, k), torch.ones(n)
    assert "in another arrangement" in refused(_ops.linear_int8_dynamic, x, small, scale, None, True, True)
    # The very same header, over too few bytes.
    assert "should have" in refused(_ops.unpack_int8, honest[: HEADER_BYTES + 64].clone(), n, k)
    assert torch.equal(_ops.unpack_int8(honest, n, k), qdata)


@pytest.mark.parametrize("size", HUGE)
def test_huge_sizes_in_a_header(size: int) -> None:
    packed = _ops.pack_int8(torch.ones(7, 33, dtype=torch.int8), "")
    for fields in ({"n": size}, {"k": size}, {"n": size, "k": size}, {"panel_columns": size}, {"total_bytes": size}):
        refused(_ops.packed_weight_info, with_header(packed, **fields))
        refused(_ops.unpack_int8, with_header(packed, **fields), 7, 33)


@pytest.mark.parametrize("field", ["kernel", "packing_format"])
def test_names_without_an_end(field: str) -> None:
    packed = _ops.pack_int8(torch.ones(7, 33, dtype=torch.int8), "")
    message = refused(_ops.packed_weight_info, with_header(packed, **{field: b"x" * 96}))
    assert "a name in it has no end" in message and "Pack the weight again" in message


@pytest.mark.parametrize("scale_type", [-1, 2, 3, 4, 5, 77])
def test_scales_of_a_type_that_kernels_do_not_read(scale_type: int) -> None:
    packed = _ops.pack_int4(torch.ones(8, 64, dtype=torch.int8), torch.ones(8, 2), None, "")
    content = bytearray(packed.tolist())
    content[184:188] = struct.pack("<i", scale_type)
    content[HEADER_BYTES - 8 : HEADER_BYTES] = struct.pack("<Q", checksum(bytes(content[: HEADER_BYTES - 8])))
    damaged = torch.tensor([*content], dtype=torch.uint8)
    assert "scales must be bfloat16 or float32" in refused(_ops.packed_weight_info, damaged)
