"""A checkpoint of each scheme and of experts, and what becomes of it when bits are flipped or its end is cut off."""

import io
from collections.abc import Iterable
from typing import Any

import cases
import torch
from torch import Tensor

from ao_arm import ACLPackedExperts, ACLPackedTensor
from ao_arm.affine_quantized import as_weight
from ao_arm.experts import packed_in

N, K = 8, 96


def weight_of(scheme: str) -> ACLPackedTensor:
    """With factors of activations, as SmoothQuant's."""
    torch.manual_seed(0)
    weight = cases.packed(torch.randn(N, K), cases.SCHEMES[scheme])
    weight.act_pre_scale = torch.rand(K) + 0.5
    return weight


def experts_of(scheme: str, count: int = 3) -> ACLPackedExperts:
    torch.manual_seed(0)
    return ACLPackedExperts.stack(count, lambda _: cases.packed(torch.randn(N, K), cases.SCHEMES[scheme]))


def checkpoint() -> bytes:
    weights = {scheme: as_weight(weight_of(scheme)) for scheme in cases.SCHEMES}
    return cases.saved({**weights, "experts": experts_of("grouped", 2)}).getvalue()


def contents(content: bytes) -> list[tuple[Any, ...]] | None:
    """All that the weights of a file hold; None if it is refused, by torch or by ao_arm."""
    try:
        loaded: Any = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # torch names what it finds in many ways
        return None
    found = []
    for weight in loaded.values() if isinstance(loaded, dict) else ():
        packed = packed_in(weight) if isinstance(weight, Tensor) else None
        if packed is None:  # no state dict of ours, which a model does not take
            continue
        plain = packed.plain()
        activations = () if isinstance(packed, ACLPackedExperts) else packed._inner().values()
        tensors = (plain.qdata, plain.scale, plain.zero_point, *activations)
        stored = [None if tensor is None else tensor.tolist() for tensor in tensors]
        found.append((packed._layout, packed.weight_dtype, packed.transposed, stored))
    return found


def refused_when_flipped(places: Iterable[int]) -> int:
    """Flips a bit at each place; how many such files are refused. In the others no weight may be another one.

    Not even a factor of activations or a setting. Entries and their names are torch's, which misses them when it loads.
    """
    content = checkpoint()
    expected, refused = contents(content), 0
    assert expected is not None and len(expected) == len(cases.SCHEMES) + 1
    for at in places:
        if at >= len(content):
            break
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        found = contents(bytes(damaged))
        refused += found is None
        assert all(weight in expected for weight in found or ()), f"a flipped bit of byte {at} was not noticed"
    return refused


def refused_when_cut(sizes: Iterable[int]) -> int:
    """Cuts the file off at each size; all of them have to be refused."""
    content, refused = checkpoint(), 0
    for size in sizes:
        if size >= len(content):
            break
        assert contents(content[:size]) is None, f"{size} of {len(content)} bytes were taken for all"
        refused += 1
    return refused
