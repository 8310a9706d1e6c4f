"""torchao's quantization in elementary ops: patterns made by tracing torchao's own functions.

Inductor decomposes these functions before any pass runs, exported programs do in ``run_decompositions()``, each in its
own way, which depends on the versions of torch and torchao. So the patterns are not written down; they are what the
installed versions make of the functions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.pattern_matcher import Match, PatternExpr
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

from .constants import with_values
from .matching import AnyOf, Call, Cast, Source, Through, aten, is_view, is_view_of_tokens, match, prims

_LEAST, _GREATEST = -128, 127


@dataclass(frozen=True)
class Traced:
    """A function as a pattern.

    Attributes:
        results: a pattern for each of the function's results; the first one holds all.
    """

    results: tuple[PatternExpr, ...]

    def match(self, node: Any) -> tuple[Match, tuple[Any, ...]] | None:
        """The match that ends in ``node``, and the nodes of all results."""
        found = match(self.results[0], node)
        if found is None:
            return None
        return found, tuple(found.ctx.pattern_to_node.get(result) for result in self.results)


@dataclass(frozen=True)
class QuantizationRule:
    """How torchao quantizes activations by their own range.

    Attributes:
        mapping: "symmetric" or "asymmetric".
        dtype: of the activations.
        own_dtype: whether scales are of that dtype too, and all arithmetic; else they are float32.
    """

    mapping: str
    dtype: torch.dtype
    own_dtype: bool


def _mapping_type(rule: QuantizationRule) -> MappingType:
    return MappingType.SYMMETRIC if rule.mapping == "symmetric" else MappingType.ASYMMETRIC


@functools.cache
def quantization_patterns(dtype: torch.dtype) -> tuple[tuple[QuantizationRule, Traced], ...]:
    """For each way in which torchao quantizes activations of a dtype: integers, scale and zero point from ``input``."""
    rules = [QuantizationRule(mapping, dtype, own) for mapping in ("symmetric", "asymmetric") for own in (False, True)]
    example = torch.zeros(3, 8, dtype=dtype)
    return tuple(
        (rule, traced)
        for rule in rules
        for traced in _traced(functools.partial(_quantize, rule), {"input": example}, kept_tokens=True)
    )


@functools.cache
def dequantization_patterns(dtype: torch.dtype) -> tuple[Traced, ...]:
    """Floats of a dtype from ``input``, ``scale`` and, if there is one, ``zero_point``: of activations per token, of
    weights in groups or per channel."""
    integers = torch.zeros(3, 8, dtype=torch.int8)
    found: list[Traced] = []
    for zeros in ({"zero_point": torch.zeros(3, 1, dtype=torch.int8)}, {}):
        for scale in (torch.ones(3, 1, dtype=dtype), torch.ones(3, 1)):
            found += _traced(functools.partial(_dequantize, dtype), {"input": integers, "scale": scale, **zeros})
    return tuple(found)


def _quantize(rule: QuantizationRule, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    block = [1, input.shape[-1]]
    epsilon, dtype = (None, None) if rule.own_dtype else (torch.finfo(torch.float32).eps, torch.float32)
    more = {"keepdim": True} if "keepdim" in inspect.signature(choose_qparams_affine).parameters else {}
    scale, zero_point = choose_qparams_affine(
        input, _mapping_type(rule), block, torch.int8, _LEAST, _GREATEST, epsilon, dtype, torch.int8, **more
    )
    return quantize_affine(input, block, scale, zero_point, torch.int8, _LEAST, _GREATEST), scale, zero_point


def _dequantize(dtype: torch.dtype, input: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    dequantized: Tensor = dequantize_affine(
        input, [1, input.shape[-1]], scale, zero_point, torch.int8, _LEAST, _GREATEST, output_dtype=dtype
    )
    return dequantized


def _traced(function: Callable[..., Any], examples: dict[str, Tensor], kept_tokens: bool = False) -> list[Traced]:
    """A function's patterns, by Inductor's decompositions and by those of exported programs.

    ``kept_tokens`` says whether rows of its inputs have to stay rows.
    """
    tables = (select_decomp_table(), torch.export.default_decompositions())
    return [_traced_by(table, function, examples, kept_tokens) for table in tables]


def _traced_by(
    table: Mapping[Any, Callable[..., Any]],
    function: Callable[..., Any],
    examples: dict[str, Tensor],
    kept_tokens: bool,
) -> Traced:
    names = list(examples)

    def positional(*values: Tensor) -> Any:
        return function(**dict(zip(names, values, strict=True)))

    with with_values():
        graph = make_fx(positional, decomposition_table=table, tracing_mode="real")(*examples.values())
    patterns: dict[Node, PatternExpr] = {}
    zeros: set[Node] = set()
    placeholders = iter(names)
    results: Any = ()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            name = next(placeholders)
            patterns[node] = Source(name, is_view_of_tokens if kept_tokens else is_view)
        elif node.op == "output":
            results = node.args[0]
        else:
            patterns[node] = _pattern(node, patterns, zeros)
    results = results if isinstance(results, list | tuple) else (results,)
    return Traced(tuple(patterns[result] for result in results))


def _pattern(node: Node, patterns: dict[Node, PatternExpr], zeros: set[Node]) -> PatternExpr:
    """The pattern of a traced call; shapes are left open, and nodes that only change them may come in anywhere."""
    first = node.args[0] if node.args else None
    if node.target in (aten.full.default, aten.full_like.default) and node.args[1] == 0:
        zeros.add(node)
    if isinstance(first, Node) and first in zeros and len(node.all_input_nodes) == 1:
        zeros.add(node)
    if is_view(node) and isinstance(first, Node):
        return patterns[first]
    if node.target is prims.convert_element_type.default:
        return Cast(node.args[1], Through(is_view, _again(patterns[first])))  # type: ignore[arg-type, index]
    schema = node.target._schema  # type: ignore[union-attr]
    given = {
        **dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)),
        **{name: value for name, value in node.kwargs.items() if node.target is not aten.full.default},
    }
    wanted = {
        name: Through(is_view, _again(patterns[value])) if isinstance(value, Node) else value
        for name, value in given.items()
        if not isinstance(value, list | tuple) and name != "keepdim"
    }
    call = Call(node.target, **wanted)
    # Adding the zero points of symmetric activations may have been left out already.
    if node.target is aten.add.Tensor and isinstance(node.args[1], Node) and node.args[1] in zeros:
        return AnyOf(call, patterns[first])  # type: ignore[index]
    return call


def _again(pattern: PatternExpr) -> PatternExpr:
    return pattern.again() if isinstance(pattern, Source) else pattern
