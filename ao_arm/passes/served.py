"""The layers of a graph that are ops of ours."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from .. import _ops
from .constants import Constants
from .matching import arguments, dtype_of
from .names import name_of
from .shared_inputs import SHARINGS


@dataclass(frozen=True)
class ServedLayer:
    """A layer that is an op of ours.

    Attributes:
        name: the module that it comes from, or else the name of the op's node.
        scheme: how it is quantized, in words, with ``{weights}`` where the packed bytes tell more.
        packed_weight: the bytes; None if they are no constant of the graph.
    """

    name: str
    scheme: str
    packed_weight: Tensor | None


def served_layers(module: GraphModule, constants: Constants) -> Iterator[ServedLayer]:
    """The layers that are ops of ours, in the graph's order."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _SCHEMES:
            given = arguments(node)
            packed = constants.value(given["packed_weight"])
            yield ServedLayer(name_of(node), _SCHEMES[node.target](given), packed)
        elif node.op == "call_function" and node.target in _SHARED:
            yield from _sharing(node, constants)


def _sharing(call: Node, constants: Constants) -> Iterator[ServedLayer]:
    """The layers of a call that serves several: each is named by what takes its output."""
    op, sharing = _SHARED[call.target]
    takers = {user.args[1]: user for user in call.users if user.target is operator.getitem}
    layers = sharing.each(call)
    for place, given in enumerate(layers):
        name = name_of(takers[place]) if place in takers else f"{call.name}[{place}]"
        scheme = f"{_SCHEMES[op](given)}, input shared by {len(layers)}"
        yield ServedLayer(name, scheme, constants.value(given["packed_weight"]))


def _dynamic(given: dict[str, Any]) -> str:
    mapping = "symmetric" if given["symmetric"] else "asymmetric"
    return f"int8 dynamic ({mapping}, {'per_token' if given['per_token'] else 'per_tensor'} x {{weights}})"


def _static(given: dict[str, Any]) -> str:
    dtype, output = (_integers(given[f"{place}_zero_point"]) for place in ("input", "output"))
    chained = f" -> {output}" if output else ""
    return f"int8 static (asymmetric {dtype}, per_tensor x {{weights}}){chained}"


def _quantized(given: dict[str, Any]) -> str:
    return "int8 dynamic (quantized in the graph, per_token x {weights})"


def _grouped(given: dict[str, Any]) -> str:
    activations = "asymmetric" if given.get("act_scale") is None else "quantized in the graph"
    return f"int4 grouped ({activations}, per_token x {{weights}})"


def _integers(zero_point: Node | None) -> str:
    return "" if zero_point is None else str(dtype_of(zero_point) or "8 bits").removeprefix("torch.")


_SCHEMES: dict[Any, Callable[[dict[str, Any]], str]] = {
    _ops.linear_int8_dynamic: _dynamic,
    _ops.linear_int8_static: _static,
    _ops.linear_int8_quantized: _quantized,
    _ops.linear_qta8a_qga4w: _grouped,
}
#: By an op that serves several layers, the op that serves one, and how it becomes the other.
_SHARED = {sharing.op: (op, sharing) for op, sharing in SHARINGS.items()}
