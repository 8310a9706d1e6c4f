"""Static layers that follow each other, with nothing but a ReLU or a clamp between, keep int8 between them."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional

from ..affine_quantized import packed_weight_of
from ..gradients import refuse
from ..linear import linear_static
from ..tensor import ACLPackedTensor

_OP = torch.ops.ao_arm.linear_int8_static.default
_Bounds = tuple[float, float]
_NONE: _Bounds = (-torch.inf, torch.inf)


class ChainedLinear(torch.nn.Linear):
    """A static layer in a chain: takes quantized input, or gives quantized output, or both.

    It shares weight and bias with the layer that it replaces.

    Args:
        layer: the layer to replace.
        following: the layer that takes the output as it is quantized, or None for a float output.
        bounds: what lies between: the output's least and greatest value.
    """

    def __init__(self, layer: torch.nn.Linear, following: torch.nn.Linear | None, bounds: _Bounds) -> None:
        torch.nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in layer.__dict__.items() if name not in ("extra_repr",)})
        # In a tuple, so that it does not become a part of this layer.
        self.following = (following,)
        self.bounds = bounds

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output, (..., n): int8 or uint8 for a following layer, else of the weight's dtype.

        Raises:
            NotImplementedError: if the input requires a gradient: integers between layers have none.
        """
        refuse(input, "a chain of static layers")
        (following,) = self.following
        weight = _packed(self)
        quantization = None if following is None else _packed(following)
        return linear_static(
            input,
            weight,
            self.bias,
            None if quantization is None else quantization.act_scale,
            None if quantization is None else quantization.act_zero_point,
            None if quantization is not None or input.is_floating_point() else weight.weight_dtype,
            *self.bounds,
        )

    def extra_repr(self) -> str:
        """The layer's shape and what it gives on."""
        least, greatest = self.bounds
        given = "gives floats" if self.following == (None,) else f"gives int8 within [{least}, {greatest}]"
        return f"{super().extra_repr()}, {given}, weight={_packed(self)!r}"


def chain_static_layers(model: torch.nn.Module) -> GraphModule:
    """Lets static layers hand int8 to each other, which saves dequantizing and quantizing again.

    Recognised are a static layer, then any number of ReLU, ReLU6, Hardtanh, clamp, Dropout or Identity, then a static
    layer, where nothing else uses what lies between. The first layer requantizes its sums with the second one's scale
    and zero point, as ``ao_arm.reference.linear_int8_static`` says, and clamps them as the activations would; the
    values between are within one step of those without this pass.

    Args:
        model: a module that ``torch.fx.symbolic_trace`` can trace, or a ``GraphModule``, such as ``.module()`` of an
            exported program. In evaluation mode. It is left as it was; weights are shared with it.

    Returns:
        A module that computes the same, with the same names of parameters.

    Raises:
        ValueError: if the model cannot be traced, or is in training mode.
    """
    if model.training and not isinstance(model, GraphModule):
        raise ValueError("the model is in training mode, in which Dropout drops values: call model.eval() first")
    chained = _traced(model)
    for node in reversed(list(chained.graph.nodes)):
        if not _is_static_layer(chained, node) or not isinstance(node.args[0], Node):
            continue
        source, bounds, between = _source(chained, node.args[0])
        if source is None or _takes_floats_only(chained, node):
            continue
        _link(chained, source, node, bounds)
        node.replace_input_with(node.args[0], source)
        for activation in between:
            chained.graph.erase_node(activation)
    chained.delete_all_unused_submodules()
    chained.graph.lint()
    chained.recompile()
    return chained


def _traced(model: torch.nn.Module) -> GraphModule:
    if isinstance(model, GraphModule):
        return GraphModule(_shallow(model), _copy_graph(model))
    try:
        return torch.fx.symbolic_trace(model)
    except Exception as error:  # whatever the model's code raises when it meets a proxy
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__}: {error}. Pass a part of it that has no data-dependent "
            "control flow, or the module() of what torch.export makes of it"
        ) from error


def _shallow(model: GraphModule) -> torch.nn.Module:
    """A module with the same children and parameters, in which some can be replaced."""
    copied = torch.nn.Module()
    copied.__dict__.update(model.__dict__)
    for kind in ("_modules", "_parameters", "_buffers"):
        copied.__dict__[kind] = dict(getattr(model, kind))
    return copied


def _copy_graph(model: GraphModule) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    result = graph.graph_copy(model.graph, copies)
    if result is not None:
        graph.output(result)
    graph.set_codegen(model.graph._codegen)
    return graph


def _module(model: GraphModule, node: Node) -> torch.nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _packed(layer: torch.nn.Module) -> ACLPackedTensor:
    packed = packed_weight_of(layer.weight)  # type: ignore[arg-type]
    if packed is None:
        raise ValueError(f"the weight of {type(layer).__name__} in a chain is no longer quantized")
    return packed


