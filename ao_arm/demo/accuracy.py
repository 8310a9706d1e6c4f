"""How near the embeddings of a quantized model are to those of fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sqnr import sqnr_db
from .errors import DemoError


@dataclass(frozen=True)
class Accuracy:
    """How near a quantized model's embeddings are to those of fp32."""

    sqnr_db: float
    mean_cosine: float
    least_cosine: float
    same_neighbour: int


def compare(name: str, reference: Tensor, embeddings: Tensor, least_cosine: float) -> Accuracy:
    """The accuracy of a model's embeddings.

    Raises:
        DemoError: if they are wrong rather than rounded: timing them would mean nothing.
    """
    cosine = (reference * embeddings).sum(dim=1).double()
    # Written so that NaN fails.
    if not (embeddings.isfinite().all() and cosine.mean() > least_cosine):
        raise DemoError(
            f"the embeddings of {name} are wrong (mean cosine to fp32 {cosine.mean():.4f}, which must be "
            f"above {least_cosine}), so nothing is timed. Please report this with the output of python -m ao_arm info."
        )
    return Accuracy(
        sqnr_db=sqnr_db(reference, embeddings),
        mean_cosine=float(cosine.mean()),
        least_cosine=float(cosine.amin()),
        same_neighbour=int((_neighbours(embeddings) == _neighbours(reference)).sum()),
    )


def _neighbours(embeddings: Tensor) -> Tensor:
    """For each sentence the number of the one that is most similar to it."""
    return (embeddings @ embeddings.t()).fill_diagonal_(-1).argmax(dim=1)


def count_same_subject(embeddings: Tensor, subject_of: Sequence[int]) -> int:
    """How many sentences have their nearest neighbour in their own subject."""
    subjects = torch.tensor(subject_of)
    return int((subjects[_neighbours(embeddings)] == subjects).sum())
