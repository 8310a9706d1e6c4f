"""What a graph computes from constants alone: weights, scales and zero points as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _get_attr

from .mutations import base_of, changes_in_place


@contextmanager
def with_values() -> Iterator[None]:
    """Computes with values, also while a compiler traces."""
    with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
        yield


class Constants:
    """The constants of a graph: its attributes, and what is known of its inputs.

    Args:
        module: the graph.
        inputs: by placeholders' names, tensors that are the same in each call.
    """

    def __init__(self, module: GraphModule, inputs: Mapping[str, Tensor] | None = None) -> None:
        self._module = module
        self._inputs = dict(inputs or {})
        #: What the graph changes in place, as ``changes_in_place`` tells it; none of it is constant.
        self.changes = changes_in_place(module.graph)
        #: The names of the inputs whose values were asked for.
        self.read: set[str] = set()
        self._found: dict[Node, Tensor | None] = {}

    def value(self, node: Any) -> Tensor | None:
        """The value of a node that depends on constants alone, as it is computed once and kept; else None."""
        if isinstance(node, Tensor):
            return node
        if not isinstance(node, Node):
            return None
        if node not in self._found:
            self._found[node] = self._evaluated(node)
        return self._found[node]

    def is_constant(self, node: Any) -> bool:
        """Whether a node depends on constants alone; computes nothing."""
        if not isinstance(node, Node):
            return True
        if base_of(node) in self.changes:
            return False
        if node.op == "get_attr":
            return True
        if node.op == "placeholder":
            return node.name in self._inputs
        return is_pure(node) and all(self.is_constant(needed) for needed in node.all_input_nodes)

    def _evaluated(self, node: Node) -> Tensor | None:
        if not self.is_constant(node):
            return None
        if node.op == "get_attr":
            found: Any = _get_attr(self._module, str(node.target))
            return found.detach() if type(found) is torch.nn.Parameter else found
        if node.op == "placeholder":
            self.read.add(node.name)
            return self._inputs[node.name]
        known = {needed: self.value(needed) for needed in node.all_input_nodes}
        if any(value is None for value in known.values()):
            return None
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
        with with_values():
            value: Tensor | None = node.target(*args, **kwargs)  # type: ignore[operator]
        return value


def is_pure(node: Node) -> bool:
    """Whether a call gives the same whenever its inputs are, and has no effects."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target.__name__ == "getitem"  # type: ignore[union-attr]
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not node.target._schema.is_mutable and not random and bool(node.all_input_nodes)


def constants_of_program(program: ExportedProgram, module: GraphModule) -> Constants:
    """The parameters, buffers and constants of an exported program that it does not change itself."""
    signature = program.graph_signature
    changed = {*signature.buffers_to_mutate.values(), *getattr(signature, "parameters_to_mutate", {}).values()}
    held: dict[str, Any] = {**program.constants, **program.state_dict}
    places = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    inputs = {name: held[place] for name, place in places.items() if place not in changed and place in held}
    return Constants(module, {name: value.detach() for name, value in inputs.items()})
