"""Arguments and packed bytes that somebody made up: refused by name and at once, and nothing else is read."""

import json
import re
import struct
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from packed_headers import HEADER, HEADER_BYTES, checksum, forged, with_header
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

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


def test_the_other_byte_order_is_named() -> None:
    packed = _ops.pack_int8(torch.ones(7, 33, dtype=torch.int8), "")
    assert "other byte order" in refused(_ops.packed_weight_info, with_header(packed, version=1 << 24))


def tensors_of_calls() -> dict[str, tuple[Any, list[Any]]]:
    """Each op that reads tensors, with arguments that it takes."""
    n, k = 40, 96
    packed = _ops.pack_int8(cases.int8_values(n, k), "")
    qdata4 = torch.randint(-8, 8, (n, k), dtype=torch.int8)
    packed4 = _ops.pack_int4(qdata4, torch.ones(n, 3), torch.ones(n, 3, dtype=torch.int8), "")
    x, q, scale, bias, rows = torch.randn(5, k), cases.int8_values(5, k), torch.ones(n), torch.randn(n), torch.arange(3)
    one, zero, scales, zeros = torch.ones(1), torch.zeros(1, dtype=torch.int8), torch.ones(5), torch.zeros(5).int()
    return {
        "linear_int8_dynamic": (_ops.linear_int8_dynamic, [x, packed, scale, bias, True, True]),
        "linear_int8_dynamic_shared": (
            _ops.linear_int8_dynamic_shared,
            [x, [packed, packed.clone()], [scale, scale.clone()], [bias, None], True, True],
        ),
        "linear_int8_quantized": (
            _ops.linear_int8_quantized,
            [q, scales, zeros, packed, scale, bias, torch.float32],
        ),
        "linear_int8_static": (_ops.linear_int8_static, [x, packed, scale, bias, one, zero, one.clone(), zero.clone()]),
        "matmul_int8": (_ops.matmul_int8, [q, packed]),
        "quantize_activations": (_ops.quantize_activations, [x, True]),
        "linear_qta8a_qga4w": (_ops.linear_qta8a_qga4w, [x, packed4, n, bias, scales, zeros]),
        "linear_qta8a_qga4w_shared": (
            _ops.linear_qta8a_qga4w_shared,
            [x, [packed4, packed4.clone()], [n, n], [None, bias]],
        ),
        "pack_int8": (_ops.pack_int8, [cases.int8_values(n, k), ""]),
        "unpack_int8": (_ops.unpack_int8, [packed, n, k, rows]),
        "pack_int4": (_ops.pack_int4, [qdata4, torch.ones(n, 3), torch.ones(n, 3, dtype=torch.int8), ""]),
        "unpack_int4": (_ops.unpack_int4, [packed4, n, k, 32, True, True, rows]),
        "packed_weight_info": (_ops.packed_weight_info, [packed]),
    }


OPS = tuple(tensors_of_calls())


def in_turn(name: str, change: Callable[[Tensor], Tensor]) -> list[tuple[Any, list[Any]]]:
    """An op's arguments with each tensor changed in turn, after they were taken as they are."""
    op, args = tensors_of_calls()[name]
    _ops.call(op, *args)
    calls = []
    for at, argument in enumerate(args):
        if isinstance(argument, list):
            others = [[*argument[:i], other, *argument[i + 1 :]] for i, other in changed_tensors(argument, change)]
        else:
            others = [other for _, other in changed_tensors([argument], change)]
        calls += [(op, [*args[:at], other, *args[at + 1 :]]) for other in others]
    assert calls
    return calls


def changed_tensors(values: list[Any], change: Callable[[Tensor], Tensor]) -> list[tuple[int, Tensor]]:
    """The tensors among some values, each changed, with their places."""
    return [(at, change(value.clone())) for at, value in enumerate(values) if isinstance(value, Tensor)]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("bytes_left", [0, 1, -1], ids=["nothing", "one byte", "all but one byte"])
def test_a_storage_that_was_shrunk_is_not_read_beyond(name: str, bytes_left: int) -> None:
    """After the same bytes were accepted, by the tensor or by another one of that storage."""

    def shrunk(tensor: Tensor) -> Tensor:
        storage = tensor.view(tensor.shape).untyped_storage()
        storage.resize_(min(bytes_left, storage.nbytes() - 1) if bytes_left >= 0 else storage.nbytes() + bytes_left)
        return tensor

    for op, args in in_turn(name, shrunk):
        message = refused(op, *args)
        assert "of a storage that has" in message and "make the tensor anew" in message


def test_strides_may_not_reach_beyond_a_shrunk_storage() -> None:
    """Every other row, of which the last lies beyond."""
    packed, scale = _ops.pack_int8(cases.int8_values(40, 96), ""), torch.ones(40)
    rows = torch.randn(10, 96)
    x = rows[::2]
    _ops.linear_int8_dynamic(x, packed, scale, None, True, True)
    rows.untyped_storage().resize_(8 * 96 * 4)
    message = refused(_ops.linear_int8_dynamic, x, packed, scale, None, True, True)
    assert "input of shape (5, 96) reaches to byte 3456 of a storage that has 3072" in message
    assert torch.equal(
        _ops.linear_int8_dynamic(x[:4], packed, scale, None, True, True),
        _ops.linear_int8_dynamic(x[:4].clone(), packed, scale, None, True, True),
    )


