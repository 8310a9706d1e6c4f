"""The numbers of weights that torchao quantized: a reader for each of its tensor classes, or a reason to leave them.

Classes are known by name: which of them there are differs from torchao to torchao.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor
from torchao.quantization import quant_api
from torchao.quantization.granularity import PerRow, PerTensor
from torchao.quantization.quant_primitives import MappingType

from .affine_quantized import packed_weight_of
from .layout import ACLPackedLayout
from .packing import select_kernel
from .plain import check_activations, checked
from .tensor import ACLPackedTensor

_MAPPINGS = {MappingType.SYMMETRIC: "symmetric", MappingType.ASYMMETRIC: "asymmetric"}
_FLOAT_ACTIVATIONS = (
    "its activations are floats, and ao_arm's are int8: quantize the float model with ao_arm.acl_int8_dynamic() or "
    "ao_arm.acl_int4_grouped()"
)
_GPTQ = (
    "torchao's GPTQ observes it, which converts on CUDA and to weights with float activations only: take torchao's "
    "AWQConfig or SmoothQuantConfig around ao_arm's configurations, or acl_int4_grouped(search=True)"
)
_OTHER_FORMAT = "its integers are packed for another library's kernel: quantize with the plain packing format"


@dataclass(frozen=True)
class StockWeight:
    """A weight as ``ACLPackedTensor.from_plain`` takes it; for what it has by the same names, see there.

    Attributes:
        data, scale, zero_point, layout, dtype, act_scale, act_zero_point: the arguments of ``from_plain``.
        act_pre_scale: multiplied into activations before they are quantized, or None.
        note: what the packed weight computes in another way than the stock one, or nothing.
    """

    data: Tensor
    scale: Tensor
    zero_point: Tensor | None
    layout: ACLPackedLayout
    dtype: torch.dtype
    act_scale: Tensor | None = None
    act_zero_point: Tensor | None = None
    act_pre_scale: Tensor | None = None
    note: str = ""

    def check(self) -> None:
        """Raises what ``packed`` would, without packing."""
        plain, layout = checked(self.data, self.scale, self.zero_point, self.layout, self.dtype)
        check_activations(layout, self.act_scale, self.act_zero_point)
        select_kernel(plain, layout)

    def packed(self) -> ACLPackedTensor:
        """The same integers and scales, packed; shares no memory with the stock weight.

        Raises:
            ValueError, NotImplementedError: why no kernel of ours can serve it.
        """
        # Copies of what is small, so that no view keeps the whole file alive that a checkpoint is mapped from.
        scale, act_scale, act_zero_point = map(_copied, (self.scale, self.act_scale, self.act_zero_point))
        assert scale is not None
        packed = ACLPackedTensor.from_plain(
            self.data, scale, self.zero_point, self.layout, self.dtype, act_scale, act_zero_point
        )
        packed.act_pre_scale = _copied(self.act_pre_scale)
        return packed


def source_of(tensor: Tensor) -> str | None:
    """The class of a weight that torchao quantized, in words; None for floats, and for what ao_arm quantized."""
    kind = type(tensor)
    if not kind.__module__.startswith("torchao.") or packed_weight_of(tensor) is not None:
        return None
    return f"torchao's {kind.__name__}"


def read(weight: Tensor) -> StockWeight:
    """The numbers of a weight that torchao quantized.

    Raises:
        NotImplementedError: why its arithmetic is not that of a kernel of ours.
    """
    name = type(weight).__name__
    reader = _READERS.get(name)
    if reader is None:
        _refuse(_REASONS.get(name, f"ao_arm cannot read the numbers of {name}"))
    return reader(weight)


def _refuse(reason: str) -> NoReturn:
    raise NotImplementedError(reason)


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _in_float32(dtype: torch.dtype) -> str:
    """A note on activations that torchao quantizes in this dtype; nothing if it is float32, as ours is."""
    if dtype == torch.float32:
        return ""
    name = str(dtype).removeprefix("torch.")
    return f"activations are quantized in float32, not in {name} as before: other integers, no larger an error"


# --- Int8Tensor ---


def _read_int8(weight: Any) -> StockWeight:
    quantization = weight.act_quant_kwargs
    if quantization is None:
        _refuse(_FLOAT_ACTIVATIONS)
    if type(quantization).__name__ != "QuantizeTensorToInt8Kwargs":
        _refuse(f"its activations are not int8 but quantized by {type(quantization).__name__}")
    if getattr(quantization, "reduce_range", False):
        _refuse("its activations take half of int8's range only (reduce_range): quantize without")
    mapping = _MAPPINGS.get(quantization.mapping_type) or _refuse(f"activations are {quantization.mapping_type}")
    if mapping == "asymmetric" and not hasattr(weight, "act_quant_zero_point"):
        _refuse("this torchao leaves out the zero points of its activations: quantize with a newer one")
    _check_rows(weight)
    pre_scale = weight.act_pre_scale
    if pre_scale is not None and torch.promote_types(pre_scale.dtype, weight.dtype) != weight.dtype:
        _refuse(f"its act_pre_scale is {pre_scale.dtype}: activations would be rounded to {weight.dtype} once more")
    act_scale, act_zero_point = weight.act_quant_scale, getattr(weight, "act_quant_zero_point", None)
    if act_scale is None:
        layout = ACLPackedLayout(mapping, _granularity(quantization.granularity))
        # In what is narrower than float32, torchao rounds the range, or the scale as well.
        note = _in_float32(weight.dtype if mapping == "asymmetric" else _activation_scale_dtype(weight.dtype))
    else:
        layout = ACLPackedLayout(mapping, "per_tensor", scheme="int8_static")
        act_scale, act_zero_point, note = _static(mapping, act_scale, act_zero_point)
    return StockWeight(
        weight.qdata,
        weight.scale,
        getattr(weight, "zero_point", None),
        layout,
        weight.dtype,
        act_scale,
        act_zero_point if layout.is_static else None,
        pre_scale,
        note,
    )


def _granularity(granularity: Any) -> str:
    if isinstance(granularity, PerTensor):
        return "per_tensor"
    if isinstance(granularity, PerRow) and getattr(granularity, "dim", -1) == -1:
        return "per_token"
    _refuse(f"its activations are quantized by {granularity}, and ao_arm's per token or per tensor")


def _static(mapping: str, scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, Tensor, str]:
    """Scale and zero point (1,) of static activations, and a note."""
    if scale.numel() != 1 or (zero_point is not None and zero_point.numel() != 1):
        _refuse("its static activations have a scale for each row, and ao_arm's one for all")
    zero = 0 if zero_point is None else int(zero_point)
    if mapping == "symmetric" and zero != 0:
        _refuse(f"its activations are symmetric, but have the zero point {zero}")
    if not -128 <= zero <= 127:
        _refuse(f"the zero point of its activations, {zero}, is no int8")
    return scale.reshape(1).float(), torch.tensor([zero], dtype=torch.int8), _in_float32(scale.dtype)


def _check_rows(weight: Any) -> None:
    n, k = weight.shape[-2:]
    if tuple(weight.block_size) not in ((1, k), (n, k)):
        _refuse(f"its int8 scales are of blocks of {tuple(weight.block_size)}, and ao_arm's of rows or of all")


@cache
def _activation_scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the scales that this torchao's Int8Tensor gives to activations: float32 from 0.18, before that their own."""
    from torchao.quantization import Int8Tensor

    return Int8Tensor.from_hp(torch.ones(1, 1, dtype=dtype), PerRow()).scale.dtype  # type: ignore[no-any-return]


