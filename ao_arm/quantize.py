"""Quantizes float weights to int8, and to 4 bits in groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

#: Element types of weights before they are quantized, of activations, biases and outputs.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: -128 is left out: where a CPU adds pairs of products in 16 bits, two of -128 * -128 would overflow.
LARGEST = 127
_LEAST_SCALE = 2.0**-23
#: Elements that are converted at once; bounds the extra memory.
_CHUNK = 1 << 20
#: Group sizes are multiples of this, or whole rows.
_GROUP_STEP = 32
#: What a search tries for the steps between 0 and a symmetric group's largest magnitude, and for the share of an
#: asymmetric group's range.
_SEARCHED_STEPS = (7.5, 8.5, 9.0, 9.5, 10.0, 11.0)
_SEARCHED_SHARES = (0.97, 0.94, 0.91, 0.88, 0.85)


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
    _check_finite(weight, largest)
    scale = (largest if per_channel else largest.amax(dim=0, keepdim=True)).div(LARGEST).clamp(min=_LEAST_SCALE)
    inverse = (1.0 / scale).expand(n)
    qdata = torch.empty(n, k, dtype=torch.int8)
    for begin in range(0, n, rows):
        chunk = weight[begin : begin + rows].float() * inverse[begin : begin + rows, None]
        qdata[begin : begin + rows] = chunk.round_().clamp_(-LARGEST, LARGEST)
    return qdata, scale


def quantize_weight_in_groups(
    weight: Tensor, group_size: int, symmetric: bool, scale_dtype: torch.dtype, importance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """4 bits with a scale for each group along k.

    Symmetric: of two scales that which gives the group the smaller squared error: ``max |w| / 7.5``, as torchao's
    ``Int8DynamicActivationIntxWeightConfig`` does, or ``-w_max / 8``, where ``w_max`` is the value of the largest
    magnitude, with its sign. The latter is negative for a positive ``w_max``: that uses the value -8, which has no
    positive counterpart, for it. Asymmetric, with 0 among the values: ``scale = (max - min) / 15`` and
    ``zero_point = -8 - round(min / scale)``. The scale is rounded to its dtype first; then
    ``q = clamp(round(w / scale) + zero_point, -8, 7)``, half to even, in float32.

    Args:
        weight: (n, k), float32, bfloat16 or float16, all finite.
        group_size: how many values along k share a scale; divides k.
        symmetric: whether there are no zero points.
        scale_dtype: torch.bfloat16 or torch.float32.
        importance: (k,), the mean square of the input that each column is multiplied by, none negative. Squared errors
            are then weighed by it, which makes them those of the layer's outputs; smaller ranges are tried for each
            group too, and then once the scale that fits the chosen values best,
            ``sum(i * w * (q - zero_point)) / sum(i * (q - zero_point) ** 2)``. What gives the least error is kept. That
            takes about four times as long. Without it smaller ranges are not tried: they lessen the errors of weights,
            but where inputs are large, weights are often large too.

    Returns:
        int8 values (n, k) in [-8, 7], scales (n, k / group_size), and zero points of the same shape, int8 in [-8, 7],
        or None.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    n, k = weight.shape
    qdata = torch.empty(n, k, dtype=torch.int8)
    scale = torch.empty(n, k // group_size, dtype=scale_dtype)
    zero_point = None if symmetric else torch.empty(scale.shape, dtype=torch.int8)
    candidates_of = _symmetric_candidates if symmetric else _asymmetric_candidates
    search = importance is not None
    counts = torch.ones(k) if importance is None else _relative(importance.float())
    counts = counts.view(k // group_size, group_size)
    rows = max(1, _CHUNK // k)
    for begin in range(0, n, rows):
        part = slice(begin, begin + rows)
        groups = weight[part].float().reshape(-1, k // group_size, group_size)
        _check_finite(weight[part], groups.abs().amax(dim=(1, 2)), begin)
        candidates = candidates_of(groups, scale_dtype, search)
        found = _quantize_groups(groups, counts, *next(candidates))
        for candidate in candidates:
            found = _better(found, _quantize_groups(groups, counts, *candidate))
        if search:
            fitted = _fitted_scale(groups, counts, found, scale_dtype)
            found = _better(found, _quantize_groups(groups, counts, fitted, found.zero))
        qdata[part] = found.q.view(-1, k)
        scale[part] = found.scale[..., 0]
        if zero_point is not None:
            zero_point[part] = found.zero[..., 0]
    return qdata, scale, zero_point


def check_weight(weight: Tensor) -> None:
    """Raises ``ValueError`` or ``NotImplementedError`` unless ``weight`` is a float matrix on the CPU."""
    if weight.device.type != "cpu":
        todo = "load real values first" if weight.device.type == "meta" else "move the model with .cpu()"
        raise NotImplementedError(f"it is on the device {weight.device}, and ao_arm quantizes on the CPU; {todo}")
    check_float("its dtype", weight.dtype)
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"it must be a matrix (n, k) with n and k of at least 1, not of shape {tuple(weight.shape)}")


def check_finite(weight: Tensor) -> None:
    """Raises ``ValueError`` if a float weight, (n, k) or of experts, holds NaN or infinity; names the first one."""
    weight = weight.detach()
    weight = weight.reshape(-1, weight.shape[-1])
    rows = max(1, _CHUNK // weight.shape[1])
    for begin in range(0, weight.shape[0], rows):
        part = weight[begin : begin + rows]
        _check_finite(part, part.abs().amax(dim=1), begin)


def check_float(name: str, dtype: torch.dtype) -> None:
    """Raises ``ValueError`` unless layers take and give this dtype."""
    if dtype not in FLOATS:
        raise ValueError(f"{name} must be torch.float32, torch.bfloat16 or torch.float16, not {dtype}")


def check_group_size(k: int, group_size: int) -> None:
    """Raises ``ValueError`` unless groups of this size divide rows of k values; names the nearest sizes that do."""
    if k % group_size == 0:
        return
    fitting = [size for size in range(_GROUP_STEP, k, _GROUP_STEP) if k % size == 0] + [k]
    nearest = sorted(sorted(fitting, key=lambda size: abs(size - group_size))[:3])
    named = ", ".join(f"{size} (whole rows)" if size == k else str(size) for size in nearest)
    raise ValueError(f"k = {k} is no multiple of the group size {group_size}; group sizes that fit: {named}")


class _Grouped(NamedTuple):
    """Values (n, groups, group_size), and of each group scale, zero point and squared error (n, groups, 1); float32."""

    q: Tensor
    scale: Tensor
    zero: Tensor
    error: Tensor


def _symmetric_candidates(groups: Tensor, scale_dtype: torch.dtype, search: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and zero points, (n, groups, 1)."""
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    zero = torch.zeros_like(low)
    yield _rounded(torch.maximum(-low, high) / 7.5, scale_dtype), zero
    largest = torch.where(-low > high, low, high)
    for steps in (8.0, *(_SEARCHED_STEPS if search else ())):
        yield _rounded(-largest / steps, scale_dtype), zero


def _asymmetric_candidates(groups: Tensor, scale_dtype: torch.dtype, search: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and zero points, (n, groups, 1)."""
    low = groups.amin(dim=2, keepdim=True).clamp(max=0)
    high = groups.amax(dim=2, keepdim=True).clamp(min=0)
    for share in (1.0, *(_SEARCHED_SHARES if search else ())):
        # (high - low) / 15, halved first: their difference may be too large for float32.
        scale = _rounded((high * share / 2 - low * share / 2) / 7.5, scale_dtype)
        yield scale, (-8 - torch.round(low * share / scale)).clamp(-8, 7)


def _rounded(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales that the dtype can hold, in float32, none nearer to 0 than the least scale."""
    scale = torch.where(scale.abs() < _LEAST_SCALE, _LEAST_SCALE, scale)
    if dtype == torch.float32:
        return scale
    # As .to(dtype).float() rounds, half to even. Inductor leaves that out unless emulate_precision_casts is set: then
    # values would be chosen by other scales than those that are kept.
    bits = scale.view(torch.int32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & -0x10000).view(torch.float32)


def _relative(importance: Tensor) -> Tensor:
    """To its mean, and none quite 0: a column that no input reached must not take any value."""
    return (importance / importance.mean().clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=1e-6)


def _quantize_groups(groups: Tensor, counts: Tensor, scale: Tensor, zero: Tensor) -> _Grouped:
    """``counts`` (groups, group_size) is how much the squared error of each column counts."""
    q = (torch.round(groups / scale) + zero).clamp_(-8, 7)
    return _Grouped(q, scale, zero, ((q - zero) * scale - groups).square().mul_(counts).sum(dim=2, keepdim=True))


def _fitted_scale(groups: Tensor, counts: Tensor, found: _Grouped, scale_dtype: torch.dtype) -> Tensor:
    """The scales with the least error for values that are chosen already."""
    steps = found.q - found.zero
    along = (groups * steps).mul_(counts).sum(dim=2, keepdim=True)
    return _rounded(along / steps.square().mul_(counts).sum(dim=2, keepdim=True).clamp(min=1e-6), scale_dtype)


def _better(old: _Grouped, new: _Grouped) -> _Grouped:
    """For each group what has the smaller squared error; the old if neither has."""
    smaller = new.error < old.error
    return _Grouped(*(torch.where(smaller, n, o) for n, o in zip(new, old, strict=True)))


def _check_finite(weight: Tensor, largest: Tensor, first: int = 0) -> None:
    """Names the first value that is NaN or infinite; ``largest`` is each row's magnitude, ``first`` the first row."""
    if not largest.isfinite().all():
        row = int((~largest.isfinite()).nonzero()[0])
        column = int((~weight[row].isfinite()).nonzero()[0])
        raise ValueError(f"it holds {weight[row, column].item()} at [{first + row}, {column}]")
