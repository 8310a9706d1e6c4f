"""What became of linear layers in a model, a graph or a program: which kernel serves each, and why no other one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from . import _ops, kernels, stock_modules, text_table
from .affine_quantized import packed_weight_of
from .calibration import observer_of
from .coverage import Coverage, coverage_of
from .experts import ACLPackedExperts
from .module_weights import ModuleWeight, shape_of, weights_of
from .outcomes import noted_reason
from .pack_model import Found, find
from .passes.constants import Constants, constants_of_program

if TYPE_CHECKING:
    from .passes.served import ServedLayer


@dataclass(frozen=True)
class LayerExplanation:
    """How one layer is computed.

    Attributes:
        name: the layer's qualified name in the model; in a graph without names of modules, that of its node.
        shape: (n, k) of its weight; of a layer in a graph that could not be read, (0, 0).
        scheme: how it is quantized, or "not quantized", or "prepared, not converted" if an observer sees its inputs; of
            what torchao or torch.ao quantized, by which class, and whether ``pack_`` takes it over.
        kernel: the kernel's id, or "torch" for layers that are not quantized by ao_arm.
        packing_format: how the kernel arranged the weight.
        rejected: for each kernel that could not be taken, its reasons.
        reason: of a layer that another tool quantized: why ``pack_``, or a pass, would leave it. Of one that
            ``on_unsupported`` left in floats, or gave int8 weights: why.
        experts: how many experts have a weight of this shape behind one parameter; 0 if it is no such one.
    """

    name: str
    shape: tuple[int, int]
    scheme: str
    kernel: str
    packing_format: str = ""
    rejected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reason: str = ""
    experts: int = 0

    @property
    def size(self) -> str:
        """The shape in words, "n x k", with the number of experts before it."""
        return " x ".join(map(str, (self.experts, *self.shape) if self.experts else self.shape))


class Explanation(tuple[LayerExplanation, ...]):
    """The layers of a model; prints as what share of it is quantized and what holds the rest, and a table.

    Attributes:
        coverage: that share; of programs nothing.
    """

    coverage = Coverage()

    def __str__(self) -> str:
        return "\n".join(part for part in (str(self.coverage), self._table()) if part)

    def _table(self) -> str:
        header = ("layer", "n x k", "scheme", "kernel", "packing format")
        rows = [(layer.name, layer.size, layer.scheme, layer.kernel, layer.packing_format) for layer in self]
        lines = text_table.with_rule(header, rows)
        # Layers may have been refused for different reasons.
        reasons = dict.fromkeys(
            f"not {kernel}: {'; '.join(why)}" for layer in self for kernel, why in layer.rejected.items()
        )
        lines += reasons
        alike: dict[str, list[str]] = {}
        for layer in self:
            alike.setdefault(layer.reason, []).append(layer.name)
        lines += [f"{text_table.listed(names)}: {reason}" for reason, names in alike.items() if reason]
        return "\n".join(lines)


def explain(model: torch.nn.Module | ExportedProgram) -> Explanation:
    """What share of a model is quantized, what holds the rest and why; per linear layer the scheme, the kernel chosen
    when its weight was packed, and why each other one was not.

    Args:
        model: any module; layers that ao_arm did not quantize are listed too. Of exported programs and graph modules,
            fused or not, the layers that are ops of ours, and those that are quantized but are none, with the reason.
    """
    if isinstance(model, ExportedProgram):
        graph = model.graph_module
        return Explanation(_of_graph(graph, constants_of_program(model, graph), ""))
    stock = {place.name: found for found in find(model) for place in found.places}
    layers: list[LayerExplanation] = []
    for name, module in model.named_modules():
        if isinstance(module, GraphModule):
            layers += _of_graph(module, Constants(module), f"{name}." if name else "")
        elif stock_modules.source_of(module) is not None:
            layers += _of_stock(name, stock[name])
        else:
            layers += _of_module(module, name, stock)
    explanation = Explanation(layers)
    explanation.coverage = coverage_of(model)
    return explanation


def _of_module(module: torch.nn.Module, name: str, stock: dict[str, Found]) -> Iterator[LayerExplanation]:
    weights = {weight.name: weight for weight in weights_of(module)}
    if isinstance(module, torch.nn.Linear):  # also that of nn.MultiheadAttention
        weights["weight"] = ModuleWeight("weight")
    for parameter_name, parameter in module.named_parameters(recurse=False):
        full_name = f"{name}.{parameter_name}" if parameter_name != "weight" else name
        packed = packed_weight_of(parameter)
        if packed is not None:
            scheme = module.scheme if isinstance(module, stock_modules.PackedEagerLinear) else packed.scheme
            yield _served(full_name, scheme, packed.problem, packed._info(), noted_reason(module, parameter_name))
        elif isinstance(parameter, ACLPackedExperts):
            one = parameter.expert(0)
            served = _served(full_name, parameter.scheme, one.problem, one._info())
            yield dataclasses.replace(served, experts=parameter.shape[0])
        elif full_name in stock:
            yield from _of_stock(full_name, stock[full_name])
        elif (weight := weights.get(parameter_name)) is not None:
            n, k = shape_of(weight, parameter)
            state = "not quantized" if observer_of(module) is None else "prepared, not converted"
            experts, reason = parameter.shape[0] if weight.experts else 0, noted_reason(module, parameter_name)
            scheme = f"{state} ({parameter.dtype})"
            yield LayerExplanation(full_name, (n, k), scheme, "torch", reason=reason, experts=experts)


def _of_stock(name: str, found: Found) -> list[LayerExplanation]:
    """A layer that a stock tool quantized; nothing if it is no linear one."""
    if len(found.shape) != 2:
        return []
    n, k = found.shape
    scheme, refused = f"quantized by {found.source}", ""
    try:
        found.check()
    except (ValueError, NotImplementedError) as error:
        refused = str(error)
    else:
        scheme += ": ao_arm.pack_(model) takes it over"
    return [LayerExplanation(name, (n, k), scheme, "torch", reason=refused)]


def _of_graph(module: GraphModule, constants: Constants, prefix: str) -> Iterator[LayerExplanation]:
    # Inductor's patterns, of which these are made, take long to import.
    from .passes.fusion import quantized_layers
    from .passes.served import served_layers

    for layer in served_layers(module, constants):
        yield _of_op(layer, prefix)
    for left in quantized_layers(module, constants):
        shape = left.shape or (0, 0)
        yield LayerExplanation(prefix + left.name, shape, "quantized, as it was", "torch", reason=left.reason)


def _of_op(layer: ServedLayer, prefix: str) -> LayerExplanation:
    name = prefix + layer.name
    if layer.packed_weight is None:
        reason = "its packed weight is no constant of the graph, so that its kernel is not known here"
        return LayerExplanation(name, (0, 0), layer.scheme, "of its packed weight", reason=reason)
    info = json.loads(_ops.call(_ops.packed_weight_info, layer.packed_weight))
    n, k, group_size = info["n"], info["k"], info.get("group_size", 0)
    floats, zero_points = info.get("scale_dtype") == "float32", info.get("zero_points", False)
    problem = kernels.Problem(n, k, group_size, floats, zero_points, info.get("full_range", False))
    weights = "per_channel"
    if group_size:
        mapping = "asymmetric" if zero_points else "symmetric"
        weights = f"{mapping} groups of {group_size}, {info['scale_dtype']} scales"
    return _served(name, layer.scheme.format(weights=weights), problem, info)


def _served(
    name: str, scheme: str, problem: kernels.Problem, info: dict[str, Any], reason: str = ""
) -> LayerExplanation:
    rejected = {kernel.id: kernel.reasons for kernel in kernels.list(*problem) if kernel.reasons}
    return LayerExplanation(name, problem[:2], scheme, info["kernel"], info["packing_format"], rejected, reason)