def _is_static_layer(model: GraphModule, node: Node) -> bool:
    if node.target is _OP:
        return True
    module = _module(model, node)
    if not isinstance(module, torch.nn.Linear):
        return False
    packed = packed_weight_of(module.weight)
    return packed is not None and packed.act_scale is not None


def _takes_floats_only(model: GraphModule, node: Node) -> bool:
    """Whether its input is multiplied with something before it is quantized."""
    module = _module(model, node)
    return module is not None and _packed(module).act_pre_scale is not None


def _source(model: GraphModule, node: Node) -> tuple[Node | None, _Bounds, list[Node]]:
    """The static layer whose float output reaches ``node`` through activations alone, their bounds, and they."""
    bounds = _NONE
    between: list[Node] = []
    while len(node.users) == 1:
        if _is_static_layer(model, node):
            gives_floats = node.target is not _OP or _argument(node, 6, "output_scale") is None
            return (node if gives_floats else None), bounds, between
        activation = _bounds_of(model, node)
        if activation is None or not isinstance(node.args[0], Node):
            break
        # What comes first is clamped by what comes later.
        low, high = (min(max(bound, bounds[0]), bounds[1]) for bound in activation)
        bounds = (low, high)
        between.append(node)
        node = node.args[0]
    return None, bounds, between


_MODULES: dict[type[torch.nn.Module], Callable[[Any], _Bounds]] = {
    torch.nn.ReLU: lambda module: (0.0, torch.inf),
    torch.nn.ReLU6: lambda module: (0.0, 6.0),
    torch.nn.Hardtanh: lambda module: (float(module.min_val), float(module.max_val)),
    torch.nn.Dropout: lambda module: _NONE,
    torch.nn.Identity: lambda module: _NONE,
}
_RELU = {"relu", "relu_", torch.relu, functional.relu, torch.ops.aten.relu.default, torch.ops.aten.relu_.default}
_DROPOUT = {functional.dropout, torch.dropout, torch.ops.aten.dropout.default}
_RELU6 = {functional.relu6}
_CLAMP = {
    "clamp",
    torch.clamp,
    functional.hardtanh,
    torch.ops.aten.clamp.default,
    torch.ops.aten.clamp_min.default,
    torch.ops.aten.hardtanh.default,
}


def _bounds_of(model: GraphModule, node: Node) -> _Bounds | None:
    """The bounds that an activation puts on its input; None if it does anything else."""
    module = _module(model, node)
    if module is not None:
        rule = _MODULES.get(type(module))
        return None if rule is None else rule(module)
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _DROPOUT:
        training = _argument(node, 2, "train", _argument(node, 2, "training", True))
        return _NONE if training is False else None
    if node.target in _RELU:
        return 0.0, torch.inf
    if node.target in _RELU6:
        return 0.0, 6.0
    if node.target in _CLAMP:
        defaults = (-1.0, 1.0) if "hardtanh" in str(node.target) else (None, None)
        low = _argument(node, 1, "min", _argument(node, 1, "min_val", defaults[0]))
        high = _argument(node, 2, "max", _argument(node, 2, "max_val", defaults[1]))
        numbers = all(bound is None or isinstance(bound, int | float) for bound in (low, high))
        return (-torch.inf if low is None else low, torch.inf if high is None else high) if numbers else None
    return None


def _argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _link(model: GraphModule, source: Node, taker: Node, bounds: _Bounds) -> None:
    """Makes ``source`` give what ``taker`` would quantize its output to."""
    if source.target is _OP and taker.target is _OP:
        given = source.kwargs | dict(zip(("output_scale", "output_zero_point"), taker.args[4:6], strict=True))
        for argument in taker.args[4:6]:
            _move_before(argument, source)
        finite = {
            name: bound for name, bound in zip(("output_min", "output_max"), bounds, strict=True) if isfinite(bound)
        }
        source.kwargs = given | finite
        if _argument(taker, 6, "output_scale") is None and "val" in taker.meta:
            taker.kwargs = taker.kwargs | {"output_dtype": taker.meta["val"].dtype}
        source.meta.pop("val", None)
        return
    layers: Any = [_module(model, node) for node in (source, taker)]
    if not isinstance(layers[1], ChainedLinear):
        layers[1] = ChainedLinear(layers[1], None, _NONE)
        model.set_submodule(str(taker.target), layers[1])
    model.set_submodule(str(source.target), ChainedLinear(layers[0], layers[1], bounds))


def _move_before(node: Any, place: Node) -> None:
    """Brings what does not depend on ``place``, and all it needs, before it."""
    if not isinstance(node, Node) or node.op == "placeholder" or node < place:
        return
    for needed in node.all_input_nodes:
        _move_before(needed, place)
    place.prepend(node)
