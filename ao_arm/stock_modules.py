"""Linear layers of torch.ao's eager quantization: their numbers, and the modules of ours that compute the same.

Classes are known by name: torch.ao is going to lose them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _ops
from .affine_quantized import as_weight, packed_weight_of
from .gradients import are_asked_for, straight_through
from .layout import ACLPackedLayout
from .stock_weights import StockWeight
from .tensor import ACLPackedTensor

_Module = torch.nn.Module
#: What has one scale; what has one for each channel.
_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric)


class PackedEagerLinear(torch.nn.Module):
    """What the two layers below have in common: a packed weight, a bias, and perhaps a ReLU.

    Args:
        weight: (n, k), packed.
        bias: (n,) float32 or None.
        relu: whether negative outputs become 0.

    Attributes:
        in_features, out_features: k and n.
    """

    def __init__(self, weight: ACLPackedTensor, bias: Tensor | None, relu: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.weight_shape
        self.weight = torch.nn.Parameter(as_weight(weight), requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.relu = relu

    @property
    def packed_weight(self) -> ACLPackedTensor:
        """The packed tensor that ``weight`` is or holds."""
        packed = packed_weight_of(self.weight)
        if packed is None:
            raise ValueError(f"the weight of {type(self).__name__} is no longer packed")
        return packed

    @property
    def scheme(self) -> str:
        """Activation and weight quantization in words."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Shape, scheme and kernel."""
        packed = self.packed_weight
        relu = ", relu" if self.relu else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{relu}, "
            f"{self.scheme}, {packed.kernel}"
        )

    def _linear(
        self,
        input: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        output_scale: Tensor | None = None,
        output_zero_point: Tensor | None = None,
    ) -> Tensor:
        """The op of static layers, with scales that may be each call's own."""
        packed = self.packed_weight
        assert packed.weight_scale is not None
        return _ops.call(
            _ops.linear_int8_static,
            input,
            packed.packed_weight,
            packed.weight_scale,
            self.bias,
            scale,
            zero_point,
            output_scale,
            output_zero_point,
            output_min=0.0 if self.relu else None,
        )


class PackedDynamicLinear(PackedEagerLinear):
    """Computes what ``torch.ao.nn.quantized.dynamic.Linear`` does: one scale and one uint8 zero point for all of the
    input, chosen by its range as ``torch._choose_qparams_per_tensor`` does.

    On Arm the integers are the same. On x86, torch rounds a value that lies between two integers to the one that is
    even with the zero point added: where that is odd, the integer differs by one.

    Args:
        weight, bias, relu: as for ``PackedEagerLinear``.
        reduce_range: whether activations take 7 bits, which old x86 CPUs need. May be changed: 8 bits are more
            accurate. The engine qnnpack (``torch.backends.quantized.engine``) ignores it.
    """

    def __init__(self, weight: ACLPackedTensor, bias: Tensor | None, relu: bool, reduce_range: bool) -> None:
        super().__init__(weight, bias, relu)
        self.reduce_range = reduce_range

    @property
    def scheme(self) -> str:
        """Activation and weight quantization in words."""
        bits = ", 7 bits" if self.reduce_range else ""
        granularity = self.packed_weight.get_layout().weight_granularity
        return f"int8 dynamic (asymmetric uint8{bits}, per_tensor x {granularity})"

    def forward(self, input: Tensor) -> Tensor:
        """Quantizes the input, multiplies, scales, adds the bias.

        Args:
            input: (..., k) float32, all finite.

        Returns:
            (..., n) float32.

        Raises:
            ValueError: if the input has another shape or dtype, or holds NaN or infinity.
        """
        if input.dtype != torch.float32:
            raise ValueError(f"input must be torch.float32, as torch.ao's dynamic layers take it, not {input.dtype}")
        scale, zero_point = 1.0, 0
        if input.numel() > 0:
            try:
                scale, zero_point = torch._choose_qparams_per_tensor(input, self.reduce_range)
            except RuntimeError:
                scale = math.nan
            if not math.isfinite(scale):
                raise ValueError("input holds NaN or infinity, for which all of it has no scale")
        quantization = _quantization(scale, zero_point, torch.uint8)
        if not are_asked_for(input, self.bias):
            return self._linear(input, *quantization)
        output = straight_through(_Differentiable(self, quantization), input, self.bias)
        return output.relu() if self.relu else output


@dataclass(frozen=True, eq=False)
class _Differentiable:
    """What gradients need of a layer: see ``gradients.DifferentiableLayer``. Its ReLU is torch's, after it."""

    layer: PackedDynamicLinear
    quantization: tuple[Tensor, Tensor]

    def __call__(self, input: Tensor, bias: Tensor | None) -> Tensor:
        packed = self.layer.packed_weight
        assert packed.weight_scale is not None
        given = (input, packed.packed_weight, packed.weight_scale, bias, *self.quantization)
        return _ops.call(_ops.linear_int8_static, *given)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.layer.packed_weight.plain().dequantized().to(dtype)


