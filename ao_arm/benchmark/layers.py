"""Single linear layers as subjects, and the shapes of the presets."""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .candidates import Candidate
from .subject import Function

_CALIBRATION_ROWS = 64


class Shape(NamedTuple):
    """Rows, input features and output features."""

    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"


#: The grid that torch's figures for its own int8 layers on Arm were published for, with more small m and features.
ROWS = (1, 8, 16, 32, 64, 128, 256, 512)
FEATURES = (768, 1024, 2048, 3072, 4096)
FULL = tuple(Shape(m, k, n) for k, n, m in product(FEATURES, FEATURES, ROWS))

#: A token, a sentence and a batch, through the layers of a BERT-base encoder.
QUICK = tuple(Shape(m, k, n) for k, n in ((768, 768), (768, 3072), (3072, 768)) for m in (1, 16, 128))


def shapes(text: str) -> tuple[Shape, ...]:
    """An option's shapes: ``64x768x3072,1x768x768``, each m x k x n.

    Raises:
        argparse.ArgumentTypeError: if it is anything else.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)x(\d+)x(\d+)\s*", part)
        shape = Shape(*map(int, match.groups())) if match else None
        if shape is None or 0 in shape:
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} is not a shape: write m x k x n, rows x input features x output features, each at "
                "least 1, like 64x768x3072"
            )
        found.append(shape)
    return tuple(dict.fromkeys(found))


class LayerSubject:
    """A linear layer with normally distributed weights, bias and inputs, which are the same in every run."""

    sqnr_loss_db = 0.0
    layers_alone = True

    def __init__(self, k: int, n: int, rows: Iterable[int]) -> None:
        self.title = f"{k} -> {n}"
        self._shapes = {f"m = {m}": Shape(m, k, n) for m in rows}
        self.cases = tuple(self._shapes)
        generator = torch.Generator().manual_seed(0)
        self._linear = torch.nn.utils.skip_init(torch.nn.Linear, k, n).requires_grad_(False).eval()
        self._linear.weight.normal_(std=k**-0.5, generator=generator)
        self._linear.bias.normal_(generator=generator)
        self._calibration = torch.randn(_CALIBRATION_ROWS, k, generator=generator)
        self._inputs = {case: torch.randn(shape.m, k, generator=generator) for case, shape in self._shapes.items()}

    def full_name(self, case: str) -> str:
        """The shape, as the option takes it: ``64x768x3072``."""
        return str(self._shapes[case])

    def input(self, case: str, dtype: torch.dtype) -> Tensor:
        """The input, (m, k)."""
        return self._inputs[case].to(dtype)

    def expected(self, case: str) -> Tensor:
        """The float layer's output, (m, n) float32."""
        output: Tensor = self._linear(self._inputs[case])
        return output

    def build(self, candidate: Candidate) -> tuple[Function, list[torch.nn.Module]]:
        """The candidate's layer, as the function and as the one layer that was made."""
        same = candidate.dtype == torch.float32
        linear = self._linear if same else copy.deepcopy(self._linear).to(candidate.dtype)
        layer = candidate.make(linear, self._calibration.to(candidate.dtype))
        return layer, [layer]


def subjects(wanted: Iterable[Shape]) -> list[LayerSubject]:
    """A subject for each weight among the shapes, with all its numbers of rows."""
    rows: dict[tuple[int, int], list[int]] = {}
    for m, k, n in wanted:
        rows.setdefault((k, n), []).append(m)
    return [LayerSubject(k, n, ms) for (k, n), ms in rows.items()]
