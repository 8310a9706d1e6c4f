"""Each op in plain PyTorch: the oracle that kernels are tested against. Slow, and right by inspection.

The order of floating-point operations here is the one every kernel follows, so results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_SCALE = 2.0**-23
"""Least activation scale: float32's epsilon, exact in all activation types."""

GROUPED_TOLERANCE = 1e-6
"""How far a result for 4-bit weights may be from the one here, as a share of ``magnitude_qta8a_qga4w`` of its token."""


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
        qdata: (n, k) int8.
        weight_scale: (n,) float32.
        bias: (n,) of any of the three dtypes, or None.
        symmetric, per_token: as for ``quantize_activations``.

    Returns:
        (..., n) of the input's dtype; NaN for tokens that hold a NaN or an infinity.
    """
    rows = input.reshape(-1, input.shape[-1])
    tokens = quantize_activations(rows, symmetric, per_token)
    return _scaled_products(*tokens, qdata, weight_scale, bias, input.dtype, input.shape)


def linear_int8_dynamic_shared(
    input: Tensor,
    qdata: Sequence[Tensor],
    weight_scales: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    symmetric: bool,
    per_token: bool,
) -> list[Tensor]:
    """What ``linear_int8_dynamic`` computes for each of several weights: lists of these, of any numbers of channels."""
    weights = zip(qdata, weight_scales, biases, strict=True)
    return [linear_int8_dynamic(input, *weight, symmetric, per_token) for weight in weights]


def linear_int8_quantized(
    qdata: Tensor,
    act_scale: Tensor,
    act_zero_point: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    output_dtype: torch.dtype,
) -> Tensor:
    """What ``linear_int8_dynamic`` computes after ``quantize_activations``: activations that are quantized already.

    Args:
        qdata: (..., k) int8, the activations.
        act_scale: float32, one for each token in any shape of as many elements, or one for all; not finite: NaN.
        act_zero_point: int8 or int32 in [-128, 127], of as many elements; None for zeros.
        weight: (n, k) int8.
        weight_scale: (n,) float32.
        bias: (n,) float32, bfloat16 or float16, or None.
        output_dtype: float32, bfloat16 or float16.

    Returns:
        (..., n) of the output dtype; NaN for tokens whose scale is not finite.
    """
    tokens = _quantized_tokens(qdata.reshape(-1, qdata.shape[-1]), act_scale, act_zero_point)
    return _scaled_products(*tokens, weight, weight_scale, bias, output_dtype, qdata.shape)


def _scaled_products(
    q: Tensor,
    token_scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    input_shape: torch.Size,
) -> Tensor:
    accumulators = matmul_int8(q, weight) - zero_point * weight.sum(dim=1, dtype=torch.int32)
    output = (token_scale * weight_scale) * accumulators.float()
    if bias is not None:
        output = output + bias.float()
    return output.to(dtype).reshape(*input_shape[:-1], weight.shape[0])


def quantize_static(input: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``clamp(round(x * (1 / scale)) + zero_point)`` to the range of ``zero_point``'s dtype, int8 or uint8.

    Rounding is half to even, in float32. Infinities saturate, and a NaN counts as 0.

    Args:
        input: any shape, float32, bfloat16 or float16.
        scale: one positive float32.
        zero_point: one int8 or uint8.
    """
    steps = torch.round(input.float() * (1.0 / scale)).nan_to_num(nan=0.0)
    limits = torch.iinfo(zero_point.dtype)
    return (steps + zero_point.float()).clamp(limits.min, limits.max).to(zero_point.dtype)


