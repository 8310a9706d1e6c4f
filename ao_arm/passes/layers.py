"""One description of a quantized linear layer, whatever graph it was found in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node


class Unfit(Exception):
    """Why what looks like a quantized linear layer is none that an op of ours computes; its text is the reason."""


@dataclass(frozen=True)
class Activations:
    """What a layer multiplies with its weight.

    Attributes:
        integers: the quantized activations (..., k), int8 or uint8.
        scale: their scale, a number or a node of floats: one for each token, or a single one.
        zero_point: their zero point, an integer or a node of as many as there are scales; None for 0.
        per_token: whether there is a scale for each token.
        floats: what they were quantized from, (..., k), if an op of ours gets the same integers from it; else None.
        mapping: how an op gets them from ``floats``: "symmetric" and "asymmetric", by the range of each token or of all
            of them; None: by ``scale`` and ``zero_point``.
    """

    integers: Node
    scale: Node | float
    zero_point: Node | int | None
    per_token: bool
    floats: Node | None = None
    mapping: str | None = None


@dataclass(frozen=True)
class Weight:
    """A constant weight.

    Attributes:
        qdata: (n, k) int8.
        scale: (n,) floats, or one for all; (n, k / group_size) of 4-bit weights.
        zero_point: (n, k / group_size) int8 of 4-bit weights, or None for zeros.
        group_size: of 4-bit weights; 0 for int8 weights.
    """

    qdata: Tensor
    scale: Tensor
    zero_point: Tensor | None = None
    group_size: int = 0


@dataclass(frozen=True)
class OutputQuantization:
    """How a static layer's output is clamped and quantized.

    Attributes:
        scale, zero_point: of the output.
        dtype: torch.int8 or torch.uint8.
        least, greatest: what an activation function lets through.
    """

    scale: float
    zero_point: int
    dtype: torch.dtype
    least: float | None
    greatest: float | None


@dataclass(frozen=True)
class Layer:
    """A quantized linear layer in a graph.

    Attributes:
        node: what it computes; takes the layer's place when the layer is replaced.
        activations, weight: what it multiplies.
        bias: (n,) floats, or None.
        between: nodes that only this layer uses, from its output back to its product.
        output: how the output is quantized, or None for floats of ``node``'s dtype.
    """

    node: Node
    activations: Activations
    weight: Weight
    bias: Any
    between: tuple[Node, ...] = ()
    output: OutputQuantization | None = None
