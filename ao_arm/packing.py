"""Between a weight's plain contents and its packed bytes: a pair of functions for each kind of weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _ops, kernels
from .layout import ACLPackedLayout
from .plain import Plain


@dataclass(frozen=True)
class Packed:
    """A quantized weight as a kernel reads it.

    Attributes:
        packed_weight: the bytes, uint8.
        weight_scale: (n,) float32; None if the bytes hold the scales, as those of 4-bit weights do.
    """

    packed_weight: Tensor
    weight_scale: Tensor | None


def problem_of(n: int, k: int, layout: ACLPackedLayout, full_range: bool = False) -> kernels.Problem:
    """What a kernel is asked for."""
    if not layout.is_grouped:
        return kernels.Problem(n, k, full_range=full_range)
    return kernels.Problem(
        n, k, layout.group_size, layout.scale_dtype == "float32", layout.weight_mapping == "asymmetric"
    )


def select_kernel(plain: Plain, layout: ACLPackedLayout) -> str:
    """The id of the kernel that serves this weight here.

    Raises:
        ValueError: if none does.
    """
    n, k = plain.qdata.shape
    return kernels.select(*problem_of(n, k, layout, not layout.is_grouped and plain.full_range))


def pack(plain: Plain, layout: ACLPackedLayout) -> Packed:
    """Packs for the kernel that serves this weight here.

    Raises:
        ValueError: if no kernel does.
    """
    n = plain.qdata.shape[0]
    kernel, qdata = select_kernel(plain, layout), plain.qdata.contiguous()
    if layout.is_grouped:
        scale = plain.scale.detach().to(getattr(torch, layout.scale_dtype)).contiguous()
        zero_point = None if plain.zero_point is None else plain.zero_point.contiguous()
        return Packed(_ops.call(_ops.pack_int4, qdata, scale, zero_point, kernel), None)
    scale = plain.scale.detach().reshape(-1).to(torch.float32).expand(n).contiguous()
    return Packed(_ops.call(_ops.pack_int8, qdata, kernel), scale)


def unpack(packed: Packed, n: int, k: int, layout: ACLPackedLayout, rows: Tensor | None = None) -> Plain:
    """Exactly what was packed; with ``rows``, (m,) int64, these alone, in their order.

    Raises:
        ValueError: if there is no such row.
    """
    if packed.weight_scale is not None:
        qdata = _ops.call(_ops.unpack_int8, packed.packed_weight, n, k, rows)
        return Plain(qdata, packed.weight_scale if rows is None else packed.weight_scale[rows])
    problem = problem_of(n, k, layout)
    groups = (problem.group_size, problem.float_scales, problem.zero_points)
    qdata, scale, zero_point = _ops.call(_ops.unpack_int4, packed.packed_weight, n, k, *groups, rows)
    return Plain(qdata, scale, zero_point if problem.zero_points else None)
