"""Float products in a graph whose operands were quantized: dequantized activations by a dequantized weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from .constants import Constants
from .layers import Activations, Layer, OutputQuantization, Unfit
from .matching import arguments, aten, is_view, is_view_of_tokens, shape_of, users, without
from .quantized_activations import dequantized, is_scale
from .quantized_weights import dequantized_weight

_TRANSPOSES = frozenset(
    (
        aten.mT.default,
        aten.numpy_T.default,
        aten.permute.default,
        aten.permute_copy.default,
        aten.t.default,
        aten.t_copy.default,
        aten.transpose.int,
        aten.transpose_copy.int,
    )
)


@dataclass(frozen=True)
class _Operands:
    activations: Node
    weight: Any
    transposed: bool
    bias: Any


def _linear(given: dict[str, Any]) -> _Operands:
    return _Operands(given["input"], given["weight"], False, given["bias"])


def _mm(given: dict[str, Any]) -> _Operands:
    return _Operands(given["self"], given.get("mat2", given.get("other")), True, None)


def _addmm(given: dict[str, Any]) -> _Operands:
    if (given["beta"], given["alpha"]) != (1, 1):
        raise Unfit(f"its product is scaled by {given['alpha']}, and its bias by {given['beta']}")
    return _Operands(given["mat1"], given["mat2"], True, given["self"])


_READERS: dict[Any, Callable[[dict[str, Any]], _Operands]] = {
    aten.linear.default: _linear,
    aten.mm.default: _mm,
    aten.bmm.default: _mm,
    aten.matmul.default: _mm,
    aten.addmm.default: _addmm,
}
PRODUCTS = frozenset(_READERS)
_ACTIVATION_FUNCTIONS: dict[Any, Callable[[dict[str, Any]], tuple[Any, Any]]] = {
    aten.relu.default: lambda given: (0.0, None),
    aten.relu_.default: lambda given: (0.0, None),
    aten.relu6.default: lambda given: (0.0, 6.0),
    aten.hardtanh.default: lambda given: (given["min_val"], given["max_val"]),
    aten.hardtanh_.default: lambda given: (given["min_val"], given["max_val"]),
    aten.clamp.default: lambda given: (given["min"], given["max"]),
    aten.clamp_.default: lambda given: (given["min"], given["max"]),
    aten.clamp_min.default: lambda given: (given["min"], None),
    aten.clamp_max.default: lambda given: (None, given["max"]),
}
_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def layer_of_product(product: Node, constants: Constants) -> Layer | None:
    """The layer that a product belongs to; None if its weight was not quantized.

    Raises:
        Unfit: if it was, but no op computes the layer.
    """
    operands = _READERS[product.target](arguments(product))
    place, transposed = _before_transposes(operands.weight, operands.transposed)
    weight = dequantized_weight(place, constants)
    if weight is None:
        return None
    if transposed:
        raise Unfit("its weight is multiplied as (k, n), not as (n, k)")
    n, k = weight.qdata.shape
    if operands.bias is not None and shape_of(operands.bias) != (n,):
        raise Unfit(f"its bias has the shape {shape_of(operands.bias)}, not ({n},)")
    activations = _activations(operands.activations, constants)
    shape = shape_of(activations.integers)
    if shape is None or not isinstance(shape[-1], int) or shape[-1] != k:
        raise Unfit(f"its activations have the shape {shape}, but its weight ({n}, {k})")
    layer = Layer(product, activations, weight, operands.bias)
    return _with_output(layer, constants) if _may_be_static(layer) else layer


def _before_transposes(node: Any, transposed: bool) -> tuple[Any, bool]:
    """The (n, k) matrix that is given to a product, past views and transposes; whether it arrives as (k, n)."""
    while isinstance(node, Node):
        if node.target in _TRANSPOSES:
            transposed = transposed != _swaps(node)
        elif not is_view(node) or not _same_but_for_ones(node):
            return node, transposed
        node = node.args[0]
    return node, transposed


def _swaps(node: Node) -> bool:
    """Whether a transpose exchanges the last two dimensions, and no others.

    Raises:
        Unfit: if it moves others.
    """
    given = arguments(node)
    rank = len(shape_of(node) or ())
    if "dims" in given:
        order = [dim % rank for dim in given["dims"]]
    else:
        order = list(range(rank))
        one, other = (dim % rank for dim in (given.get("dim0", 0), given.get("dim1", 1)))
        order[one], order[other] = order[other], order[one]
    if order == list(range(rank)):
        return False
    if order != [*range(rank - 2), rank - 1, rank - 2]:
        raise Unfit(f"the dimensions of its weight are permuted to {order}")
    return True


def _same_but_for_ones(view: Node) -> bool:
    before, after = (
        [size for size in shape_of(node) or () if not isinstance(size, int) or size != 1]
        for node in (view.args[0], view)
        if isinstance(node, Node)
    )
    return str(before) == str(after)


def _activations(node: Node, constants: Constants) -> Activations:
    place = without(is_view_of_tokens, node)
    found = dequantized(place, constants) if isinstance(place, Node) else None
    if found is None:
        raise Unfit("its weight is quantized, but its activations are floats, or quantized in a way that is not known")
    return found


def _may_be_static(layer: Layer) -> bool:
    return not layer.activations.per_token and layer.weight.group_size == 0 and layer.activations.mapping is None


def _with_output(layer: Layer, constants: Constants) -> Layer:
    """The layer with an activation function and a quantization behind it, if nothing else uses what is between."""
    node, least, greatest, between = layer.node, None, None, [layer.node]
    while len(users(node)) == 1:
        node = users(node)[0]
        if node.target in _ACTIVATION_FUNCTIONS:
            low, high = _ACTIVATION_FUNCTIONS[node.target](arguments(node))
            if not all(bound is None or isinstance(bound, int | float) for bound in (low, high)):
                return layer
            least, greatest = _clamped(least, greatest, low, high)
        elif node.target is _QUANTIZE:
            given = arguments(node)
            dtype = given["dtype"]
            whole = _RANGES.get(dtype) == (given["quant_min"], given["quant_max"])
            if not whole or not _is_quantization(given["scale"], given["zero_point"], dtype):
                return layer
            output = OutputQuantization(given["scale"], given["zero_point"], dtype, least, greatest)
            return replace(layer, node=node, between=tuple(reversed(between)), output=output)
        elif not is_view_of_tokens(node):
            return layer
        between.append(node)
    return layer


def _is_quantization(scale: Any, zero_point: Any, dtype: torch.dtype) -> bool:
    """Whether an op can quantize its output so."""
    low, high = _RANGES[dtype]
    return isinstance(scale, float) and is_scale(scale) and isinstance(zero_point, int) and low <= zero_point <= high


def _clamped(
    least: float | None, greatest: float | None, low: float | None, high: float | None
) -> tuple[float | None, float | None]:
    """The bounds of what is clamped to [least, greatest] and then to [low, high]."""

    def inside(bound: float) -> float:
        bound = bound if high is None else min(bound, high)
        return bound if low is None else max(bound, low)

    return (low if least is None else inside(least)), (high if greatest is None else inside(greatest))
