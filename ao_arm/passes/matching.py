"""What torch's own pattern matcher lacks: arguments by name, alternatives, and nodes that only pass values on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._inductor.pattern_matcher import FailedMatch, KeywordArg, Match, MatchContext, PatternExpr, is_match
from torch.fx import Node

aten, prims = torch.ops.aten, torch.ops.prims

#: Ops that give the same values in another shape.
VIEWS = frozenset(
    (
        aten.alias.default,
        aten._unsafe_view.default,
        aten.contiguous.default,
        aten.expand.default,
        aten.expand_copy.default,
        aten.flatten.using_ints,
        aten.reshape.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.view.default,
        aten.view_copy.default,
    )
)
_EXPANSIONS = frozenset((aten.expand.default, aten.expand_copy.default))
#: Ops that give the same values in another dtype, as far as it can hold them.
CASTS = frozenset(
    (
        aten._to_copy.default,
        aten.to.dtype,
        aten.to.dtype_layout,
        prims.convert_element_type.default,
    )
)
#: Checks that a graph makes of its own values.
ASSERTIONS = frozenset((aten._assert_tensor_metadata.default,))


def is_view(node: Any) -> bool:
    """Whether ``node`` only gives its input another shape, or another name."""
    return isinstance(node, Node) and (node.target in VIEWS or (node.target in CASTS and not _changes_dtype(node)))


def is_expansion(node: Any) -> bool:
    """Whether ``node`` only repeats its input along dimensions of size 1."""
    return isinstance(node, Node) and node.target in _EXPANSIONS


def is_view_of_tokens(node: Any) -> bool:
    """Whether ``node`` gives the rows of its input in another shape: the last dimension stays."""
    if not is_view(node):
        return False
    before, after = shape_of(node.args[0]), shape_of(node)
    if not before or not after or str(before[-1]) != str(after[-1]):
        return False
    return node.target not in _EXPANSIONS or str(before) == str(after)


def is_view_or_cast(node: Any) -> bool:
    """Whether ``node`` gives the values of its input, in another shape or dtype."""
    return isinstance(node, Node) and (node.target in VIEWS or node.target in CASTS)


def is_cast(node: Any) -> bool:
    """Whether ``node`` gives the values of its input in another dtype."""
    return isinstance(node, Node) and node.target in CASTS


def without(kind: Callable[[Any], bool], node: Any) -> Any:
    """What ``node`` gets its values from, past all nodes of a kind."""
    while kind(node):
        node = node.args[0]
    return node


def users(node: Node) -> list[Node]:
    """What uses a value, but for checks of it."""
    return [user for user in node.users if user.target not in ASSERTIONS]


def spreads_over_rows(match: Match, ops: Iterable[Any]) -> bool:
    """Whether the second operands of a match's calls of some ops hold one number for each row, or a single one."""
    others = [arguments(node)["other"] for node in match.nodes if node.target in ops]
    return all(is_column(other) for other in others if isinstance(other, Node))


def is_column(node: Any) -> bool:
    """Whether a node holds one number for each row, or a single one, before it is expanded."""
    shape = _shape_before_expansion(node)
    return shape is not None and (not shape or is_one(shape[-1]))


def is_row(node: Any) -> bool:
    """Whether all numbers of a node lie along the last dimension, before it is expanded."""
    shape = _shape_before_expansion(node)
    return shape is not None and all(is_one(size) for size in shape[:-1])


def _shape_before_expansion(node: Any) -> tuple[Any, ...] | None:
    node = without(is_expansion, node)
    return shape_of(node) if isinstance(node, Node) else None


def is_one(size: Any) -> bool:
    """Whether a size is known to be 1."""
    return isinstance(size, int) and size == 1


def dtype_of(node: Node) -> torch.dtype | None:
    """The dtype of a node's value, or None if that is no tensor or not known."""
    return getattr(node.meta.get("val"), "dtype", None)


def shape_of(node: Node) -> tuple[Any, ...] | None:
    """The shape of a node's value, or None if that is no tensor or not known."""
    shape = getattr(node.meta.get("val"), "shape", None)
    return None if shape is None else tuple(shape)


