"""``F.linear`` for a packed weight: which op it is, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import _ops
from .gradients import are_asked_for, straight_through
from .plain import Plain
from .quantize import check_float

_linear_int8_dynamic = _ops.linear_int8_dynamic
_linear_int8_quantized = _ops.linear_int8_quantized
_linear_int8_static = _ops.linear_int8_static
_linear_qta8a_qga4w = _ops.linear_qta8a_qga4w
_is_autocast_enabled = torch.is_autocast_enabled


class PackedWeight(Protocol):
    """What the ops read of a weight, as plain attributes: reading a tensor's shape or dtype costs microseconds.

    See ``ACLPackedTensor``.
    """

    packed_weight: Tensor
    weight_scale: Tensor | None
    act_pre_scale: Tensor | None
    act_scale: Tensor | None
    act_zero_point: Tensor | None
    weight_shape: tuple[int, int]
    transposed: bool
    _symmetric: bool | None
    _per_token: bool

    def plain(self) -> Plain:
        """What was packed."""


def linear(input: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` for a packed weight: one fused call that quantizes ``input``, multiplies, scales and adds the bias.

    Args:
        input: (..., k), float32, bfloat16 or float16. Under CPU autocast, float32 becomes the autocast dtype. For
            static activations also already quantized, of ``act_zero_point``'s dtype.
        weight: (n, k).
        bias: (n,) or None.

    Returns:
        (..., n) of the input's dtype; float32 if that is quantized.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, or the packed bytes cannot be read here.
    """
    if getattr(weight, "transposed", True):  # an ordinary tensor, whose input is packed, knows no such thing
        packed = weight if hasattr(weight, "transposed") else input
        raise NotImplementedError(f"F.linear takes {packed!r} as its weight only, and not transposed")
    return multiply(input, weight, bias)


def multiply(input: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """``linear``, whichever way the weight shows itself: also ``input @ weight + bias`` of a transposed one."""
    if _is_autocast_enabled("cpu") and input.dtype is torch.float32:
        input = input.to(torch.get_autocast_dtype("cpu"))
    if weight.act_pre_scale is not None:
        if not input.is_floating_point():
            raise ValueError(f"this weight has an act_pre_scale, for floats, but its input is {input.dtype}")
        input = (input * weight.act_pre_scale).to(input.dtype)
    if are_asked_for(input, bias):
        return straight_through(_Layer(weight), input, bias)
    return _fused(input, weight, bias)


@dataclass(frozen=True, eq=False)
class _Layer:
    """What gradients need of a weight: see ``gradients.DifferentiableLayer``."""

    weight: PackedWeight

    def __call__(self, input: Tensor, bias: Tensor | None) -> Tensor:
        return _fused(input, self.weight, bias)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.weight.plain().dequantized().to(dtype)


def float_weight(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """What a packed weight multiplies activations by, but for their rounding; includes SmoothQuant's factors.

    Args:
        weight: transposed or not.
        dtype: of the result.

    Returns:
        (n, k): ``(q - zero_point) * scale * act_pre_scale``, computed in float32 and rounded once.
    """
    floats = weight.plain().dequantized()
    if weight.act_pre_scale is not None:
        floats *= weight.act_pre_scale.float()
    return floats.to(dtype)


def _fused(input: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """The op that the layer is."""
    try:
        if weight.weight_scale is None:
            return _linear_qta8a_qga4w(input, weight.packed_weight, weight.weight_shape[0], bias)
        if weight.act_scale is None or weight.act_zero_point is None:
            if weight._symmetric is None:
                return _linear_int8_quantized(
                    *quantize_to_127(input), None, weight.packed_weight, weight.weight_scale, bias, input.dtype
                )
            return _linear_int8_dynamic(
                input, weight.packed_weight, weight.weight_scale, bias, weight._symmetric, weight._per_token
            )
        return _linear_int8_static(
            input, weight.packed_weight, weight.weight_scale, bias, weight.act_scale, weight.act_zero_point
        )
    except RuntimeError as error:
        if weight.weight_scale is None:  # the op takes more, with scales
            check_float("input", input.dtype)
        raise _ops.user_error(error) from None


def quantize_to_127(input: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes tokens symmetrically to [-127, 127], as the default of torchao up to 0.17 does (version 1 of
    ``Int8DynamicActivationInt8WeightConfig``, where activations are float32 or float16).

    Args:
        input: (..., k), float32, bfloat16 or float16.

    Returns:
        ``clamp(round(x * (1 / scale)), -127, 127)``, int8, and ``scale = max |x| / 127``, at least 1e-5, computed
        in the input's dtype, as float32 (..., 1). The scale of a token that holds a NaN or an infinity is that too.
    """
    check_float("input", input.dtype)
    if input.shape[-1] == 0:
        raise ValueError("input has no columns")
    scale = (input.abs().amax(dim=-1, keepdim=True) / 127.0).clamp(min=1e-5).float()
    return torch.round(input * (1.0 / scale)).clamp(-127, 127).to(torch.int8), scale


def linear_static(
    input: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    output_scale: Tensor | None = None,
    output_zero_point: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    output_min: float | None = None,
    output_max: float | None = None,
) -> Tensor:
    """A static layer of which the input may be quantized already, and the output be quantized as well.

    For the arguments see ``ao_arm.reference.linear_int8_static``; scale and zero point of the input are the weight's.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, the weight has no such scale, or its packed bytes cannot be
            read here.
    """
    if weight.weight_scale is None or weight.act_scale is None or weight.act_zero_point is None:
        raise ValueError("this weight has no scale for static activations")
    if weight.act_pre_scale is not None:
        input = (input * weight.act_pre_scale).to(input.dtype)
    given = (input, weight.packed_weight, weight.weight_scale, bias, weight.act_scale, weight.act_zero_point)
    wanted = (output_scale, output_zero_point, output_dtype, output_min, output_max)
    return _ops.call(_linear_int8_static, *given, *wanted)
