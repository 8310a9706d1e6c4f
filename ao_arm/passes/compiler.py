"""torch.compile with quantized layers fused, and inputs shared: a backend, and the same as a pass for Inductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._subclasses import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .constants import Constants, with_values
from .fusion import FusionReport, fuse_layers, warn_of_left
from .shared_inputs import share_in_graph

_NOTHING_IS_HELD = (
    "This graph takes weights as inputs: set torch._inductor.config.freezing = True before and call the model in "
    'torch.no_grad(), or compile it with backend="ao_arm"'
)
_KEPT_REPORTS = 64
#: The reports of graphs that were compiled, the newest last.
_reports: list[FusionReport] = []


class FuseQuantizedLinear(CustomGraphPass):
    """Inductor's ``joint_custom_pre_pass`` that fuses quantized linear layers before constants are folded.

    Args:
        inputs: of the graph that Dynamo captured: each with itself if it is a tensor that is the same in each call, and
            else with None.

    Attributes:
        read: the tensors whose values are part of what was compiled.
    """

    def __init__(self, inputs: Sequence[tuple[Any, Any]] = ()) -> None:
        self._inputs = inputs
        self.read: list[Tensor] = []

    def __call__(self, graph: Graph) -> None:
        """Fuses in place what the graph of a whole model has, then lets layers share their inputs.

        The model's parameters and buffers are known here.
        """
        module = graph.owning_module
        if module is None:
            return
        known = _known_tensors(graph, self._inputs)
        with with_values():
            constants = Constants(module, {name: tensor.detach() for name, tensor in known.items()})
        report = fuse_layers(module, constants, torch.ops.prims.convert_element_type.default)
        report.shared = share_in_graph(graph)
        self.read += [tensor for name, tensor in known.items() if name in constants.read]
        mode = torch._guards.detect_fake_mode([node.meta.get("val") for node in graph.nodes])
        if mode is not None and report.fused:  # packed weights are attributes of the graph, with values
            mode.allow_non_fake_inputs = True
        _reports.append(report)
        del _reports[:-_KEPT_REPORTS]
        held = known or any(node.op == "get_attr" for node in graph.nodes)
        warn_of_left(report, "" if held else _NOTHING_IS_HELD)

    def uuid(self) -> Any | None:
        """None: what is compiled holds weights that no cache of graphs knows."""
        return None


def compiled_reports() -> tuple[FusionReport, ...]:
    """What became of the quantized linear layers of the graphs that were compiled last, one report for each graph."""
    return tuple(_reports)


def register_with_inductor() -> None:
    """Makes ``torch.compile`` with its default backend fuse quantized linear layers too.

    Weights have to be constants of the compiled graph, as they are with ``torch._inductor.config.freezing = True`` set
    before, and in ``torch.no_grad()``. Otherwise layers are left as they were, and a warning says so.
    ``torch.compile(model, backend="ao_arm")`` needs neither. A pass that is set already runs first.
    """
    config: Any = torch._inductor.config
    present = config.joint_custom_pre_pass
    passes = list(present) if isinstance(present, list | tuple) else [] if present is None else [present]
    if any(isinstance(one, FuseQuantizedLinear) for one in passes):
        return
    config.joint_custom_pre_pass = _in_turn(passes, FuseQuantizedLinear())


class CompiledGraph:
    """A compiled graph, which is compiled anew when a weight that it holds packed was replaced or changed."""

    def __init__(self, module: GraphModule, inputs: Sequence[Any], patches: dict[str, Any]) -> None:
        self._module = module
        self._patches = patches
        self._held = [_is_held(node) for node in module.graph.nodes if node.op == "placeholder"]
        self._compile(inputs)

    def _compile(self, inputs: Sequence[Any]) -> None:
        from torch._inductor.compile_fx import compile_fx

        known = [
            value if held and isinstance(value, Tensor) and not _is_trained(value) else None
            for held, value in zip(self._held, inputs, strict=True)
        ]
        fusing = FuseQuantizedLinear(list(zip(inputs, known, strict=True)))
        given = self._patches.get("joint_custom_pre_pass")
        patches = {**self._patches, "joint_custom_pre_pass": _in_turn([] if given is None else [given], fusing)}
        module = GraphModule(self._module, deepcopy(self._module.graph))
        module.meta = dict(self._module.meta)
        # The cache of AOTAutograd would give back a graph that holds other weights.
        with torch._functorch.config.patch(enable_autograd_cache=False):
            self._compiled: Any = compile_fx(module, inputs, config_patches=patches)
        parts = {id(part) for part in fusing.read}

        def is_read(tensor: Tensor | None) -> bool:
            return tensor is not None and any(id(part) in parts for part in _parts(tensor))

        self._bound = [(place, value) for place, value in enumerate(known) if is_read(value)]
        # With freezing set before, Dynamo leaves parameters and buffers in the module.
        left = filter(is_read, (*self._module.parameters(), *self._module.buffers()))
        # Copying to a tensor of a subclass may change its parts, or give it others.
        watched = [*fusing.read, *(value for _, value in self._bound), *left]
        self._watched = [(tensor, _version(tensor)) for tensor in watched if tensor is not None]

    def __call__(self, *inputs: Any) -> Any:
        """The graph's outputs."""
        replaced = any(inputs[place] is not value for place, value in self._bound)
        if replaced or any(_version(tensor) != version for tensor, version in self._watched):
            self._compile(inputs)
        return self._compiled(*inputs)


