"""Checks of weights that come already quantized, as integers with their scales."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .layout import ACLPackedLayout
from .packing import Plain
from .quantize import LARGEST, check_group_size


def checked_int8(
    data: Tensor, scale: Tensor, zero_point: Tensor | None, layout: ACLPackedLayout
) -> tuple[Plain, ACLPackedLayout]:
    """An int8 weight, and the layout with the granularity that its scales have; see ``ACLPackedTensor.from_plain``."""
    if data.dtype != torch.int8 or data.dim() != 2:
        raise ValueError(f"data must be an int8 matrix (n, k), not {data.dtype} of shape {tuple(data.shape)}")
    n = data.shape[0]
    if scale.numel() not in (1, n):
        raise ValueError(f"scale must have 1 or n = {n} elements, not {scale.numel()}: groups along k are not int8")
    if not scale.is_floating_point() or not bool((scale.float().isfinite() & (scale.float() > 0)).all()):
        raise ValueError("scale must hold positive, finite floats")
    if zero_point is not None and bool((zero_point != 0).any()):
        raise NotImplementedError("int8 weights with zero points are not supported: quantize symmetrically")
    if data.numel() > 0 and int(data.amin()) < -LARGEST:
        raise ValueError(f"data holds -128; quantize with quant_min=-{LARGEST}, quant_max={LARGEST}")
    per_channel = scale.numel() == n and not (n == 1 and layout.weight_granularity == "per_tensor")
    layout = dataclasses.replace(layout, weight_granularity="per_channel" if per_channel else "per_tensor")
    return Plain(data, scale), layout


def checked_grouped(
    data: Tensor, scale: Tensor, zero_point: Tensor | None, layout: ACLPackedLayout
) -> tuple[Plain, ACLPackedLayout]:
    """A 4-bit weight as values in [-8, 7], and the layout with the mapping and the scales' dtype that it has."""
    if data.dtype not in (torch.int8, torch.uint8) or data.dim() != 2:
        raise ValueError(
            f"data must be a matrix (n, k), int8 in [-8, 7] or uint8 in [0, 15], not {data.dtype} of shape "
            f"{tuple(data.shape)}"
        )
    n, k = data.shape
    check_group_size(k, layout.group_size)
    groups = (n, k // layout.group_size)
    if scale.shape != groups:
        raise ValueError(f"scale must have the shape (n, k / group_size) = {groups}, not {tuple(scale.shape)}")
    # A negative scale lets the largest magnitude of a group take -8, whatever its sign.
    if not scale.is_floating_point() or not bool((scale.float().isfinite() & (scale != 0)).all()):
        raise ValueError("scale must hold finite floats other than 0")
    if zero_point is not None and zero_point.shape != groups:
        raise ValueError(f"zero_point must have the shape of scale, {groups}, not {tuple(zero_point.shape)}")
    shift = 8 if data.dtype == torch.uint8 else 0
    qdata = _shifted("data", data, shift)
    if zero_point is not None:
        zero_point = _shifted("zero_point", zero_point, shift)
    elif shift:
        zero_point = torch.zeros(groups, dtype=torch.int8) - shift
    if zero_point is not None and not bool(zero_point.any()):
        zero_point = None
    exact = bool((scale.to(torch.bfloat16).to(scale.dtype) == scale).all())
    layout = dataclasses.replace(
        layout,
        weight_mapping="symmetric" if zero_point is None else "asymmetric",
        scale_dtype="bfloat16" if exact and layout.scale_dtype == "bfloat16" else "float32",
    )
    return Plain(qdata, scale, zero_point), layout


def _shifted(name: str, values: Tensor, shift: int) -> Tensor:
    shifted = values.to(torch.int32) - shift
    if values.is_floating_point() and not torch.equal(shifted + shift, values):
        raise ValueError(f"{name} must hold integers")
    if shifted.numel() > 0 and not -8 <= int(shifted.amin()) <= int(shifted.amax()) <= 7:
        least, greatest = int(shifted.amin()) + shift, int(shifted.amax()) + shift
        raise ValueError(f"{name} must lie in [{shift - 8}, {shift + 7}], but reaches from {least} to {greatest}")
    return shifted.to(torch.int8)
