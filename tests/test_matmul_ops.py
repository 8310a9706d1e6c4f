"""Integer products and packing, exact on every kernel that this CPU can run."""

import cases
import pytest
import torch
from int8_layers import MOST_K

from ao_arm import _ops, reference


def test_matmul_is_exact_and_unpacking_inverts_packing(kernel: str) -> None:
    """A few shapes as torch sees them: kernel_test.cpp goes over all of them."""
    for m, n, k in ((0, 7, 33), (1, 1, 1), (33, 65, 130), (131, 385, 64), (5, 2, 3072)):
        if not cases.fits(kernel, n, k):
            continue
        weight, activations = cases.int8_values(n, k), cases.int8_values(m, k, least=-128)
        packed = _ops.pack_int8(weight, kernel)
        actual = _ops.matmul_int8(activations, packed)
        assert torch.equal(actual, reference.matmul_int8(activations, weight)), f"{m=} {n=} {k=}"
        assert torch.equal(_ops.unpack_int8(packed, *weight.shape), weight), f"{n=} {k=}"
        rows = torch.tensor([n - 1, 0, n // 2, n - 1])
        assert torch.equal(_ops.unpack_int8(packed, *weight.shape, rows), weight[rows]), f"rows of {n=} {k=}"


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