class PackedQuantizedLinear(PackedEagerLinear):
    """Computes what ``torch.ao.nn.quantized.Linear`` does: takes and gives torch's quantized tensors.

    Args:
        weight, bias, relu: as for ``PackedEagerLinear``.
        scale, zero_point: of the output.
    """

    def __init__(self, weight: ACLPackedTensor, bias: Tensor | None, relu: bool, scale: float, zero_point: int) -> None:
        super().__init__(weight, bias, relu)
        self.scale = scale
        self.zero_point = zero_point

    @property
    def scheme(self) -> str:
        """Activation and weight quantization in words."""
        return f"int8 static (quantized tensors, per_tensor x {self.packed_weight.get_layout().weight_granularity})"

    def forward(self, input: Tensor) -> Tensor:
        """Multiplies integers and requantizes, as ``ao_arm.reference.linear_int8_static`` says.

        Args:
            input: (..., k), quint8 or qint8, with one scale and zero point.

        Returns:
            (..., n) of the input's dtype, with this layer's ``scale`` and ``zero_point``.

        Raises:
            ValueError: if the input has another shape or dtype.
        """
        if not input.is_quantized or input.qscheme() not in _PER_TENSOR:
            raise ValueError(f"input must be quantized with one scale, by torch.quantize_per_tensor, not {input.dtype}")
        values = input.int_repr()
        if values.dtype not in (torch.uint8, torch.int8):
            raise ValueError(f"input must be torch.quint8 or torch.qint8, not {input.dtype}")
        output = self._linear(
            values,
            *_quantization(input.q_scale(), input.q_zero_point(), values.dtype),
            *_quantization(self.scale, self.zero_point, values.dtype),
        )
        return torch._make_per_tensor_quantized_tensor(output, self.scale, self.zero_point)

    def extra_repr(self) -> str:
        """Shape, the output's scale and zero point, scheme and kernel."""
        return f"{super().extra_repr()}, scale={self.scale}, zero_point={self.zero_point}"


def _quantization(scale: float, zero_point: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero point as the op takes them, (1,) each."""
    return torch.tensor([scale], dtype=torch.float32), torch.tensor([zero_point], dtype=dtype)


# --- torch.ao's layers ---


@dataclass(frozen=True)
class StockLayer:
    """A layer of torch.ao as it is replaced.

    Attributes:
        weight: its weight's numbers.
        replacement: makes our layer of the packed weight.
        note: what our layer computes in another way, or what can be changed about it.
    """

    weight: StockWeight
    replacement: Callable[[ACLPackedTensor], PackedEagerLinear]
    note: str = ""


_PACKAGES = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
#: Where torch.ao's modules keep quantized weights: linear layers, convolutions and embeddings; recurrent ones; cells.
_HOLDERS = ("_packed_params", "_all_weight_values", "_packed_weight_ih")
_REDUCED = "activations have 7 bits, as they had (reduce_range): set the layer's reduce_range to False for 8"


def source_of(module: _Module) -> str | None:
    """The class of a layer that torch.ao's eager flow quantized, in words; None for others."""
    kind = type(module)
    known = next((base for base in kind.__mro__ if base.__module__.startswith(_PACKAGES)), None)
    if known is None or known.__name__.endswith("PackedParams") or not any(hasattr(module, name) for name in _HOLDERS):
        return None
    short = f"{known.__module__.partition('.modules')[0]}.{known.__name__}"
    return short if known is kind else f"{kind.__name__}, a {short}"


def shape_of(module: _Module) -> tuple[int, ...]:
    """(n, k) of a linear layer of torch.ao; nothing for other modules."""
    sizes = (getattr(module, name, None) for name in ("out_features", "in_features"))
    return tuple(size for size in sizes if isinstance(size, int))


def read(module: _Module) -> StockLayer:
    """The numbers of a layer that torch.ao's eager flow quantized, and what replaces it.

    Raises:
        NotImplementedError: why no layer of ours can.
    """
    kind = type(module)
    reader = _READERS.get(f"{kind.__module__}.{kind.__name__}")
    if reader is None:
        raise NotImplementedError(f"{kind.__name__} is not one of torch.ao's quantized Linear and LinearReLU")
    return reader(module)


def _read_dynamic(module: Any, relu: bool) -> StockLayer:
    if module._packed_params.dtype != torch.qint8:
        raise NotImplementedError("its weight is torch.float16 and its activations are floats: ao_arm serves integers")
    reduce_range = module.version is not None and module.version >= 4
    weight, bias = _weight_and_bias(module)
    ignored = torch.backends.quantized.engine == "qnnpack"
    return StockLayer(
        weight,
        lambda packed: PackedDynamicLinear(packed, bias, relu, reduce_range),
        _REDUCED if reduce_range and not ignored else "",
    )


def _read_static(module: Any, relu: bool) -> StockLayer:
    scale, zero_point = float(module.scale), int(module.zero_point)
    weight, bias = _weight_and_bias(module)
    return StockLayer(weight, lambda packed: PackedQuantizedLinear(packed, bias, relu, scale, zero_point))


def _weight_and_bias(module: Any) -> tuple[StockWeight, Tensor | None]:
    weight, bias = module.weight(), module.bias()
    if weight.dtype != torch.qint8:
        raise NotImplementedError(f"its weight is {weight.dtype}, and ao_arm's are torch.qint8")
    if weight.qscheme() in _PER_TENSOR:
        scale, zero_point = _quantization(weight.q_scale(), weight.q_zero_point(), torch.int32)
    elif weight.qscheme() in _PER_CHANNEL and weight.q_per_channel_axis() == 0:
        scale, zero_point = weight.q_per_channel_scales().float(), weight.q_per_channel_zero_points()
    else:
        raise NotImplementedError(f"its weight is quantized by {weight.qscheme()}, and ao_arm's by row or as a whole")
    layout = ACLPackedLayout("asymmetric", "per_tensor")
    return StockWeight(weight.int_repr(), scale, zero_point, layout, torch.float32), bias


_READERS: dict[str, Callable[[_Module], StockLayer]] = {
    "torch.ao.nn.quantized.dynamic.modules.linear.Linear": partial(_read_dynamic, relu=False),
    "torch.ao.nn.intrinsic.quantized.dynamic.modules.linear_relu.LinearReLU": partial(_read_dynamic, relu=True),
    "torch.ao.nn.quantized.modules.linear.Linear": partial(_read_static, relu=False),
    "torch.ao.nn.intrinsic.quantized.modules.linear_relu.LinearReLU": partial(_read_static, relu=True),
}
