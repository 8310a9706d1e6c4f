"""What a benchmark subject is: a layer or a model that every candidate computes, for some cases of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .candidates import Candidate

Function = Callable[[Any], Tensor]
"""From a case's input to the output that is compared."""


class Subject(Protocol):
    """A layer or a model.

    Attributes:
        title: for tables.
        cases: the names of its cases, as the columns of a table.
        sqnr_loss_db: how far below ``Candidate.least_sqnr_db`` the SQNR may be here.
        layers_alone: whether the output is that of a single layer, so that compiled results have an exact reference.
    """

    title: str
    cases: tuple[str, ...]
    sqnr_loss_db: float
    layers_alone: bool

    def full_name(self, case: str) -> str:
        """A case's name among those of all subjects."""

    def input(self, case: str, dtype: torch.dtype) -> Any:
        """What the function takes; the same at every call but for the dtype."""

    def build(self, candidate: Candidate) -> tuple[Function, list[torch.nn.Module]]:
        """The function, with every linear layer made by the candidate, and the layers that were made."""

    def expected(self, case: str) -> Tensor:
        """The fp32 result."""
