"""Quantizes float weights to int8."""

from __future__ import annotations

import torch
from torch import Tensor

#: -128 is left out: where a CPU adds pairs of products in 16 bits, two of -128 * -128 would overflow.
LARGEST = 127
_LEAST_SCALE = 2.0**-23
#: Elements that are converted at once; bounds the extra memory.
_CHUNK = 1 << 20


def quantize_weight(weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with ``scale = max |w| / 127`` and ``q = round_half_to_even(w * (1 / scale))``, in float32.

    Args:
        weight: (n, k), float32, bfloat16 or float16, all finite.
        per_channel: one scale for each of the n rows, or one for the whole weight.

    Returns:
        int8 values (n, k) in [-127, 127] and float32 scales, (n,) or (1,).

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    n, k = weight.shape
    rows = max(1, _CHUNK // max(k, 1))
    largest = torch.empty(n, dtype=torch.float32)
    for begin in range(0, n, rows):
        largest[begin : begin + rows] = weight[begin : begin + rows].abs().amax(dim=1).float()
    if not largest.isfinite().all():
        row = int((~largest.isfinite()).nonzero()[0])
        column = int((~weight[row].isfinite()).nonzero()[0])
        raise ValueError(f"it holds {weight[row, column].item()} at [{row}, {column}]")
    scale = (largest if per_channel else largest.amax(dim=0, keepdim=True)).div(LARGEST).clamp(min=_LEAST_SCALE)
    inverse = (1.0 / scale).expand(n)
    qdata = torch.empty(n, k, dtype=torch.int8)
    for begin in range(0, n, rows):
        chunk = weight[begin : begin + rows].float() * inverse[begin : begin + rows, None]
        qdata[begin : begin + rows] = chunk.round_().clamp_(-LARGEST, LARGEST)
    return qdata, scale
