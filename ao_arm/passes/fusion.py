"""Finds quantized linear layers in graphs, however other tools wrote them, and makes each one op of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from .. import text_table
from . import float_products, int8_products
from .constants import Constants, constants_of_program, with_values
from .layers import Layer, Unfit
from .matching import ASSERTIONS, aten
from .mutations import base_of
from .names import name_of
from .program import program_with
from .replacing import Replacer, check
from .shared_inputs import SharedInput
from .values import complete_values

_FINDERS: dict[Any, Callable[[Node, Constants], Layer | None]] = {
    **dict.fromkeys(float_products.PRODUCTS, float_products.layer_of_product),
    **dict.fromkeys(int8_products.PRODUCTS, int8_products.layer_of_product),
}


@dataclass(frozen=True)
class FusedLayer:
    """What became of one quantized linear layer of a graph.

    Attributes:
        name: the module that it comes from, or else the name of its product in the graph.
        shape: (n, k) of its weight; None if it is not known.
        op: the op that it is now; empty if it was left as it was.
        reason: why it was left as it was; empty if it was fused.
    """

    name: str
    shape: tuple[int, int] | None
    op: str
    reason: str = ""


class FusionReport(tuple[FusedLayer, ...]):
    """The quantized linear layers that a pass met; prints as a table.

    Attributes:
        shared: of a compiled graph, layers that became one call as they have the same input.
    """

    shared: tuple[SharedInput, ...] = ()

    @property
    def fused(self) -> tuple[FusedLayer, ...]:
        """Those that are one op now."""
        return tuple(layer for layer in self if not layer.reason)

    @property
    def left(self) -> tuple[FusedLayer, ...]:
        """Those that are as they were, each with its reason."""
        return tuple(layer for layer in self if layer.reason)

    def __str__(self) -> str:
        shares = [str(shared) for shared in self.shared]
        if not self:
            return "\n".join(shares or ["no quantized linear layers"])
        rows = [
            (layer.name, "?" if layer.shape is None else "{} x {}".format(*layer.shape), layer.op or "as it was")
            for layer in self
        ]
        lines = text_table.with_rule(("layer", "n x k", "op"), rows)
        return "\n".join(
            [*lines, *(f"{layer.name} was left as it was: {layer.reason}" for layer in self.left), *shares]
        )


def fuse(program: ExportedProgram) -> ExportedProgram:
    """Makes one op of ours of each quantized linear layer in an exported program, with the same numbers.

    Recognised are layers that torchao's ``quantize_`` and PT2E's ``convert_pt2e`` quantized to int8, or to 4 bits in
    groups, whatever tool wrote the ops: see docs/usage.md. A static layer takes a ReLU or a clamp behind it, and the
    quantization of its output, into its op. Weights are packed for this CPU, once.

    Args:
        program: what ``torch.export.export`` gave, before or after ``run_decompositions``. It is left as it was.

    Returns:
        A program that computes the same: the same int8 activations and int32 sums, floats but for their last bits.

    Warns:
        If a layer was quantized, but is none that an op computes; it stays as it was. ``ao_arm.explain`` lists all.

    Raises:
        ValueError: if ``program`` is no exported program.
    """
    if not isinstance(program, ExportedProgram):
        raise ValueError(
            f"program must be a torch.export.ExportedProgram, not {type(program).__name__}: fuse_ takes graph modules, "
            "and ao_arm.pack_ other modules"
        )
    module = GraphModule(program.graph_module, deepcopy(program.graph_module.graph))
    report = fuse_layers(module, constants_of_program(program, module), aten.to.dtype)
    warn_of_left(report)
    return program_with(program, module)


def fuse_(module: GraphModule, constants: Mapping[str, Tensor] | None = None) -> FusionReport:
    """Does in place to a graph of aten ops what ``fuse`` does to exported programs.

    Args:
        module: for instance what ``convert_pt2e`` gives, or ``.module()`` of an exported program; parameters and
            buffers are its attributes. It gets the packed weights as buffers.
        constants: values of inputs, by placeholders' names, that are the same in each call.

    Returns:
        What became of each quantized linear layer.

    Raises:
        ValueError: if ``module`` is no graph module.
    """
    if not isinstance(module, GraphModule):
        raise ValueError(
            f"module must be a torch.fx.GraphModule, not {type(module).__name__}: fuse takes exported programs, and "
            "ao_arm.pack_ other modules"
        )
    report = fuse_layers(module, Constants(module, constants), aten.to.dtype)
    module.recompile()
    return report


def quantized_layers(module: GraphModule, constants: Constants) -> FusionReport:
    """The quantized linear layers that are still there, with the reason why a pass would leave each."""
    report = []
    for product in [node for node in module.graph.nodes if node.target in _FINDERS]:
        found, shape = _found(product, constants), None
        if isinstance(found, Layer):
            shape = _shape(found)
            try:
                check(found)
                found = Unfit("no pass has seen it: ao_arm.passes.fuse makes an op of it")
            except Unfit as reason:
                found = reason
        if found is not None:
            report.append(FusedLayer(name_of(product), shape, "", str(found)))
    return FusionReport(report)


def warn_of_left(report: FusionReport, advice: str = "") -> None:
    """One warning about all layers that were left, with what to do about it, if that is known."""
    if report.left:
        shown = "; ".join(f"{layer.name}: {layer.reason}" for layer in report.left[:3])
        more = f"; and {len(report.left) - 3} more" if len(report.left) > 3 else ""
        told = f"{len(report.left)} quantized linear layers were left as they were: {shown}{more}"
        warnings.warn(told + (advice and f". {advice}"), stacklevel=3)


@with_values()
def fuse_layers(module: GraphModule, constants: Constants, cast: Any) -> FusionReport:
    """What ``fuse`` and ``fuse_`` do; ``cast`` is the op that gives a tensor another dtype in such graphs."""
    complete_values(module)
    replacer = Replacer(module, cast)
    report = []
    # Producers come first: what they quantize for their consumers is known when these are looked at.
    for product in [node for node in module.graph.nodes if node.target in _FINDERS]:
        name, found = name_of(product), _found(product, constants)
        if isinstance(found, Layer):
            shape = _shape(found)
            try:
                made = replacer.replace(found)
                report.append(FusedLayer(name, shape, _op(made)))
                continue
            except Unfit as reason:
                report.append(FusedLayer(name, shape, "", str(reason)))
        elif found is not None:
            report.append(FusedLayer(name, None, "", str(found)))
    if any(layer.op for layer in report):
        _erase_what_is_unused(module)
        module.graph.lint()
    replacer.forget_unused()
    return FusionReport(report)


def _found(product: Node, constants: Constants) -> Layer | Unfit | None:
    try:
        layer = _FINDERS[product.target](product, constants)
        return None if layer is None else _with_values_as_they_are_used(layer, constants)
    except Unfit as reason:
        return reason


def _with_values_as_they_are_used(layer: Layer, constants: Constants) -> Layer:
    """The layer, unless something is changed in place between what reads it in the graph and the op that will.

    Raises:
        Unfit: if something is that the op needs.
    """

    def changed(node: Any) -> bool:
        changes = constants.changes.get(base_of(node), ()) if isinstance(node, Node) else ()
        return any(node < change < layer.node and change not in layer.between for change in changes)

    activations = layer.activations
    for needed in (activations.integers, activations.scale, activations.zero_point, layer.bias):
        if changed(needed):
            raise Unfit(f"{needed} is changed in place before the layer's end")
    if not changed(activations.floats):
        return layer
    return replace(layer, activations=replace(activations, floats=None, mapping=None))


def _op(node: Node) -> str:
    """The op of ours behind a node that replaced a layer: itself, or what it reshapes or casts."""
    while "ao_arm" not in str(node.target):
        node = node.args[0]  # type: ignore[assignment]
    return str(node.target).removesuffix(".default").replace(".", "::")


def _shape(layer: Layer) -> tuple[int, int]:
    n, k = layer.weight.qdata.shape
    return n, k


def _erase_what_is_unused(module: GraphModule) -> None:
    """Also checks of values that nothing else uses."""
    while True:
        module.graph.eliminate_dead_code()
        useless = [
            node
            for node in module.graph.nodes
            if node.target in ASSERTIONS
            and node.args[0].op == "call_function"
            and all(user.target in ASSERTIONS for user in node.args[0].users)
        ]
        if not useless:
            return
        for node in useless:
            module.graph.erase_node(node)
