"""Values that a graph changes in place: what reads them later must not be taken for what was read before."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node


def base_of(node: Node) -> Node:
    """The node whose memory ``node`` reads: past views, and past ops that change their input and give it back."""
    while True:
        source = _aliased(node)
        if source is None:
            return node
        node = source


def changes_in_place(graph: Graph) -> dict[Node, list[Node]]:
    """By the node whose memory it is, the calls that change it, in their order."""
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        for argument, value in _arguments(node):
            written = argument.alias_info is not None and argument.alias_info.is_write
            values = value if isinstance(value, list | tuple) else [value]
            for changed in (one for one in values if written and isinstance(one, Node)):
                found.setdefault(base_of(changed), []).append(node)
    return found


def _aliased(node: Node) -> Node | None:
    """What ``node`` shares its memory with, or may share it with."""
    if node.target is operator.getitem:  # of what an op gives: parts of its input, for one
        return node.args[0]  # type: ignore[return-value]
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema = node.target._schema
    if not schema.returns or schema.returns[0].alias_info is None:
        return None
    for argument, value in _arguments(node):
        if argument.alias_info is not None and isinstance(value, Node):
            return value
    return None


def _arguments(node: Node) -> list[tuple[Any, Any]]:
    schema = node.target._schema  # type: ignore[union-attr]
    given = list(zip(schema.arguments, node.args, strict=False))
    return given + [
        (argument, node.kwargs[argument.name]) for argument in schema.arguments if argument.name in node.kwargs
    ]
