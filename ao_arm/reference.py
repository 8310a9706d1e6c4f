"""Each op in plain PyTorch: the oracle that kernels are tested against. Slow, and right by inspection.

The order of floating-point operations here is the one every kernel follows, so results are equal bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Least activation scale: float32's epsilon, exact in all activation types.
LEAST_SCALE = 2.0**-23


def quantize_activations(input: Tensor, symmetric: bool, per_token: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes tokens to int8.

    Symmetric, as torchao's ``Int8DynamicActivationInt8WeightConfig`` does by default: ``scale = max |x| / 127.5`` in
    the input's dtype, at least 2^-23; zero point 0. Asymmetric: ``scale = (max - min) / 255`` in float32 with 0 within
    [min, max]; ``zero_point = -128 - round(min / scale)``. Rounding is half to even. The values are
    ``clamp(round(x * (1 / scale)) + zero_point, -128, 127)``.

    Args:
        input: (m, k), float32, bfloat16 or float16.
        symmetric: whether zero points are 0.
        per_token: one scale for each row, or one for all rows that are finite.

    Returns:
        int8 values (m, k), float32 scales (m, 1), int32 zero points (m, 1). A row that holds a NaN or an infinity has
        values 0, scale NaN and zero point 0.
    """
    finite = input.isfinite().all(dim=1, keepdim=True)
    x = torch.where(finite, input, torch.zeros_like(input))
    low = x.amin(dim=1, keepdim=True).clamp(max=0)
    high = x.amax(dim=1, keepdim=True).clamp(min=0)
    if not per_token and x.shape[0] > 0:
        low = low.amin().expand_as(low)
        high = high.amax().expand_as(high)
    if symmetric:
        scale = (torch.maximum(-low, high) / 127.5).float().clamp(min=LEAST_SCALE)
        zero_point = torch.zeros_like(scale)
    else:
        low, high = low.float(), high.float()
        spread = (high - low) / 255.0
        scale = torch.where(spread.isinf(), high / 255.0 - low / 255.0, spread).clamp(min=LEAST_SCALE)
        zero_point = (-128.0 - torch.round(low / scale)).clamp(-128, 127)
    q = (torch.round(x.float() * (1.0 / scale)) + zero_point).clamp(-128, 127)
    q = torch.where(finite, q, torch.zeros_like(q)).to(torch.int8)
    scale = torch.where(finite, scale, torch.full_like(scale, torch.nan))
    return q, scale, torch.where(finite, zero_point, torch.zeros_like(zero_point)).to(torch.int32)


def matmul_int8(qdata: Tensor, weight: Tensor) -> Tensor:
    """``qdata @ weight^T`` for int8 (m, k) and (n, k), exact in int32 (m, n)."""
    # Products of int8 and sums of up to 2^39 of them are exact in float64, whose matmul is the fast one.
    return (qdata.double() @ weight.double().t()).to(torch.int32)


def linear_int8_dynamic(
    input: Tensor, qdata: Tensor, weight_scale: Tensor, bias: Tensor | None, symmetric: bool, per_token: bool
) -> Tensor:
    """``(token_scale * weight_scale) * (acc - zero_point * column_sum) + bias``, in float32, rounded once at the end.

    Args:
        input: (..., k), float32, bfloat16 or float16.
        qdata: (n, k) int8 in [-127, 127].
        weight_scale: (n,) float32.
        bias: (n,) of any of the three dtypes, or None.
        symmetric, per_token: as for ``quantize_activations``.

    Returns:
        (..., n) of the input's dtype; NaN for tokens that hold a NaN or an infinity.
    """
    rows = input.reshape(-1, input.shape[-1])
    q, scale, zero_point = quantize_activations(rows, symmetric, per_token)
    accumulators = matmul_int8(q, qdata) - zero_point * qdata.sum(dim=1, dtype=torch.int32)
    output = (scale * weight_scale) * accumulators.float()
    if bias is not None:
        output = output + bias.float()
    return output.to(input.dtype).reshape(*input.shape[:-1], qdata.shape[0])