def arguments(node: Node) -> dict[str, Any]:
    """A call's arguments by their names in the op's schema, with its defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    given.update(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    return {**given, **node.kwargs}


def _changes_dtype(node: Node) -> bool:
    return dtype_of(node) is None or dtype_of(node) != dtype_of(node.args[0])  # type: ignore[arg-type]


class Call(PatternExpr):
    """A call of one of some ops.

    Args:
        targets: the ops.
        arguments: patterns, or the values themselves, by their names in the schema; others may be anything.
    """

    def __init__(self, targets: Iterable[Any] | Any, /, **arguments: Any) -> None:
        self.targets = frozenset(targets if isinstance(targets, list | tuple | set | frozenset) else (targets,))
        self.arguments = arguments

    def _match(self, node: Any, ctx: MatchContext) -> Match | FailedMatch:
        if not isinstance(node, Node) or node.target not in self.targets:
            return FailedMatch("function_mismatch: node={}, pattern={}", node, self)
        given = arguments(node)
        match = Match(ctx, self)
        for name, wanted in self.arguments.items():
            found = given.get(name)
            if isinstance(wanted, PatternExpr):
                inner = ctx.match(wanted, found)
                if not is_match(inner):
                    return inner
                match.extend(inner)
            elif isinstance(found, Node) or found != wanted:
                return FailedMatch("constant_args: {} {!r}!={}", node, found, wanted)
        match.nodes.append(node)
        return match


class Cast(PatternExpr):
    """A copy in a dtype, by whichever op."""

    def __init__(self, dtype: torch.dtype, inner: PatternExpr) -> None:
        self.dtype = dtype
        self.inner = inner

    def _match(self, node: Any, ctx: MatchContext) -> Match | FailedMatch:
        if not is_cast(node) or dtype_of(node) != self.dtype:
            return FailedMatch("cast_mismatch: node={}, pattern={}", node, self)
        inner = ctx.match(self.inner, node.args[0])
        if not is_match(inner):
            return inner
        match = Match(ctx, self)
        match.extend(inner)
        match.nodes.append(node)
        return match


class AnyOf(PatternExpr):
    """The first of some patterns that matches."""

    def __init__(self, *patterns: PatternExpr) -> None:
        self.patterns = patterns

    def _match(self, node: Any, ctx: MatchContext) -> Match | FailedMatch:
        for pattern in self.patterns:
            found = _attempt(pattern, node, ctx)
            if found:
                match = Match(ctx, self)
                match.extend(found)
                return match
        return FailedMatch("none_of: node={}, pattern={}", node, self)


class Through(PatternExpr):
    """A pattern behind any number of nodes of a kind; the nearest place where it matches counts."""

    def __init__(self, kind: Callable[[Any], bool], inner: PatternExpr, least: int = 0) -> None:
        self.kind = kind
        self.inner = inner
        self.least = least

    def _match(self, node: Any, ctx: MatchContext) -> Match | FailedMatch:
        passed: list[Node] = []
        while True:
            found = _attempt(self.inner, node, ctx) if len(passed) >= self.least else None
            if found:
                match = Match(ctx, self)
                match.extend(found)
                match.nodes.extend(passed)
                return match
            if not self.kind(node):
                return FailedMatch("not_behind: node={}, pattern={}", node, self.inner)
            passed.append(node)
            node = node.args[0]


def _attempt(pattern: PatternExpr, node: Any, ctx: MatchContext) -> Match | None:
    """A match that leaves no trace in the context where it fails, so that others can be tried."""
    before = dict(ctx.pattern_to_node)
    found: Match | FailedMatch | None
    try:
        found = ctx.match(pattern, node)
    except FailedMatch:  # the same name for two nodes
        found = None
    if found is not None and is_match(found):
        return found
    ctx.pattern_to_node = before
    return None


def either_way(target: Any, one: PatternExpr, other: PatternExpr) -> PatternExpr:
    """A call of an op of two operands, in whichever order."""
    return AnyOf(Call(target, self=one, other=other), Call(target, self=other, other=one))


class Source(PatternExpr):
    """Anything, under a name in the match, past all nodes of a kind: so that views of one node count as that node."""

    def __init__(self, name: str, kind: Callable[[Any], bool] = is_view) -> None:
        self.name = name
        self.kind = kind

    def _match(self, node: Any, ctx: MatchContext) -> Match | FailedMatch:
        return Match(ctx, self, kwargs={self.name: without(self.kind, node)})

    def again(self) -> Source:
        """The same for another place in a pattern, where another view of the node may stand."""
        return Source(self.name, self.kind)


def captured(name: str) -> PatternExpr:
    """Anything, under a name in the match."""
    return KeywordArg(name)


def match(pattern: PatternExpr, node: Any) -> Match | None:
    """The match of a pattern that ends in ``node``, or None."""
    if not isinstance(node, Node):
        return None
    found = pattern.match(node)
    return found if isinstance(found, Match) else None