def test_packed_bytes_that_another_view_changes_are_checked_again() -> None:
    """What was found out about a header is not remembered of the memory that it was in."""
    packed, x, scale = _ops.pack_int8(cases.int8_values(40, 96), ""), torch.randn(5, 96), torch.ones(40)
    other = packed.view(-1)
    before = packed.clone()
    args = (x, packed, scale, None, True, True)
    expected = _ops.call(_ops.linear_int8_dynamic, *args)
    for at in range(HEADER_BYTES):
        other[at] ^= 1 << at % 8
        refused(_ops.linear_int8_dynamic, *args)
        other[at] ^= 1 << at % 8
    assert torch.equal(packed, before) and torch.equal(_ops.call(_ops.linear_int8_dynamic, *args), expected)
    # A header that is in order, of a weight that has other sizes, over these bytes.
    other[:HEADER_BYTES] = _ops.pack_int8(cases.int8_values(400, 96), "")[:HEADER_BYTES]
    assert "should have" in refused(_ops.linear_int8_dynamic, *args)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda tensor: tensor.to(torch.complex64), id="complex"),
        pytest.param(lambda tensor: tensor.to(torch.float64), id="float64"),
        pytest.param(lambda tensor: tensor.to("meta"), id="meta"),
        pytest.param(lambda tensor: tensor.to_sparse(), id="sparse"),
        pytest.param(lambda tensor: tensor.reshape(*tensor.shape, 1, 1).expand(*tensor.shape, 2, 3), id="more ranks"),
    ],
)
def test_wrong_tensors_are_errors_of_python(name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Of an op that takes one tensor the meta kernel is asked, and may answer."""
    calls = in_turn(name, change)
    for op, args in calls:
        if len(calls) > 1 or args[0].device.type == "cpu":
            with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
                _ops.call(op, *args)


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("linear")])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda tensor: tensor.as_strided(tensor.shape, (1,) * tensor.dim()), id="overlapping"),
        pytest.param(lambda tensor: tensor[..., :1].expand(tensor.shape), id="expanded"),
        pytest.param(lambda tensor: torch.stack((tensor, tensor), -1)[..., 1], id="every other"),
        pytest.param(lambda tensor: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor, id="transposed"),
        pytest.param(lambda tensor: torch._neg_view(tensor), id="negated"),
        pytest.param(lambda tensor: torch.zeros_like(tensor)[:0], id="empty"),
    ],
)
def test_any_strides_give_what_copies_give_or_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    for op, args in in_turn(name, change):
        copies = tree_map_only(Tensor, lambda tensor: tensor.clone().contiguous(), args)
        try:
            results = _ops.call(op, *args)
        except ValueError:
            continue
        pairs = zip(tree_leaves(results), tree_leaves(_ops.call(op, *copies)), strict=True)
        assert all(torch.equal(result, of_copies) for result, of_copies in pairs)


def test_sizes_on_the_meta_device_are_checked() -> None:
    """Shapes are all there is there."""
    meta: dict[str, Any] = {"device": "meta"}
    x, packed = torch.empty(2, 8, **meta), torch.empty(999, dtype=torch.uint8, **meta)
    scalar = torch.ones((), **meta)
    assert "output channels, not shape ()" in refused(_ops.linear_int8_dynamic, x, packed, scalar, None, True, True)
    values = torch.empty(3, dtype=torch.int8, **meta)
    assert "qdata must be a matrix" in refused(_ops.pack_int8, values, "")
    assert "scale must be a matrix" in refused(_ops.pack_int4, values[None], torch.empty(3, 0, **meta), None, "")
    assert "group_size must be at least 1" in refused(_ops.unpack_int4, packed, 8, 8, 0, False, False, None)


def test_more_than_there_is_memory_for() -> None:
    """Rows that are repeated without being copied: their outputs or copies would take petabytes."""
    packed, scale = _ops.pack_int8(cases.int8_values(40, 96), ""), torch.ones(40)
    x, q, token_scale = torch.randn(1, 96), torch.ones(1, 96, dtype=torch.int8), torch.ones(1, 1)

    def repeated(tensor: Tensor) -> Tensor:
        return tensor.expand(1 << 46, tensor.shape[1])

    def lacks(what: str, op: Any, *args: Any) -> None:
        with pytest.raises(MemoryError, match=re.escape(f"no memory left for {what}")):
            _ops.call(op, *args)

    weight = (packed, scale, None)
    lacks("a tensor of shape (70368744177664, 40)", _ops.linear_int8_dynamic, repeated(x), *weight, True, True)
    negated = torch._neg_view(repeated(x))
    shared = ([packed], [scale], [None], True, True)
    lacks("a copy of a tensor of shape (70368744177664, 96)", _ops.linear_int8_dynamic_shared, negated, *shared)
    whats = ("what is given of 70368744177664 tokens", "a copy of a tensor of shape (70368744177664, 1)")
    for what, of_tokens in zip(whats, (token_scale, repeated(token_scale)), strict=True):
        lacks(what, _ops.linear_int8_quantized, repeated(q), of_tokens, None, *weight, torch.float32)
