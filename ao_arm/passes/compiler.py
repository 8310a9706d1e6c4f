"""torch.compile with the fusion of quantized linear layers: a backend, and the same as a pass for Inductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import register_backend
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._subclasses import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .constants import with_values
from .fusion import FusionReport, fuse_, warn_of_left

_NOTHING_IS_HELD = (
    "This graph takes weights as inputs: set torch._inductor.config.freezing = True before and call the model in "
    'torch.no_grad(), or compile it with backend="ao_arm"'
)
_KEPT_REPORTS = 64
#: The reports of graphs that were compiled, the newest last.
_reports: list[FusionReport] = []


class FuseQuantizedLinear(CustomGraphPass):
    """Inductor's ``joint_custom_pre_pass`` that fuses quantized linear layers before constants are folded."""

    def __call__(self, graph: Graph) -> None:
        """Fuses in place what the graph of a whole model has; its parameters and buffers are known here."""
        module = graph.owning_module
        if module is None:
            return
        constants = _constants(graph)
        report = fuse_(module, constants, torch.ops.prims.convert_element_type.default)
        mode = torch._guards.detect_fake_mode([node.meta.get("val") for node in graph.nodes])
        if mode is not None and report.fused:  # packed weights are attributes of the graph, with values
            mode.allow_non_fake_inputs = True
        _reports.append(report)
        del _reports[:-_KEPT_REPORTS]
        held = constants or any(node.op == "get_attr" for node in graph.nodes)
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
    config.joint_custom_pre_pass = _in_turn(passes)


@register_backend(name="ao_arm")
def ao_arm_backend(
    module: GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Callable[..., Any]:
    """Inductor, with quantized linear layers as one op each: ``torch.compile(model, backend="ao_arm")``.

    Parameters and buffers are constants of the compiled graph, whether it is frozen or not: weights are packed once,
    when it is compiled. If a parameter is replaced, or changed in place, it is compiled anew. Where gradients are
    enabled, parameters that require one are no constants.

    Args:
        module, example_inputs: what Dynamo captured.
        options: Inductor's, as for ``torch.compile(model, options=...)``, for instance ``{"max_autotune": True}``.
        kwargs: ``mode``, as Inductor's.
    """
    mode = kwargs.pop("mode", None)
    if kwargs:
        raise ValueError(f"backend ao_arm takes options and mode, not {', '.join(kwargs)}")
    patches = {**(torch._inductor.list_mode_options(mode) if mode else {}), **(options or {})}
    given = patches.get("joint_custom_pre_pass")
    patches["joint_custom_pre_pass"] = _in_turn([] if given is None else [given])
    return _BoundGraph(module, list(example_inputs), patches)


class _BoundGraph:
    """A compiled graph to which parameters and buffers are bound, as long as they are the same."""

    def __init__(self, module: GraphModule, inputs: list[Any], patches: dict[str, Any]) -> None:
        self._module = module
        self._patches = patches
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._places = [
            place
            for place, node in enumerate(placeholders)
            if _is_held(node) and isinstance(inputs[place], Tensor) and not _is_trained(inputs[place])
        ]
        self._compile(inputs)

    def _compile(self, inputs: list[Any]) -> None:
        from torch._inductor.compile_fx import compile_fx

        self._bound = [inputs[place] for place in self._places]
        # With freezing set before, Dynamo leaves parameters and buffers in the module.
        held = (*self._bound, *self._module.parameters(), *self._module.buffers())
        self._watched = [part for tensor in held for part in _parts(tensor)]
        self._versions = [_version(tensor) for tensor in self._watched]
        bound = _with_attributes(self._module, {place: inputs[place] for place in self._places})
        free = [value for place, value in enumerate(inputs) if place not in set(self._places)]
        # The cache of AOTAutograd would give back a graph that holds other weights.
        with torch._functorch.config.patch(enable_autograd_cache=False):
            self._compiled: Any = compile_fx(bound, free, config_patches=self._patches)

    def __call__(self, *inputs: Any) -> Any:
        replaced = any(inputs[place] is not tensor for place, tensor in zip(self._places, self._bound, strict=True))
        if replaced or [_version(tensor) for tensor in self._watched] != self._versions:
            self._compile(list(inputs))
        held = set(self._places)
        return self._compiled(*(value for place, value in enumerate(inputs) if place not in held))


def _in_turn(passes: list[Any]) -> Any:
    return _Passes([*passes, FuseQuantizedLinear()]) if passes else FuseQuantizedLinear()


class _Passes(FuseQuantizedLinear):
    """Other passes, and then ours."""

    def __init__(self, passes: list[Callable[[Graph], None]]) -> None:
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
    """A tensor and, if it is one of a subclass, what it consists of, in which changes are noted."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [tensor, *(part for name in names for part in _parts(getattr(tensor, name)))]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _with_attributes(module: GraphModule, values: Mapping[int, Tensor]) -> GraphModule:
    """A copy of a graph in which some inputs are attributes."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    root = torch.nn.Module()
    root.__dict__.update(
        {name: value for name, value in module.__dict__.items() if name not in ("_parameters", "_buffers")}
    )
    root._parameters, root._buffers = dict(module._parameters), dict(module._buffers)
    place = -1
    for node in module.graph.nodes:
        if node.op == "placeholder":
            place += 1
            if place in values:
                name = f"bound_{place}"
                if isinstance(values[place], torch.nn.Parameter):
                    root.register_parameter(name, values[place])  # type: ignore[arg-type]
                else:
                    root.register_buffer(name, values[place])
                copies[node] = graph.get_attr(name)
                copies[node].meta = dict(node.meta)
                continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
    bound = GraphModule(root, graph)
    bound.meta = dict(module.meta)
    return bound


def _constants(graph: Graph) -> dict[str, Tensor]:
    """The parameters and buffers of the graph that is compiled, by the names of its placeholders."""
    context = torch._guards.TracingContext.try_get()
    held = [] if context is None else context.params_flat_unwrap_subclasses or []
    distinct: list[Tensor] = []
    for tensor in held:  # AOTAutograd gives what occurs twice to the graph once
        if not any(tensor is other for other in distinct):
            distinct.append(tensor)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"][: len(distinct)]
    pairs = list(zip(placeholders, distinct, strict=False))
    if len(pairs) < len(distinct) or any(not _fits(node, tensor) for node, tensor in pairs):
        warnings.warn(
            "the parameters of the compiled graph are not in the order that is known: none is constant", stacklevel=2
        )
        return {}
    with with_values():
        return {node.name: tensor.detach() for node, tensor in pairs}


def _fits(node: Node, tensor: Any) -> bool:
    value = node.meta.get("val")
    if not isinstance(tensor, Tensor) or isinstance(tensor, FakeTensor) or is_traceable_wrapper_subclass(tensor):
        return False
    return isinstance(value, Tensor) and value.dtype == tensor.dtype and tuple(value.shape) == tuple(tensor.shape)