def _in_turn(passes: list[Any], fusing: FuseQuantizedLinear) -> Any:
    return _Passes([*passes, fusing]) if passes else fusing


class _Passes(FuseQuantizedLinear):
    """Other passes, and then ours."""

    def __init__(self, passes: list[Callable[[Graph], None]]) -> None:
        super().__init__()
        self._passes = passes

    def __call__(self, graph: Graph) -> None:
        for one in self._passes:
            one(graph)


def _is_held(node: Node) -> bool:
    """Whether Dynamo says of an input that it is a parameter or a buffer."""
    return "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {})


def _is_trained(tensor: Tensor) -> bool:
    """Whether a parameter may change with each step, so that it is no constant."""
    return tensor.requires_grad and torch.is_grad_enabled()


def _parts(tensor: Tensor) -> list[Tensor]:
    """What a tensor of a subclass consists of, in the order in which AOTAutograd takes it apart; else the tensor."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _known_tensors(graph: Graph, inputs: Sequence[tuple[Any, Any]]) -> dict[str, Tensor]:
    """Of the graph that is compiled, by the names of its placeholders, the tensors that are the same in each call.

    First come the parameters and buffers that Dynamo left in the module, then its inputs; both taken apart.
    """
    context = torch._guards.TracingContext.try_get()
    flat: list[Any] = []
    for tensor in (context.params_flat_unwrap_subclasses or []) if context is not None else []:
        if not any(tensor is other for other in flat):  # AOTAutograd gives what occurs twice to the graph once
            flat.append(tensor)
    for value, known in inputs:
        parts = _parts(value) if isinstance(value, Tensor) else [value]
        flat += parts if known is not None else [None] * len(parts)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    pairs = [(node, tensor) for node, tensor in zip(placeholders, flat, strict=False) if tensor is not None]
    if len(placeholders) < len(flat) or any(not _fits(node, tensor) for node, tensor in pairs):
        warnings.warn(
            "the parameters of the compiled graph are not in the order that is known: none is constant", stacklevel=2
        )
        return {}
    return {node.name: tensor for node, tensor in pairs}


def _fits(node: Node, tensor: Any) -> bool:
    value = node.meta.get("val")
    if not isinstance(tensor, Tensor) or isinstance(tensor, FakeTensor) or is_traceable_wrapper_subclass(tensor):
        return False
    return isinstance(value, Tensor) and value.dtype == tensor.dtype and tuple(value.shape) == tuple(tensor.shape)
