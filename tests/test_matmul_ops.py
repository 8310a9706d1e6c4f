"""Integer products and packing, exact on every kernel that this CPU can run."""

import cases
import pytest
import torch
from int8_layers import LARGE, MOST_K, first_difference

from ao_arm import _ops, reference

pytestmark = pytest.mark.x86

SIZES = (1, 2, 3, 5, 7, 8, 12, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130)
# A panel has 384 columns.
BORDERS = (383, 384, 385, 400, 769)
ROWS = 33


def sizes_of_k(n: int) -> list[int]:
    """The k that go with n. Under emulation few, and others for each n: all n together still meet all k."""
    if n in BORDERS:
        return [*cases.thinned(BORDERS), 1, 2, 33, 64, 129]
    shift = SIZES.index(n)
    return [*cases.thinned(SIZES[shift:] + SIZES[:shift]), *(BORDERS if shift % cases.STEP == 0 else ())]


@pytest.mark.parametrize("n", SIZES + BORDERS, ids="n={}".format)
def test_matmul_is_exact_and_unpacking_inverts_packing(n: int, kernel: str, kernels_met: set[str]) -> None:
    for k in sizes_of_k(n):
        if not cases.fits(kernel, n, k):
            continue
        weight, activations = cases.int8_values(n, k), cases.int8_values(ROWS, k, least=-128)
        expected = reference.matmul_int8(activations, weight)
        packed = _ops.pack_int8(weight, kernel)
        for m in range(1, ROWS + 1) if n in SIZES else cases.thinned(range(1, ROWS + 1)):
            actual = _ops.matmul_int8(activations[:m], packed)
            assert torch.equal(actual, expected[:m]), f"{m=} {n=} {k=}: {first_difference(actual, expected[:m])}"
        assert torch.equal(_ops.unpack_int8(packed, *weight.shape), weight), (
            f"{n=} {k=}: other values are unpacked than were packed"
        )
        kernels_met.add(kernel)


@pytest.mark.parametrize("m", (0, 64, 65, 130), ids="m={}".format)
def test_matmul_takes_rows_in_blocks(m: int, kernel: str) -> None:
    for n, k in cases.thinned([(7, 33), (385, 65), (400, 128), (769, 31)]):
        if not cases.fits(kernel, n, k):
            continue
        weight, activations = cases.int8_values(n, k), cases.int8_values(m, k, least=-128)
        actual = _ops.matmul_int8(activations, _ops.pack_int8(weight, kernel))
        assert torch.equal(actual, reference.matmul_int8(activations, weight)), f"{m=} {n=} {k=}"


@pytest.mark.parametrize(("m", "k", "n"), LARGE)
def test_matmul_of_large_layers(m: int, k: int, n: int, kernel: str, threads: int) -> None:
    weight, activations = cases.int8_values(n, k), cases.int8_values(m, k, least=-128)
    packed = _ops.pack_int8(weight, kernel)
    with cases.torch_threads(threads):
        actual = _ops.matmul_int8(activations, packed)
    assert torch.equal(actual, reference.matmul_int8(activations, weight))
    assert torch.equal(_ops.unpack_int8(packed, *weight.shape), weight)


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


def test_weights_of_minus_128_are_not_packed(kernel: str) -> None:
    values = cases.int8_values(9, 64)
    values[8, 63] = -128
    with pytest.raises(ValueError, match=r"qdata must lie in \[-127, 127\], but holds -128"):
        _ops.call(_ops.pack_int8, values, kernel)


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
