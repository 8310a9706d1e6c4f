"""The signal-to-quantization-noise ratio, by which the demo and the benchmark judge results."""

from __future__ import annotations

import torch
from torch import Tensor


def sqnr_db(exact: Tensor, approximate: Tensor) -> float:
    """The power of ``exact`` over that of the error, in dB; infinite if there is none."""
    error = (exact - approximate).double().square().sum()
    return float(10 * torch.log10(exact.double().square().sum() / error))
