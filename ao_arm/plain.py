"""Quantized weights in plain form: integers with their scales, quantized here or checked as they come."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import ACLPackedLayout
from .quantize import (
    check_float,
    check_group_size,
    check_weight,
    quantize_weight,
    quantize_weight_in_groups,
)


@dataclass(frozen=True)
class Plain:
    """A quantized weight as it is written to checkpoints.

    Attributes:
        qdata: (n, k) int8; in [-8, 7] if the weight has 4 bits.
        scale: (n,) or, per tensor, (1,) float32; (n, k / group_size) float32 or bfloat16 if the weight has 4 bits.
        zero_point: (n, k / group_size) int8 in [-8, 7] if the weight has 4 bits and is asymmetric, else None.
    """

    qdata: Tensor
    scale: Tensor
    zero_point: Tensor | None = None

    @property
    def full_range(self) -> bool:
        """Whether ``qdata`` holds -128; False where there are no values to read, on the meta device and in traces."""
        values = self.qdata.detach()
        readable = type(values) is Tensor and values.device.type == "cpu" and values.numel() > 0
        return readable and int(values.amin()) == -128

    def dequantized(self) -> Tensor:
        """``(q - zero_point) * scale``, (n, k) float32."""
        n, k = self.qdata.shape
        count = self.scale.shape[1] if self.scale.dim() == 2 else 1
        scale = self.scale.to(torch.float32).view(self.scale.shape[0], count, 1)
        groups = self.qdata.to(torch.float32).view(n, count, k // count)
        if self.zero_point is not None:
            groups = groups - self.zero_point[..., None].to(torch.float32)
        return (groups * scale).view(n, k)


@torch.no_grad()
def quantized(weight: Tensor, layout: ACLPackedLayout, importance: Tensor | None) -> Plain:
    """A float weight, quantized as the layout says; see ``ACLPackedTensor.from_hp``."""
    check_weight(weight)
    weight = weight.detach()
    if not layout.is_grouped:
        return Plain(*quantize_weight(weight, layout.weight_granularity == "per_channel"))
    check_group_size(weight.shape[1], layout.group_size)
    symmetric, scale_dtype = layout.weight_mapping == "symmetric", getattr(torch, layout.scale_dtype)
    return Plain(*quantize_weight_in_groups(weight, layout.group_size, symmetric, scale_dtype, importance))


def check_activations(layout: ACLPackedLayout, scale: Tensor | None, zero_point: Tensor | None) -> None:
    """Raises ``ValueError`` unless static activations have a scale and a zero point as the kernels take them."""
    if not layout.is_static:
        if scale is not None or zero_point is not None:
            raise ValueError(f"act_scale and act_zero_point belong to static activations, not to {layout.scheme}")
        return
    for name, tensor, dtype in (
        ("act_scale", scale, torch.float32),
        ("act_zero_point", zero_point, getattr(torch, layout.activation_dtype)),
    ):
        given = "None" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != (1,):
            raise ValueError(f"{name} of {layout.scheme} activations must be {dtype} of shape (1,), not {given}")


def checked(
    data: Tensor, scale: Tensor, zero_point: Tensor | None, layout: ACLPackedLayout, dtype: torch.dtype
) -> tuple[Plain, ACLPackedLayout]:
    """A weight that is quantized already, and the layout that it has; see ``ACLPackedTensor.from_plain``."""
    check_float("dtype", dtype)
    for name, tensor in (("data", data), ("scale", scale), ("zero_point", zero_point)):
        if tensor is not None and tensor.device.type != "cpu":
            raise NotImplementedError(f"{name} is on the device {tensor.device}, and ao_arm packs on the CPU")
    return (_checked_grouped if layout.is_grouped else _checked_int8)(data, scale, zero_point, layout)


def _checked_int8(
    data: Tensor, scale: Tensor, zero_point: Tensor | None, layout: ACLPackedLayout
) -> tuple[Plain, ACLPackedLayout]:
    """An int8 weight, and the layout with the granularity that its scales have."""
    if data.dtype != torch.int8 or data.dim() != 2:
        raise ValueError(f"data must be a torch.int8 matrix (n, k), not {data.dtype} of shape {tuple(data.shape)}")
    n = data.shape[0]
    if scale.numel() not in (1, n):
        raise ValueError(f"scale must have 1 or n = {n} elements, not {scale.numel()}: groups along k are not int8")
    if not scale.is_floating_point() or not bool((scale.float().isfinite() & (scale.float() > 0)).all()):
        raise ValueError("scale must hold positive, finite floats")
    if zero_point is not None and bool((zero_point != 0).any()):
        raise NotImplementedError("int8 weights with zero points are not supported: quantize symmetrically")
    per_channel = scale.numel() == n and not (n == 1 and layout.weight_granularity == "per_tensor")
    layout = dataclasses.replace(layout, weight_granularity="per_channel" if per_channel else "per_tensor")
    return Plain(data, scale), layout


def _checked_grouped(
    data: Tensor, scale: Tensor, zero_point: Tensor | None, layout: ACLPackedLayout
) -> tuple[Plain, ACLPackedLayout]:
    """A 4-bit weight as values in [-8, 7], and the layout with the mapping and the scales' dtype that it has."""
    if data.dtype not in (torch.int8, torch.uint8) or data.dim() != 2:
        raise ValueError(
            f"data must be a matrix (n, k), torch.int8 in [-8, 7] or torch.uint8 in [0, 15], not {data.dtype} of shape "
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
