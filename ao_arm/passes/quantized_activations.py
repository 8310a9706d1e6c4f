"""Activations in a graph: how torchao's ops, PT2E's, or what Inductor makes of torchao's have quantized them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from ..quantize import FLOATS
from .constants import Constants
from .layers import Activations, Unfit
from .matching import (
    arguments,
    aten,
    dtype_of,
    is_view,
    is_view_of_tokens,
    is_view_or_cast,
    shape_of,
    spreads_over_rows,
    without,
)
from .traced_patterns import QuantizationRule, dequantization_patterns, quantization_patterns

_torchao, _pt2e = torch.ops.torchao, torch.ops.quantized_decomposed
_EPSILONS = (None, float(torch.finfo(torch.float32).eps))
_RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
_CLAMPS = (aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
_PER_TENSOR = ("default", "tensor", "tensor2")


def dequantized(node: Node, constants: Constants) -> Activations | None:
    """What is dequantized by ``node``; None if it is no such thing.

    Raises:
        Unfit: if it is, but in a way that no op takes.
    """
    found = _dequantized_by_op(node, constants) or _dequantized_by_elements(node, constants)
    return None if found is None else quantized(found, constants)


def quantized(found: Activations, constants: Constants) -> Activations:
    """The same activations, with the floats they come from if an op of ours makes the same integers of them.

    Raises:
        Unfit: if no op takes such integers, scales or zero points.
    """
    integers = without(is_view_of_tokens, found.integers)
    dtype = dtype_of(integers)
    if dtype not in _RANGES or (dtype == torch.uint8 and found.per_token):
        raise Unfit(f"its activations are {dtype}, and the ops take int8 and, with one scale, uint8")
    if isinstance(found.scale, float) and not is_scale(found.scale):
        raise Unfit(f"its activations have the scale {found.scale}, and a finite positive float32 is wanted")
    found = replace(found, zero_point=_zero_point(found, dtype, constants))
    return (
        _from_floats_by_op(integers, found)
        or _from_floats_by_elements(integers, found)
        or _from_floats_by_scale(integers, found, constants)
        or found
    )


def is_scale(number: float) -> bool:
    """Whether a number is a positive one that float32 holds, and so does its reciprocal."""
    least, greatest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    return math.isfinite(number) and number > 0 and all(least <= part <= greatest for part in (number, 1.0 / number))


def _zero_point(found: Activations, dtype: torch.dtype, constants: Constants) -> Any:
    """A single constant zero point as an integer, any other as it is.

    Raises:
        Unfit: if it is none, or may be none, that an op takes.
    """
    zero_point: Any = found.zero_point
    if isinstance(zero_point, Node):
        value = constants.value(zero_point)
        if value is None or value.numel() != 1:
            kind = dtype_of(zero_point)
            if kind is None or kind.is_floating_point or kind == torch.bool:
                raise Unfit(f"its activations have zero points of {kind}, and integers are wanted")
            if not found.per_token and kind != dtype and not _is_within(zero_point, *_RANGES[dtype]):
                raise Unfit(f"its activations have a zero point of {kind}, which may be none of {dtype}")
            return zero_point
        zero_point = value.item()
    if zero_point is None:
        return None
    least, greatest = _RANGES[dtype]
    if zero_point != int(zero_point) or not least <= zero_point <= greatest:
        raise Unfit(
            f"its activations have the zero point {zero_point}, and an integer in [{least}, {greatest}] is wanted"
        )
    return int(zero_point)


def _is_within(zero_point: Node, least: int, greatest: int) -> bool:
    """Whether what computes a zero point keeps it in a range: an op that chose it for that range, or a clamp."""
    low, high = None, None
    node: Any = zero_point
    while isinstance(node, Node):
        node = without(is_view_or_cast, node)
        if getattr(node.target, "__name__", "") == "getitem" and "choose_qparams" in str(node.args[0].target):
            given = arguments(node.args[0])
            low, high = given.get("quant_min"), given.get("quant_max")
            break
        if node.target not in _CLAMPS:
            break
        given = arguments(node)
        low = given.get("min") if low is None else low
        high = given.get("max") if high is None else high
        node = given["self"]
    return all(isinstance(bound, int) and least <= bound <= greatest for bound in (low, high))


def _overloads(namespace: Any, name: str, kinds: Sequence[str] = ("default",)) -> frozenset[Any]:
    packet = getattr(namespace, name, None)
    return frozenset(getattr(packet, kind) for kind in kinds if packet is not None and hasattr(packet, kind))


_QUANTIZE_AFFINE = _overloads(_torchao, "quantize_affine")
_CHOOSE_AFFINE = _overloads(_torchao, "choose_qparams_affine")
_QUANTIZE_PER_TENSOR = _overloads(_pt2e, "quantize_per_tensor", _PER_TENSOR)
#: Of each op that dequantizes, the names of dtype, scale and zero point; whether it has blocks, and is per token.
_DEQUANTIZE: dict[Any, tuple[str, str, str, bool, bool]] = {
    **dict.fromkeys(_overloads(_torchao, "dequantize_affine"), ("input_dtype", "scale", "zero_point", True, False)),
    **dict.fromkeys(
        _overloads(_pt2e, "dequantize_per_tensor", _PER_TENSOR), ("dtype", "scale", "zero_point", False, False)
    ),
    **dict.fromkeys(_overloads(_pt2e, "dequantize_per_token"), ("dtype", "scales", "zero_points", False, True)),
}


def _dequantized_by_op(node: Node, constants: Constants) -> Activations | None:
    if node.target not in _DEQUANTIZE:
        return None
    given, (dtype, scales, zero_points, in_blocks, per_token) = arguments(node), _DEQUANTIZE[node.target]
    if in_blocks:
        per_token = _per_token(given["block_size"], shape_of(given["input"]))
    _check_range(given, given[dtype])
    scale = _number(given[scales], constants)
    # Of a single row, the block is a token and the whole.
    return Activations(given["input"], scale, given[zero_points], per_token and not isinstance(scale, float))


def _dequantized_by_elements(node: Node, constants: Constants) -> Activations | None:
    for pattern in dequantization_patterns(dtype_of(node)) if dtype_of(node) in FLOATS else ():
        found = pattern.match(node)
        if found is not None:
            given = found[0].kwargs
            integers, scale = given["input"], given["scale"]
            if constants.is_constant(integers):
                return None
            shape, scales = shape_of(integers), shape_of(scale)
            if shape is None or scales is None:
                raise Unfit("the shapes of its activations and their scales are not known")
            if not spreads_over_rows(found[0], (aten.mul.Tensor, aten.sub.Tensor)):
                raise Unfit(f"its activations of shape {shape} are scaled or shifted by column")
            per_token = str(shape[:-1]) == str(scales[: len(shape) - 1])
            if not per_token and any(size != 1 for size in scales):
                raise Unfit(f"its activations of shape {shape} have scales of shape {scales}, not one for each token")
            return Activations(integers, _number(scale, constants), given.get("zero_point"), per_token)
    return None


def _from_floats_by_op(integers: Node, found: Activations) -> Activations | None:
    if integers.target not in _QUANTIZE_AFFINE or not isinstance(found.scale, Node):
        return None
    given = arguments(integers)
    chosen = [_chosen(given[name], place) for place, name in enumerate(("scale", "zero_point"))]
    if chosen[0] is None or chosen[0] is not chosen[1] or given["output_dtype"] is not torch.int8:
        return None
    rule = arguments(chosen[0])
    floats = without(is_view_of_tokens, rule["input"])
    if floats is not without(is_view_of_tokens, given["input"]):
        return None
    if not _same_node(given["scale"], found.scale) or not _same_zero_point(given["zero_point"], found, rule):
        return None
    if rule["eps"] not in _EPSILONS or any(_range(one, torch.int8) != (-128, 127) for one in (given, rule)):
        return None
    own_dtype = rule["scale_dtype"] is not torch.float32
    mapping = rule["mapping_type"].lower()
    if mapping not in ("symmetric", "asymmetric") or str(rule["block_size"]) != str(given["block_size"]):
        return None
    return _with_rule(found, floats, QuantizationRule(mapping, dtype_of(floats) or torch.float32, own_dtype))


def _from_floats_by_elements(integers: Node, found: Activations) -> Activations | None:
    if not isinstance(found.scale, Node):
        return None
    for dtype in FLOATS:
        for rule, pattern in quantization_patterns(dtype):
            match = pattern.match(integers)
            if match is None or dtype_of(match[0].kwargs["input"]) != dtype:
                continue
            _, scale, zero_point = match[1]
            symmetric = rule.mapping == "symmetric" and found.zero_point is None
            if not _same_node(scale, found.scale) or not (symmetric or _same_node(zero_point, found.zero_point)):
                continue
            floats = match[0].kwargs["input"]
            ranges = [node for node in match[0].nodes if node.target in (aten.amin.default, aten.amax.default)]
            if all(_ranges_of_tokens(node) == found.per_token for node in ranges):
                return _with_rule(found, floats, rule)
    return None


def _with_rule(found: Activations, floats: Node, rule: QuantizationRule) -> Activations | None:
    """The op's own rule is torchao's with float32 scales; but in float32 it rounds an asymmetric range only once."""
    same = rule.dtype == torch.float32 or (rule.mapping == "symmetric" and not rule.own_dtype)
    if not same:
        return None
    return Activations(found.integers, found.scale, found.zero_point, found.per_token, floats, rule.mapping)


def _from_floats_by_scale(integers: Node, found: Activations, constants: Constants) -> Activations | None:
    """By a scale that is known, or that another op chose."""
    dtype = dtype_of(integers)
    if found.per_token or dtype is None:
        return None
    if integers.target in _QUANTIZE_PER_TENSOR:
        given = arguments(integers)
    elif integers.target in _QUANTIZE_AFFINE:
        given = arguments(integers)
        if not isinstance(found.scale, float) and _per_token(given["block_size"], shape_of(given["input"])):
            return None
    else:
        return None
    scale = _number(given["scale"], constants)
    same_scale = scale == found.scale if isinstance(scale, float) else _same_node(scale, found.scale)
    same_zero_point = given["zero_point"] == found.zero_point or _same_node(given["zero_point"], found.zero_point)
    if not same_scale or not same_zero_point or _range(given, dtype) != _RANGES[dtype]:
        return None
    floats = given["input"]
    if dtype_of(floats) != torch.float32 and integers.target in _QUANTIZE_AFFINE:
        # With scales of the activations' own dtype the integers are rounded in it, which no op of ours does.
        known = constants.value(given["scale"])
        if known is None or known.dtype != torch.float32:
            return None
    return Activations(found.integers, scale, found.zero_point, False, floats, None)


def _range(given: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """The range that integers are quantized to, which torchao may leave out if it is all of the dtype's."""
    bounds = zip((given["quant_min"], given["quant_max"]), _RANGES[dtype], strict=True)
    least, greatest = (widest if bound is None else bound for bound, widest in bounds)
    return least, greatest


