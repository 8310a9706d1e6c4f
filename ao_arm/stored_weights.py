"""What packed weights hold, as floats again and in other schemes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .layout import ACLPackedLayout
from .plain import Plain, quantized
from .tensor import ACLPackedTensor

#: What a layout says of activations alone.
_OF_ACTIVATIONS = ("scheme", "activation_mapping", "activation_granularity", "activation_dtype")


def float_weight(packed: ACLPackedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """What a packed weight multiplies activations by, which includes SmoothQuant's factors.

    Args:
        packed: (n, k).
        dtype: of the result; that of the weight by default.

    Returns:
        (n, k): ``(q - zero_point) * scale * act_pre_scale``, computed in float32 and rounded once.
    """
    weight = packed.plain().dequantized()
    if packed.act_pre_scale is not None:
        weight *= packed.act_pre_scale.float()
    return weight.to(dtype or packed.weight_dtype)


def in_another_scheme(
    packed: ACLPackedTensor,
    layout: ACLPackedLayout,
    act_scale: Tensor | None = None,
    act_zero_point: Tensor | None = None,
    importance: Tensor | None = None,
) -> ACLPackedTensor:
    """A packed weight, quantized again as ``layout`` says; its integers stay where only activations are another matter.

    For the arguments and errors see ``ACLPackedTensor.from_hp``.
    """
    plain = _plain(packed, layout, importance)
    made = (plain.qdata, plain.scale, layout, packed.weight_dtype)
    return ACLPackedTensor(*made, None, act_scale, act_zero_point, plain.zero_point)


def _plain(packed: ACLPackedTensor, layout: ACLPackedLayout, importance: Tensor | None) -> Plain:
    old = packed.get_layout()
    activations = {name: getattr(layout, name) for name in _OF_ACTIVATIONS}
    alike = old.is_grouped == layout.is_grouped and dataclasses.replace(old, **activations) == layout
    if alike and packed.act_pre_scale is None:
        return packed.plain()
    return quantized(float_weight(packed, torch.float32), layout, importance)
