"""Shapes and dtypes of a graph's nodes where the tool that made the graph left them out, as ``convert_pt2e`` does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr


def fake_mode_of(graph: torch.fx.Graph) -> FakeTensorMode:
    """The mode that a graph's values were made in, or a new one."""
    values = [node.meta.get("val") for node in graph.nodes]
    found = torch._guards.detect_fake_mode([value for value in values if isinstance(value, Tensor)])
    return FakeTensorMode(allow_non_fake_inputs=True) if found is None else found


def complete_values(module: GraphModule) -> None:
    """Gives each node that has none its value, without contents, as far as the values before it are known."""
    missing = [node for node in module.graph.nodes if "val" not in node.meta]
    if not missing:
        return
    mode = fake_mode_of(module.graph)
    for node in missing:
        if node.op == "get_attr":
            value = _get_attr(module, str(node.target))
            if type(value) in (Tensor, torch.nn.Parameter):
                node.meta["val"] = mode.from_tensor(value.detach(), static_shapes=True)
        elif node.op == "call_function" and all("val" in needed.meta for needed in node.all_input_nodes):
            node.meta["val"] = value_of_call(mode, node.target, node.args, node.kwargs)


def value_of_call(mode: FakeTensorMode, target: Any, args: Any, kwargs: Any) -> Any:
    """What a call gives, without contents, for nodes as arguments."""

    def value(node: Node) -> Any:
        return node.meta["val"]

    args, kwargs = torch.fx.map_arg((args, kwargs), value)
    with torch.no_grad(), mode:
        return target(*args, **kwargs)
