"""Layers that multiply the same input become one call, which quantizes it once: q, k and v; gate and up."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from .. import _ops
from .constants import is_pure
from .matching import arguments
from .mutations import base_of, changes_in_place
from .names import KEPT_META, name_of
from .program import program_with


@dataclass(frozen=True)
class SharedInput:
    """Layers that are one call.

    Attributes:
        names: of the modules that they come from, or else of their nodes.
        op: what they are now.
    """

    names: tuple[str, ...]
    op: str

    def __str__(self) -> str:
        return f"{', '.join(self.names)} share their input: {self.op}"


@dataclass(frozen=True)
class Sharing:
    """How calls of an op become one.

    Attributes:
        op: that takes several weights.
        own: the arguments that it takes a list of, as they are named for one layer.
        common: those that all layers have alike, after the input. Calls that have further arguments are left alone.
    """

    op: Any
    own: tuple[str, ...]
    common: tuple[str, ...] = ()

    def each(self, call: Node) -> list[dict[str, Any]]:
        """The arguments of each layer in a call of the op, as they are named for one layer."""
        _, *lists = list(arguments(call).values())[: 1 + len(self.own)]
        common = {name: arguments(call)[name] for name in self.common}
        return [{**dict(zip(self.own, own, strict=True)), **common} for own in zip(*lists, strict=True)]


#: By the op that serves one layer.
SHARINGS: dict[Any, Sharing] = {
    _ops.linear_int8_dynamic: Sharing(
        _ops.linear_int8_dynamic_shared, ("packed_weight", "weight_scale", "bias"), ("symmetric", "per_token")
    ),
    _ops.linear_qta8a_qga4w: Sharing(_ops.linear_qta8a_qga4w_shared, ("packed_weight", "n", "bias")),
}
_LAYERS = frozenset(
    (*SHARINGS, *(sharing.op for sharing in SHARINGS.values()), _ops.linear_int8_static, _ops.linear_int8_quantized)
)


def share_inputs(program: ExportedProgram) -> ExportedProgram:
    """Makes one call of layers that multiply the same input, as q, k and v do, or gate and up, with the same numbers.

    The input is quantized once, and one parallel region multiplies it by all weights. Taken together are layers with
    dynamic int8 activations, or with 4-bit weights, that no other layer of ao_arm's stands between: each output would
    otherwise wait in memory for long. Weights may differ in shape, and in the kernel that they are packed for.

    Args:
        program: of a model that ao_arm quantized, or what ``fuse`` gave; before or after ``run_decompositions``. It is
            left as it was.

    Returns:
        A program that computes the same bits. ``ao_arm.explain`` says which layers share their input.

    Raises:
        ValueError: if ``program`` is no exported program.
    """
    if not isinstance(program, ExportedProgram):
        raise ValueError(
            f"program must be a torch.export.ExportedProgram, not {type(program).__name__}: compiled models share "
            'inputs by torch.compile(model, backend="ao_arm")'
        )
    module = GraphModule(program.graph_module, deepcopy(program.graph_module.graph))
    share_in_graph(module.graph)
    return program_with(program, module)


def share_in_graph(graph: Graph) -> tuple[SharedInput, ...]:
    """Does in place what ``share_inputs`` does, and says of which layers."""
    return tuple(_share(graph, run) for run in [*_runs(graph)])


def _runs(graph: Graph) -> Iterator[list[Node]]:
    """Calls that can stand where the first of them does."""
    changes: dict[Any, list[Node]] = {}
    for node, of in changes_in_place(graph).items():
        changes.setdefault(_memory(node), []).extend(of)
    run: list[Node] = []
    for node in graph.nodes:
        if node.target not in _LAYERS and not _hides_effects(node):
            continue
        if run and _key(node) == _key(run[0]) and _can_precede(node, run[0], changes):
            run.append(node)
            continue
        if len(run) > 1:
            yield run
        run = [node] if _key(node) is not None else []
    if len(run) > 1:
        yield run


def _key(node: Node) -> tuple[Any, ...] | None:
    """What calls have in common that may become one; None of those that stay as they are."""
    sharing = SHARINGS.get(node.target)
    # What is to be computed anew in the backward pass is marked node by node.
    if sharing is None or "recompute" in node.meta:
        return None
    given = arguments(node)
    named = ("input", *sharing.own, *sharing.common)
    if any(value is not None for name, value in given.items() if name not in named):
        return None
    return (node.target, given["input"], *(given[name] for name in sharing.common))


def _hides_effects(node: Node) -> bool:
    """Whether a node calls what has no schema that tells its effects."""
    return node.op in ("call_module", "call_method") or isinstance(node.target, torch._ops.HigherOrderOperator)


def _can_precede(node: Node, first: Node, changes: dict[Any, list[Node]]) -> bool:
    """Whether a call gives the same where ``first`` stands, before it."""
    moved = _needed_behind(node, first)
    if moved is None:
        return False
    read = {_memory(needed) for one in (node, *moved) for needed in (one, *one.all_input_nodes)}
    return not any(first < change < node for memory in read for change in changes.get(memory, ()))


def _needed_behind(node: Node, first: Node) -> list[Node] | None:
    """What a call needs that stands at ``first`` or behind it, in the graph's order; None if something has to stay."""
    found: set[Node] = set()
    left = [node]
    while left:
        for needed in left.pop().all_input_nodes:
            if needed < first or needed in found:
                continue
            if needed.target in _LAYERS or not (needed.op == "get_attr" or is_pure(needed)):
                return None
            found.add(needed)
            left.append(needed)
    return sorted(found)


def _memory(node: Node) -> Any:
    """What tells whose memory a node reads: attributes are read by several nodes."""
    base = base_of(node)
    return base.target if base.op == "get_attr" else base


def _share(graph: Graph, run: list[Node]) -> SharedInput:
    first, sharing = run[0], SHARINGS[run[0].target]
    names = tuple(name_of(call) for call in run)
    for call in run[1:]:
        for needed in _needed_behind(call, first) or ():
            first.prepend(needed)
    given = [arguments(call) for call in run]
    lists = [[of[name] for of in given] for name in sharing.own]
    with graph.inserting_before(first):
        shared = graph.call_function(
            sharing.op, (given[0]["input"], *lists, *(given[0][name] for name in sharing.common))
        )
        shared.meta["val"] = [call.meta.get("val") for call in run]
        # A program that is saved keeps names, but not from which modules the outputs come.
        outputs = [
            graph.create_node("call_function", operator.getitem, (shared, place), name=name)
            for place, name in enumerate(names)
        ]
    for call, output in zip(run, outputs, strict=True):
        output.meta.update({name: call.meta[name] for name in ("val", *KEPT_META) if name in call.meta})
        call.replace_all_uses_with(output)
        graph.erase_node(call)
    return SharedInput(names, str(sharing.op).removesuffix(".default").replace(".", "::"))