# --- IntxUnpackedToInt8Tensor ---


def _read_intx(weight: Any) -> StockWeight:
    activations = weight.activation_quantization
    if activations is None:
        _refuse(_FLOAT_ACTIVATIONS)
    if getattr(activations, "value", activations) != "int8_asym_per_token":
        _refuse(f"ao_arm does not know its activation quantization, {activations}")
    bits = int(str(weight.target_dtype).removeprefix("torch.int"))
    numbers = weight.qdata, weight.scale, weight.zero_point
    return _affine(weight, *numbers, bits, "asymmetric", _in_float32(weight.dtype))


def _affine(
    weight: Any, data: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, mapping: str, note: str
) -> StockWeight:
    """A weight with one scale for each block, of which ``bits`` and blocks decide whether it is a 4-bit or an int8 one;
    its activations are quantized per token."""
    if len(weight.shape) != 2:
        _refuse(f"it must be a matrix (n, k), not of shape {tuple(weight.shape)}")
    if bits > 4:
        if weight.block_size[-1] < weight.shape[1]:
            _refuse(f"its groups of {weight.block_size[-1]} have {bits} bits: ao_arm serves groups of 4 bits")
        _check_rows(weight)
        return StockWeight(data, scale, zero_point, ACLPackedLayout(mapping), weight.dtype, note=note)
    if mapping != "asymmetric":
        _refuse("its activations are symmetric: those of ao_arm's 4-bit layers are asymmetric")
    if weight.block_size[0] != 1:
        _refuse(f"its blocks of {tuple(weight.block_size)} are of several rows: ao_arm's groups are of one")
    layout = ACLPackedLayout(
        "asymmetric",
        weight_granularity="per_group",
        scheme="int4_grouped",
        group_size=int(weight.block_size[1]),
        scale_dtype="bfloat16",
    )
    groups = (weight.shape[0], -1)
    zero_point = None if zero_point is None else zero_point.reshape(groups)
    return StockWeight(data, scale.reshape(groups), zero_point, layout, weight.dtype, note=note)


