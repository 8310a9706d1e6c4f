"""What packed weights hold, in other schemes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .layout import ACLPackedLayout
from .linear import float_weight
from .plain import Plain, quantized
from .tensor import ACLPackedTensor

#: What a layout says of activations alone.
_OF_ACTIVATIONS = ("scheme", "activation_mapping", "activation_granularity", "activation_dtype")


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
