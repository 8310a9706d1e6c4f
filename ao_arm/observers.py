"""Observers of activations: from what a layer's inputs were during calibration to their scale and zero point.

Scales and zero points are those of torchao's ``AffineQuantizedMinMaxObserver``; what is observed is ours, because
torchao's keeps extremes in the shape of a batch, and so takes no batch of another number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.granularity import PerTensor
from torchao.quantization.observer import AffineQuantizedMinMaxObserver
from torchao.quantization.quant_primitives import MappingType

from .reference import LEAST_SCALE

#: Values from here on have ranges whose width float32 cannot hold.
_TOO_LARGE = 2.0**126


class MinMaxObserver(AffineQuantizedMinMaxObserver):
    """The range is all that was seen: the same for any order, shape and arrangement of the batches.

    Attributes:
        min_val, max_val: the range so far; float32, (). There are none before the first value: empty batches count for
            nothing.
    """

    min_val: Tensor
    max_val: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Takes a batch, of any shape and float dtype, into account and returns it."""
        if input.numel() > 0:
            self._take(input.detach().float())
        return input

    def _take(self, values: Tensor) -> None:
        """Takes float32 values, at least one, into account."""
        least, greatest = values.aminmax()
        if hasattr(self, "min_val"):
            least, greatest = torch.minimum(self.min_val, least), torch.maximum(self.max_val, greatest)
        self.min_val, self.max_val = least, greatest


class MovingAverageObserver(MinMaxObserver):
    """The range moves a hundredth of the way to each batch's least and greatest value: single outliers count little.

    It begins as that of the first batch. Batches count alike, whatever their number of rows, and their order matters.
    """

    momentum = 0.01

    def _take(self, values: Tensor) -> None:
        least, greatest = values.aminmax()
        if hasattr(self, "min_val"):
            least = self.min_val + self.momentum * (least - self.min_val)
            greatest = self.max_val + self.momentum * (greatest - self.max_val)
        self.min_val, self.max_val = least, greatest


class HistogramObserver(MinMaxObserver):
    """The range is the one with the least squared error of quantizing all values seen, outliers cut off if need be.

    Values are counted in ``bins`` bins that double in width whenever a value lies outside of them. The error of a range
    is that of the bins' centres. The width is a power of two and a value's bin exact, so that bins which became wider
    count what they had counted from the beginning: the result is the same for any order of the batches.

    Attributes:
        counts: of values in each bin; float64, (bins,).
        width: of a bin. The bins lie around 0.
    """

    bins = 8192
    #: How many places of each end of the range are compared, twice; odd, so that the second time includes the best
    #: of the first.
    cuts = 17

    def _take(self, values: Tensor) -> None:
        super()._take(values)
        largest = max(abs(float(self.min_val)), abs(float(self.max_val)))
        if not largest < _TOO_LARGE:  # observed_quantization refuses it
            return
        if not hasattr(self, "counts"):
            self.counts = torch.zeros(self.bins, dtype=torch.float64)
            self.width = LEAST_SCALE / self.bins
        while largest >= self.width * self.bins / 2:
            quarter = self.bins // 4
            merged = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.nn.functional.pad(merged, (quarter, quarter))
            self.width *= 2
        # In float64 nothing is lost by dividing; in float32 the least values would be.
        places = (values.flatten().double() / self.width).floor().long() + self.bins // 2
        self.counts += torch.bincount(places, minlength=self.bins).to(self.counts)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale and the zero point of the best range."""
        seen = self.min_val, self.max_val
        try:
            self.min_val, self.max_val = self._best_range(float(seen[0]), float(seen[1]))
            best: tuple[Tensor, Tensor] = super().calculate_qparams()
        finally:
            self.min_val, self.max_val = seen
        return best

    def _best_range(self, least: float, greatest: float) -> tuple[Tensor, Tensor]:
        """Tries ranges from the whole one down to a tenth of it, each end by itself, coarsely and then finely."""
        low, high = min(least, 0.0), max(greatest, 0.0)
        symmetric = self.mapping_type == MappingType.SYMMETRIC
        ends = (max(-low, high), max(-low, high)) if symmetric else (-low, high)
        centre, spread = (0.55, 0.55), 0.45
        for _ in range(2):
            steps = torch.linspace(-spread, spread, self.cuts, dtype=torch.float64)
            fractions = [(middle + steps).clamp(0.05, 1.0) for middle in centre]
            pairs = torch.stack(fractions, 1) if symmetric else torch.cartesian_prod(*fractions)
            errors = torch.stack([self._error(-a * ends[0], b * ends[1]) for a, b in pairs.tolist()])
            best = pairs[int(errors.argmin())].tolist()
            centre, spread = (best[0], best[1]), spread * 2 / self.cuts
        low, high = -centre[0] * ends[0], centre[1] * ends[1]
        return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)

    def _error(self, low: float, high: float) -> Tensor:
        """The summed squared error of quantizing the bins' centres to 256 steps in [low, high], one of which is 0."""
        occupied = self.counts.nonzero()[:, 0]
        centres = (occupied.double() + 0.5 - self.bins / 2) * self.width
        scale = max((high - low) / 255, LEAST_SCALE)
        zero = 128 if self.mapping_type == MappingType.SYMMETRIC else min(round(-low / scale), 255)
        rounded = ((centres / scale).round().clamp(-zero, 255 - zero)) * scale
        return ((rounded - centres).square() * self.counts[occupied]).sum()


#: What ``acl_int8_static(observer=...)`` accepts.
OBSERVERS: dict[str, Callable[..., Any]] = {
    "minmax": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "histogram": HistogramObserver,
}


DEFAULT = "minmax"
"""The observer that ``acl_int8_static`` takes without one."""


def make_observer(name: str, mapping: MappingType, dtype: torch.dtype) -> Any:
    """An observer for one scale of int8 or uint8 activations.

    Args:
        name: a key of ``OBSERVERS``.
        mapping: symmetric (zero point 0) or asymmetric.
        dtype: torch.int8 or torch.uint8.
    """
    return OBSERVERS[name](
        mapping, dtype, PerTensor(), eps=LEAST_SCALE, scale_dtype=torch.float32, zero_point_dtype=torch.int32
    )


def name_of(observer: Any) -> str:
    """The key of ``OBSERVERS`` by which an observer was made; its class if it is none of them."""
    return next((name for name, kind in OBSERVERS.items() if kind is type(observer)), type(observer).__name__)


def observed_quantization(observer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The scale, (1,) float32, and the zero point, (1,) of ``dtype``, that an observer chose.

    Raises:
        ValueError: if it saw no data, constant data, or values that are not finite or beyond 2^126.
    """
    if not hasattr(observer, "min_val"):
        raise ValueError("its observer saw no data: run the model on calibration inputs between prepare and convert")
    least, greatest = float(observer.min_val), float(observer.max_val)
    if not (abs(least) < _TOO_LARGE and abs(greatest) < _TOO_LARGE):
        raise ValueError(
            f"its observer saw values from {least} to {greatest}: calibrate with inputs that keep them finite and "
            "below 2^126"
        )
    if least == greatest:
        raise ValueError(
            f"its observer saw nothing but {least}: calibrate with inputs that reach this layer, or leave it out with "
            "quantize_'s filter_fn"
        )
    scale, zero_point = observer.calculate_qparams()
    limits = torch.iinfo(dtype)
    zero_point = torch.zeros(1, dtype=torch.int32) if zero_point is None else zero_point
    return scale.reshape(1).float(), zero_point.reshape(1).clamp(limits.min, limits.max).to(dtype)