def linear_int8_static(
    input: Tensor,
    qdata: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor,
    input_zero_point: Tensor,
    output_scale: Tensor | None = None,
    output_zero_point: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    output_min: float | None = None,
    output_max: float | None = None,
) -> Tensor:
    """A linear layer whose activations are quantized by a scale that is known beforehand.

    With ``acc = (q - input_zero_point) @ qdata^T`` and ``s = input_scale * weight_scale``, a float output is
    ``s * acc + bias`` in float32, clamped and rounded once. A quantized output is
    ``round((acc + round(bias / s)) * (s * (1 / output_scale))) + output_zero_point``: the bias is rounded to int32
    once, the sum saturates to int32, and the bounds are those of the dtype and ``round(bound / output_scale) +
    output_zero_point``. That differs by at most one step from rounding the float output.

    Args:
        input: (..., k), float32, bfloat16, float16, or already quantized, of ``input_zero_point``'s dtype.
        qdata: (n, k) int8.
        weight_scale: (n,) float32.
        bias: (n,) float32, bfloat16 or float16, or None.
        input_scale, input_zero_point: (1,), float32 and int8 or uint8.
        output_scale, output_zero_point: the same for a quantized output, or None for a float one.
        output_dtype: of a float output; the input's by default, float32 if that is quantized.
        output_min, output_max: bounds of the output; 0 as the least is a ReLU.

    Returns:
        (..., n).
    """
    k = input.shape[-1]
    rows = input.reshape(-1, k)
    q = quantize_static(rows, input_scale, input_zero_point) if input.is_floating_point() else rows
    zero_point = int(input_zero_point)
    accumulators = (q.double() - zero_point) @ qdata.double().t()
    scale = input_scale * weight_scale
    low = -torch.inf if output_min is None else output_min
    high = torch.inf if output_max is None else output_max
    shape = (*input.shape[:-1], qdata.shape[0])
    if output_scale is None or output_zero_point is None:
        output = scale * accumulators.float()
        if bias is not None:
            output = output + bias.float()
        default = input.dtype if input.is_floating_point() else torch.float32
        return output.clamp(low, high).to(output_dtype or default).reshape(shape)
    least_int32, greatest_int32 = -(2.0**31), 2.0**31 - 1
    if bias is not None:
        steps = torch.round(bias.float() / scale).nan_to_num(nan=0.0)
        accumulators = accumulators + steps.double().clamp(least_int32 + 128, greatest_int32 - 127)
    sums = accumulators.clamp(least_int32, greatest_int32).to(torch.int32).float()
    limits = torch.iinfo(output_zero_point.dtype)
    offset = float(output_zero_point)
    least, greatest = (torch.round(torch.tensor(bound) / output_scale) + offset for bound in (low, high))
    steps = torch.round(sums * (scale * (1.0 / output_scale))) + offset
    steps = torch.minimum(torch.maximum(steps, least.clamp(min=limits.min)), greatest.clamp(max=limits.max))
    return steps.to(output_zero_point.dtype).reshape(shape)


def linear_qta8a_qga4w(
    input: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None = None,
    act_scale: Tensor | None = None,
    act_zero_point: Tensor | None = None,
    output_min: float | None = None,
    output_max: float | None = None,
) -> Tensor:
    """Per-token affine int8 activations times 4-bit weights in groups along k.

    For each token, output channel and group the products of ``activation - token_zero_point`` and
    ``qdata - zero_point`` are added up exactly; ``scale`` times these sums is added up in float32 in the order of the
    groups, multiplied by the token's scale, the bias is added, the result clamped. Kernels take the token's zero point
    off with the columns' float sums instead, and may fuse multiplications with additions: they come within 1e-6 of the
    largest sum of magnitudes of terms of the token (``magnitude_qta8a_qga4w``).

    Args:
        input: (..., k), float32, bfloat16 or float16, or int8 that is quantized already.
        qdata: (n, k) int8 in [-8, 7].
        scale: (n, k / group_size), bfloat16 or float32.
        zero_point: (n, k / group_size) int8 in [-8, 7], or None for zeros.
        bias: (n,) of any of the three dtypes, or None.
        act_scale: float32, one for each token in any shape of as many elements, or one for all; chosen as by
            ``quantize_activations``, asymmetric, if None.
        act_zero_point: int8 or int32 in [-128, 127], likewise; None for zeros. Only with ``act_scale``.
        output_min, output_max: bounds of the output, or None.

    Returns:
        (..., n) of the input's dtype, float32 for int8; NaN for tokens that hold a NaN or an infinity, or
        whose scale is one of these.
    """
    rows = input.reshape(-1, input.shape[-1])
    q, token_scale, token_zero = _quantized_tokens(rows, act_scale, act_zero_point)
    activations = _by_group((q.to(torch.int32) - token_zero).double(), scale)
    weight = _by_group(qdata.double(), scale) - (0 if zero_point is None else zero_point.double()[..., None])
    sums = torch.zeros(rows.shape[0], qdata.shape[0])
    for group in range(scale.shape[1]):
        accumulators = activations[:, group] @ weight[:, group].t()
        sums = sums + scale[:, group].float() * accumulators.float()
    output = token_scale * sums
    if bias is not None:
        output = output + bias.float()
    if output_min is not None or output_max is not None:
        output = output.clamp(output_min, output_max)
    dtype = torch.float32 if input.dtype == torch.int8 else input.dtype
    return output.to(dtype).reshape(*input.shape[:-1], qdata.shape[0])