def _check_range(given: dict[str, Any], dtype: torch.dtype) -> None:
    if dtype not in _RANGES:
        raise Unfit(f"its activations are {dtype}, and the ops take int8 and, with one scale, uint8")
    least, greatest = _RANGES[dtype]
    low, high = (bound if isinstance(bound, int) else None for bound in _range(given, dtype))
    if low is not None and high is not None and not least <= low <= high <= greatest:
        raise Unfit(f"its activations lie in [{low}, {high}], which {dtype} cannot hold")


def _per_token(block_size: Sequence[Any], shape: Sequence[Any] | None) -> bool:
    """Whether blocks are rows; not, if the only block is the whole.

    Raises:
        Unfit: for all other blocks.
    """
    if shape is None or len(block_size) != len(shape):
        raise Unfit(f"its activations have blocks of {_text(block_size)} for the shape {shape}")
    if str(_text(block_size[-1:])) == str(_text(shape[-1:])):
        if all(size == 1 for size in block_size[:-1] if isinstance(size, int)) and all(
            isinstance(size, int) for size in block_size[:-1]
        ):
            return True
        if [_text([size]) for size in block_size] == [_text([size]) for size in shape]:
            return False
    raise Unfit(
        f"its activations of shape {_text(shape)} are quantized in blocks of {_text(block_size)}: neither rows nor all"
    )


