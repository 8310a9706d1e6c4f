"""Constant weights in a graph that are dequantized: their integers, scales and zero points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..quantize import FLOATS
from .constants import Constants
from .layers import Unfit, Weight
from .matching import arguments, aten, dtype_of, is_cast, is_view, is_view_or_cast, shape_of, spreads_over_rows, without
from .traced_patterns import dequantization_patterns

_torchao, _pt2e = torch.ops.torchao, torch.ops.quantized_decomposed
_INTEGERS = (torch.int8, torch.uint8)


def dequantized_weight(node: Node, constants: Constants) -> Weight | None:
    """What is dequantized by ``node``, (n, k); None if that is no constant that was quantized.

    Raises:
        Unfit: if it is quantized, but in a way that no op takes.
    """
    shape, node = shape_of(node) if isinstance(node, Node) else None, without(is_view, node)
    if not isinstance(node, Node):
        return None
    weight = _read(node, constants)
    if weight is not None and (shape is None or [size for size in shape if size != 1] != _sides(weight)):
        raise Unfit(f"its weight of shape {tuple(weight.qdata.shape)} is multiplied in the shape {shape}")
    return weight


def _sides(weight: Weight) -> list[int]:
    return [size for size in weight.qdata.shape if size != 1]


def _read(node: Node, constants: Constants) -> Weight | None:
    for packet, read in _READERS.items():
        if getattr(node.target, "overloadpacket", None) is packet:
            given = arguments(node)
            if not constants.is_constant(given["input"]):
                raise Unfit("its weight is dequantized as it runs, but is no constant of the graph")
            return read(given, constants)
    return _by_elements(node, constants)


def int8_weight(qdata: Tensor, scale: Tensor) -> Weight:
    """A weight (n, k) that is multiplied as it is."""
    return _checked(qdata, scale, None, qdata.shape[1], -128)


def _affine(given: dict[str, Any], constants: Constants) -> Weight:
    qdata = _value(given["input"], constants)
    block = [int(size) for size in given["block_size"]]
    if qdata.dim() != 2 or len(block) != 2:
        raise Unfit(f"its weight has the shape {tuple(qdata.shape)} with blocks of {block}, and a matrix is wanted")
    scale, zero_point = _value(given["scale"], constants), _optional(given["zero_point"], constants)
    if block[0] == qdata.shape[0] and block[1] == qdata.shape[1] and scale.numel() == 1:
        return _checked(qdata, scale, zero_point, block[1], given["quant_min"])
    if block[0] != 1:
        raise Unfit(f"its weight has blocks of {block}, and rows, groups within them, or the whole are wanted")
    return _checked(qdata, scale, zero_point, block[1], given["quant_min"])


def _per_channel(given: dict[str, Any], constants: Constants) -> Weight:
    qdata = _value(given["input"], constants)
    if given["axis"] != 0:
        raise Unfit(f"its weight has scales along axis {given['axis']}, and one for each output channel is wanted")
    scale, zero_point = _value(given["scales"], constants), _optional(given["zero_points"], constants)
    return _checked(qdata, scale, zero_point, qdata.shape[1], given["quant_min"])


def _per_channel_group(given: dict[str, Any], constants: Constants) -> Weight:
    qdata = _value(given["input"], constants)
    scale, zero_point = _value(given["scales"], constants), _optional(given["zero_points"], constants)
    return _checked(qdata, scale, zero_point, given["group_size"], given["quant_min"])


def _per_tensor(given: dict[str, Any], constants: Constants) -> Weight:
    qdata = _value(given["input"], constants)
    scale, zero_point = (
        torch.tensor([value]) if isinstance(value, int | float) else _value(value, constants)
        for value in (given["scale"], given["zero_point"])
    )
    return _checked(qdata, scale, zero_point, qdata.shape[-1], given["quant_min"])


_READERS: dict[Any, Callable[[dict[str, Any], Constants], Weight]] = {
    getattr(namespace, name): read
    for namespace, name, read in (
        (_torchao, "dequantize_affine", _affine),
        (_pt2e, "dequantize_per_channel", _per_channel),
        (_pt2e, "dequantize_per_channel_group", _per_channel_group),
        (_pt2e, "dequantize_per_tensor", _per_tensor),
    )
    if hasattr(namespace, name)
}


def _by_elements(node: Node, constants: Constants) -> Weight | None:
    for pattern in dequantization_patterns(dtype_of(node)) if dtype_of(node) in FLOATS else ():
        found = pattern.match(node)
        if found is None or not constants.is_constant(found[0].kwargs["input"]):
            continue
        given = found[0].kwargs
        qdata, scale = _value(given["input"], constants), _value(given["scale"], constants)
        if qdata.dim() != 2:
            raise Unfit(f"its weight has the shape {tuple(qdata.shape)}, and a matrix is wanted")
        if not spreads_over_rows(found[0], (aten.mul.Tensor, aten.sub.Tensor)):
            raise Unfit("its weight is scaled or shifted by column, and by row or by groups within rows is wanted")
        if scale.dim() == 3 and scale.shape[2] == 1:
            scale = scale[..., 0]
        # The range that was meant is not known here: four bits are judged by the values.
        groups = scale.shape[1] if scale.dim() == 2 else 1
        zero_point = _optional(given.get("zero_point"), constants)
        return _checked(qdata, scale, zero_point, qdata.shape[1] // groups, None)
    if is_cast(node) and constants.is_constant(node) and dtype_of(without(is_view_or_cast, node)) in _INTEGERS:
        raise Unfit(
            "its weight's integers are multiplied as floats, as where weights alone are quantized, and ops multiply "
            "them by integers"
        )
    if constants.is_constant(node) and _comes_from_integers(node):
        raise Unfit("its weight is dequantized, but not in a way that is known")
    return None


def _checked(qdata: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, least: Any) -> Weight:
    """Tells four bits from eight; what else a weight must be is checked where it is packed."""
    n, k = qdata.shape
    in_groups = scale.numel() not in (1, n) or group_size != k
    if zero_point is not None and not bool(zero_point.any()):
        zero_point = None
    four_bits = (least is not None and least >= -8) or (in_groups and bool(((qdata >= -8) & (qdata <= 7)).all()))
    if not four_bits:
        if in_groups:
            raise Unfit(f"its weight has 8 bits in groups of {group_size}, and 8 bits are taken per channel or as one")
        if zero_point is not None:
            raise Unfit("its 8-bit weight has zero points, and 8 bits are taken with symmetric scales")
        return Weight(qdata, scale.reshape(-1))
    if scale.numel() == 1:
        scale = scale.reshape(1, 1).expand(n, 1)
    groups = (n, k // group_size)
    if zero_point is not None:
        zero_point = zero_point.reshape(-1, 1).expand(n, 1) if zero_point.numel() == 1 else zero_point
        zero_point = zero_point.reshape(groups).to(torch.int8)
    return Weight(qdata, scale.reshape(groups), zero_point, group_size)


def _value(node: Any, constants: Constants) -> Tensor:
    value = constants.value(node)
    if value is None:
        raise Unfit("its weight, or what scales it, is no constant of the graph")
    return value


def _optional(node: Any, constants: Constants) -> Tensor | None:
    return None if node is None else _value(node, constants)


def _comes_from_integers(node: Node) -> bool:
    return any(dtype_of(source) in _INTEGERS or _comes_from_integers(source) for source in node.all_input_nodes)
