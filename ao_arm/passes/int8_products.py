"""int8 products in a graph: ``_int_mm``, and the scales, zero points and bias that follow it element by element."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..quantize import FLOATS
from .constants import Constants
from .layers import Activations, Layer, Unfit
from .matching import (
    AnyOf,
    Call,
    Source,
    Through,
    arguments,
    aten,
    captured,
    dtype_of,
    either_way,
    is_column,
    is_one,
    is_row,
    is_view,
    is_view_of_tokens,
    is_view_or_cast,
    match,
    shape_of,
    users,
    without,
)
from .quantized_activations import quantized
from .quantized_weights import int8_weight

PRODUCTS = frozenset((aten._int_mm.default,))
_ADD = (aten.add.Tensor, aten.add_.Tensor)
_SUB = (aten.sub.Tensor, aten.sub_.Tensor)
_MUL = (aten.mul.Tensor, aten.mul_.Tensor)

_sums = AnyOf(
    Call(_SUB, self=Call(PRODUCTS, self=captured("lhs"), mat2=captured("rhs")), other=captured("shift")),
    Call(PRODUCTS, self=captured("lhs"), mat2=captured("rhs")),
)
_scaled = either_way(_MUL, Through(is_view_or_cast, _sums, least=1), captured("scale"))
_zero = either_way(
    _MUL,
    Through(is_view_or_cast, either_way(_MUL, captured("zero_point"), captured("scale_of_zero"))),
    captured("column_sums"),
)
_corrected = AnyOf(
    Call(_SUB, self=Through(is_view_or_cast, _scaled), other=Through(is_view_or_cast, _zero)),
    _scaled,
)
_output = either_way(_MUL, Through(is_view_or_cast, _corrected), captured("weight_scale"))
_with_bias = Call(_ADD, self=Through(is_view_or_cast, _output), other=captured("bias"), alpha=1)
#: All that follows the product: from its sums to floats, ``((sums - shift) * scale - zero) * weight_scale + bias``.
EPILOGUE = Through(is_view_or_cast, AnyOf(_with_bias, _output))


def _is_widened(node: Any) -> bool:
    """Whether a node is a wider copy of int8 values, or a view of one."""
    return is_view_or_cast(node) and dtype_of(node) != torch.int8


def _is_float(node: Any) -> bool:
    """Whether a node is a copy of integers in a float dtype, or a view of one."""
    return is_view_or_cast(node) and dtype_of(node) in FLOATS


#: Activations with 128 added, as CPUs want them that multiply uint8 by int8.
_SHIFTED = Through(is_view_or_cast, Call(_ADD, self=Through(_is_widened, Source("integers", _is_widened)), other=128))


def layer_of_product(product: Node, constants: Constants) -> Layer:
    """The layer that a product belongs to.

    Raises:
        Unfit: if no op computes it.
    """
    given = arguments(product)
    transposed = constants.value(given["mat2"])
    if transposed is None:
        raise Unfit("its weight is no constant of the graph")
    n = transposed.shape[1]
    chain = [product]
    while len(users(chain[-1])) == 1 and _carries_on(users(chain[-1])[0]):
        chain.append(users(chain[-1])[0])
    for node in reversed(chain[1:]):
        found = match(EPILOGUE, node)
        if found is None or not _is_bias(found.kwargs.get("bias"), n):
            continue
        # A view behind the layer is none of it.
        while is_view(node):
            node = node.args[0]  # type: ignore[assignment]
        weight_scale = constants.value(found.kwargs["weight_scale"])
        if weight_scale is None:
            raise Unfit("its weight's scales are no constants of the graph")
        if weight_scale.numel() != 1 and not is_row(found.kwargs["weight_scale"]):
            raise Unfit(f"its weight's scales have the shape {tuple(weight_scale.shape)}, not ({transposed.shape[1]},)")
        weight = int8_weight(transposed.t(), weight_scale)
        activations = quantized(_activations(given["self"], found.kwargs, transposed.t(), constants), constants)
        between = tuple(reversed(chain[: chain.index(node)]))
        return Layer(node, activations, weight, found.kwargs.get("bias"), between)
    if len(users(chain[-1])) > 1:
        raise Unfit(f"more than one node uses {chain[-1].name}, an intermediate result")
    raise Unfit("what follows its int8 product is none of the epilogues that are known")


def _carries_on(node: Node) -> bool:
    return is_view_or_cast(node) or node.target in (*_ADD, *_SUB, *_MUL)


def _is_bias(bias: Any, n: int) -> bool:
    return bias is None or (isinstance(bias, Node) and shape_of(bias) == (n,))


def _activations(lhs: Node, found: dict[str, Any], qdata: torch.Tensor, constants: Constants) -> Activations:
    """The activations with the scale and the zero point that the epilogue has."""
    shifted = match(_SHIFTED, lhs) if dtype_of(lhs) == torch.uint8 else None
    sums = qdata.sum(dim=1, dtype=torch.int32)
    for name, lies in (("scale", is_column), ("zero_point", is_column), ("column_sums", is_row), ("shift", is_row)):
        if name in found and not lies(found[name]):
            raise Unfit(f"the shape of the {name.replace('_', ' ')} in its epilogue is {_shape(found[name])}")
    if (shifted is not None) != ("shift" in found):
        raise Unfit("uint8 activations are multiplied without taking off what was added to them, or the reverse")
    if "shift" in found and not _equal(found["shift"], 128 * sums, constants):
        raise Unfit("what is subtracted from its sums is not 128 times the sums of the weight's rows")
    if "column_sums" in found:
        if not _equal(found["column_sums"], sums, constants):
            raise Unfit("what its zero points are multiplied with are not the sums of the weight's rows")
        if without(is_view_or_cast, found["scale_of_zero"]) is not without(is_view_or_cast, found["scale"]):
            raise Unfit("its zero points have other scales than its activations")
    integers = lhs if shifted is None else shifted.kwargs["integers"]
    scale = without(is_view, found["scale"])
    zero_point = without(is_view, without(_is_float, found["zero_point"])) if "zero_point" in found else None
    known = constants.value(scale)
    if known is not None and known.numel() == 1:
        return Activations(integers, float(known), _integer(zero_point, constants), False)
    shape = shape_of(scale)
    per_token = shape is None or not all(is_one(size) for size in shape)
    return Activations(without(is_view_of_tokens, integers), scale, zero_point, per_token)


def _shape(node: Any) -> Any:
    return shape_of(node) if isinstance(node, Node) else ()


def _integer(zero_point: Any, constants: Constants) -> Any:
    value = constants.value(zero_point) if isinstance(zero_point, Node) else None
    return zero_point if value is None or value.numel() != 1 else int(value)


def _equal(node: Any, wanted: torch.Tensor, constants: Constants) -> bool:
    value = constants.value(node)
    return value is not None and value.numel() == wanted.numel() and bool((value.reshape(-1) == wanted).all())
