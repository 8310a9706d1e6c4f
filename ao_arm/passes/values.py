"""Shapes and dtypes of a graph's nodes where the tool that made the graph left them out, as ``convert_pt2e`` does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr


def fake_mode_of(graph: torch.fx.Graph) -> FakeTensorMode:
    """The mode that a graph's values were made in, or a new one."""
    modes = [value.fake_mode for node in graph.nodes for value in _tensors(node) if isinstance(value, FakeTensor)]
    # Sizes that are not known beforehand belong to a mode.
    modes.sort(key=lambda mode: mode.shape_env is None)
    return modes[0] if modes else FakeTensorMode(allow_non_fake_inputs=True)


def complete_values(module: GraphModule) -> None:
    """Gives each node that has none its value, without contents, as far as the values before it are known."""
    mode = fake_mode_of(module.graph)
    for node in module.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = _in_mode(mode, node.meta["val"])
    for node in [node for node in module.graph.nodes if "val" not in node.meta]:
        if node.op == "get_attr":
            value = _get_attr(module, str(node.target))
            if type(value) in (Tensor, torch.nn.Parameter):
                node.meta["val"] = mode.from_tensor(value.detach(), static_shapes=True)
        elif node.op == "call_function" and all("val" in needed.meta for needed in node.all_input_nodes):
            node.meta["val"] = value_of_call(mode, node.target, node.args, node.kwargs)


def _tensors(node: Node) -> list[Any]:
    return [value for value in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]


def _in_mode(mode: FakeTensorMode, value: Any) -> Any:
    """A node's value in the mode of the others, which ``make_fx`` does not see to."""

    def moved(one: Any) -> Any:
        if not isinstance(one, FakeTensor) or one.fake_mode is mode:
            return one
        with torch.no_grad(), mode:
            return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device)

    return torch.utils._pytree.tree_map(moved, value)


def value_of_call(mode: FakeTensorMode, target: Any, args: Any, kwargs: Any) -> Any:
    """What a call gives, without contents, for nodes as arguments."""

    def value(node: Node) -> Any:
        return node.meta["val"]

    args, kwargs = torch.fx.map_arg((args, kwargs), value)
    with torch.no_grad(), mode:
        return target(*args, **kwargs)