def _text(sizes: Sequence[Any]) -> str:
    return str([str(size.meta.get("val", size)) if isinstance(size, Node) else str(size) for size in sizes])


def _ranges_of_tokens(node: Node) -> bool:
    """Whether a least or greatest value is taken of each row."""
    dims, shape = arguments(node)["dim"], shape_of(node.args[0])  # type: ignore[arg-type]
    return shape is not None and list(dims) in ([-1], [len(shape) - 1])


def _chosen(node: Any, place: int) -> Node | None:
    """The call that chose a scale (place 0) or a zero point (1)."""
    node = without(is_view, node)
    is_item = isinstance(node, Node) and getattr(node.target, "__name__", "") == "getitem" and node.args[1] == place
    return node.args[0] if is_item and node.args[0].target in _CHOOSE_AFFINE else None


def _same_node(one: Any, other: Any) -> bool:
    return isinstance(one, Node) and without(is_view, one) is without(is_view, other)


def _same_zero_point(node: Any, found: Activations, rule: dict[str, Any]) -> bool:
    return _same_node(node, found.zero_point) or (found.zero_point is None and rule["mapping_type"] == "SYMMETRIC")


def _number(scale: Any, constants: Constants) -> Any:
    """A single constant scale as a number, any other as it is."""
    value = constants.value(scale) if isinstance(scale, Node) and constants.is_constant(scale) else None
    return float(value) if value is not None and value.numel() == 1 else scale