def linear_qta8a_qga4w_shared(
    input: Tensor,
    qdata: Sequence[Tensor],
    scale: Sequence[Tensor],
    zero_point: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    """What ``linear_qta8a_qga4w`` computes of floats for each of several weights: lists of these, of any groups."""
    return [linear_qta8a_qga4w(input, *weight) for weight in zip(qdata, scale, zero_point, biases, strict=True)]


def magnitude_qta8a_qga4w(
    input: Tensor,
    qdata: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    act_scale: Tensor | None = None,
    act_zero_point: Tensor | None = None,
) -> Tensor:
    """(m, 1) float64: for each token the largest sum of ``(|q| + |zero_point|) * |weight|`` over the output channels,
    times the token's scale: kernels add up the two parts of an activation ``q - zero_point`` apart from each other."""
    rows = input.reshape(-1, input.shape[-1])
    q, token_scale, token_zero = _quantized_tokens(rows, act_scale, act_zero_point)
    weight = _by_group(qdata.double(), scale) - (0 if zero_point is None else zero_point.double()[..., None])
    weight = (weight * scale.double()[..., None]).abs().flatten(1)
    activations = (q.double().abs() + token_zero.double().abs()) * token_scale.double().abs()
    largest: Tensor = (activations @ weight.t()).amax(dim=1, keepdim=True)
    return largest


def _by_group(values: Tensor, scale: Tensor) -> Tensor:
    groups = scale.shape[1]
    return values.reshape(values.shape[0], groups, values.shape[1] // groups)


def _quantized_tokens(
    rows: Tensor, act_scale: Tensor | None, act_zero_point: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """int8 values (m, k), float32 scales (m, 1), int32 zero points (m, 1)."""
    if act_scale is None:
        return quantize_activations(rows, symmetric=False)
    tokens = (rows.shape[0], 1)
    scale = act_scale.reshape(-1, 1).expand(tokens)
    scale = torch.where(scale.isfinite(), scale, torch.full_like(scale, torch.nan))
    zero_point = (torch.zeros(1) if act_zero_point is None else act_zero_point).reshape(-1, 1).expand(tokens).float()
    if rows.dtype == torch.int8:
        return rows, scale, zero_point.to(torch.int32)
    scale = torch.where(rows.isfinite().all(dim=1, keepdim=True), scale, torch.full_like(scale, torch.nan))
    known = scale.isfinite()
    x = torch.where(known, rows, torch.zeros_like(rows)).float()
    inverse = torch.where(known, 1.0 / scale, torch.zeros_like(scale))
    q = (torch.round(x * inverse) + zero_point).clamp(-128, 127).to(torch.int8)
    return q, scale, zero_point.to(torch.int32)