# --- AffineQuantizedTensor, up to torchao 0.17 ---

_BY_127 = (
    "activations are quantized by torch's own ops, in front of ours, as before: max / 127 is their scale. What "
    "ao_arm.acl_int8_dynamic() quantizes does it within one op"
)
#: The functions of torchao that quantize activations: the mapping, and a note.
_ACTIVATION_FUNCTIONS = {
    "_int8_asymm_per_token_quant": ("asymmetric", ""),
    "_uint8_asymm_per_token_quant": ("asymmetric", ""),  # the same numbers, 128 higher
    "_int8_symm_per_token_quant": ("symmetric_127", _BY_127),
    "_int8_symm_per_token_reduced_range_quant": ("symmetric_127", _BY_127),
}


def _read_activation_quantized(weight: Any) -> StockWeight:
    held, function = weight.original_weight_tensor, weight.input_quant_func
    name = getattr(function, "__name__", repr(function))
    if name not in _ACTIVATION_FUNCTIONS or getattr(quant_api, name, None) is not function or weight.quant_kwargs:
        _refuse(f"ao_arm does not know what {name} makes of activations")
    if type(held).__name__ != "AffineQuantizedTensor":
        _refuse(f"ao_arm does not know {type(held).__name__} with quantized activations")
    if type(held.tensor_impl).__name__ != "PlainAQTTensorImpl":
        _refuse(_OTHER_FORMAT)
    if held.zero_point_domain.name not in ("INT", "NONE"):
        _refuse("its zero points are floats")
    mapping, note = _ACTIVATION_FUNCTIONS[name]
    data, scale, zero_point = held.tensor_impl.get_plain()
    least, greatest = (
        limit if given is None else given
        for limit, given in zip((-128, 127), (held.quant_min, held.quant_max), strict=True)
    )
    bits = 4 if greatest - least < 16 else 8
    # Symmetric activations in float16 have float32 scales, and are the same.
    rounded = _in_float32(weight.dtype) if mapping == "asymmetric" or weight.dtype == torch.bfloat16 else ""
    notes = [text for text in (note, rounded) if text]
    return _affine(held, data, scale, zero_point, bits, mapping, "; ".join(notes))


_READERS: dict[str, Callable[[Any], StockWeight]] = {
    "Int8Tensor": _read_int8,
    "IntxUnpackedToInt8Tensor": _read_intx,
    "LinearActivationQuantizedTensor": _read_activation_quantized,
}
_REASONS = {
    "AffineQuantizedTensor": _FLOAT_ACTIVATIONS,
    "Int4Tensor": _FLOAT_ACTIVATIONS,
    "Int4PlainInt32Tensor": _FLOAT_ACTIVATIONS,
    "Int4TilePackedTo4dTensor": _FLOAT_ACTIVATIONS,
    "Int4PreshuffledTensor": _FLOAT_ACTIVATIONS,
    "Int4OpaqueTensor": _OTHER_FORMAT,
    "IntxOpaqueTensor": _OTHER_FORMAT,
    "Int8LutTensor": _OTHER_FORMAT,
    "GPTQObserverTensor": _GPTQ,
}
