"""What a checkpoint's entries must be before a weight is made of them: a file may come from anywhere.

All is looked at here that could otherwise end in an error without a name, or in more memory than the file explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .layout import ACLPackedLayout, whole_number
from .plain import Plain
from .quantize import FLOATS, check_float

_Kinds = Mapping[str, tuple[type, ...]]
_NONE = type(None)
_OF_ALL: _Kinds = {"qdata": (Tensor,), "scale": (Tensor,), "zero_point": (Tensor, _NONE)}
_OF_PICKLES: _Kinds = {
    **_OF_ALL,
    "transposed": (bool,),
    "version": (int,),
    "layout": (dict,),
    "dtype": (torch.dtype,),
    "checksum": (int,),
    "settings_checksum": (int, _NONE),
    "is_param": (bool,),
}
#: The entries of what each function is called with, and their types; what may be None may be missing.
PICKLED_WEIGHT: _Kinds = {
    **_OF_PICKLES,
    "act_pre_scale": (Tensor, _NONE),
    "act_scale": (Tensor, _NONE),
    "act_zero_point": (Tensor, _NONE),
    "is_weight": (bool,),
}
PICKLED_EXPERTS: _Kinds = _OF_PICKLES
STORED_EXPERTS: _Kinds = {
    **_OF_ALL,
    "transposed": (bool, _NONE),
    "_layout": (ACLPackedLayout,),
    "weight_dtype": (torch.dtype,),
}
STORED_WEIGHT: _Kinds = {**STORED_EXPERTS, "act_pre_scale": (Tensor, _NONE), "act_quantization": (list, _NONE)}


def refuse(what: str, must: str, given: object) -> NoReturn:
    """Raises ``ValueError`` about a part of a checkpoint."""
    raise ValueError(
        f"this weight cannot be read from its checkpoint: {what} must be {must}, not {given}. The file is damaged, or "
        "ao_arm did not write it: write it again from the model"
    )


def check_entries(entries: dict[str, Any], kinds: _Kinds) -> None:
    """Raises ``ValueError`` unless the entries are there, and the tensors are ordinary ones of one device."""
    for name, accepted in kinds.items():
        value = entries.get(name)
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            given = type(value).__name__ if name in entries else "missing"
            refuse(name, " or ".join("None" if kind is _NONE else kind.__name__ for kind in accepted), given)
        if isinstance(value, Tensor):
            _check_ordinary(name, value, entries["qdata"].device)


def _check_ordinary(name: str, tensor: Tensor, device: torch.device) -> None:
    """Elements that repeat each other would take far more memory once they are packed than the file has bytes."""
    ordinary = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_neg())
    if not ordinary or is_traceable_wrapper_subclass(tensor):
        refuse(name, "an ordinary tensor", f"{type(tensor).__name__} of layout {tensor.layout}")
    if tensor.device != device:
        refuse(name, f"on the device of qdata, {device}", f"on {tensor.device}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        stored = f"shape {tuple(tensor.shape)} in {tensor.untyped_storage().nbytes()} bytes"
        refuse(name, "stored element by element", f"of {stored}")


def checked_layout(entries: dict[Any, Any]) -> ACLPackedLayout:
    """The layout of a pickled weight; raises ``ValueError`` for entries that none has."""
    names = ACLPackedLayout.__dataclass_fields__
    for name, value in entries.items():
        if name not in names:
            refuse("each entry of layout", f"one of {', '.join(names)}", repr(name)[:100])
        if not isinstance(value, str) and whole_number(value) is None:
            refuse(f"layout's {name}", "a text or a whole number", type(value).__name__)
    return ACLPackedLayout(**entries)


def check_contents(plain: Plain, layout: ACLPackedLayout, dtype: torch.dtype, experts: bool = False) -> None:
    """Raises ``ValueError`` unless the tensors of a weight, or of experts, have the dtypes and shapes of the format."""
    check_float("dtype", dtype)
    qdata, scale, zero_point = plain.qdata, plain.scale, plain.zero_point
    dims = (3 if experts else 2) - (0 if layout.is_grouped else 1)
    scale_dtype = getattr(torch, layout.scale_dtype)
    if scale.dim() != dims or scale.dtype != scale_dtype or scale.numel() == 0:
        refuse("scale", f"{scale_dtype} of {dims} dimensions and not empty", _described(scale))
    dtypes, shape = [torch.int8], scale.shape + qdata.shape[-1:]
    if layout.is_grouped:
        k = scale.shape[-1] * layout.group_size
        dtypes = [torch.uint8, torch.int8]
        shape = torch.Size([*scale.shape[:-1], (k + 1) // 2 if qdata.dtype == torch.uint8 else k])
    if qdata.dtype not in dtypes or qdata.shape != shape:
        refuse("qdata", f"{' or '.join(map(str, dtypes))} of shape {tuple(shape)}", _described(qdata))
    if zero_point is not None and (zero_point.dtype != torch.int8 or zero_point.shape != scale.shape):
        refuse("zero_point", f"torch.int8 of shape {tuple(scale.shape)}", _described(zero_point))


def check_pre_scale(pre_scale: Tensor | None, k: int) -> None:
    """Raises ``ValueError`` for a factor of activations that would change their shape."""
    if pre_scale is None:
        return
    *others, last = (1, *pre_scale.shape)
    if pre_scale.dtype not in FLOATS or last not in (1, k) or any(size != 1 for size in others):
        refuse("act_pre_scale", f"one float, or one for each of the {k} columns", _described(pre_scale))


def act_tensors(numbers: list[Any] | None, layout: ACLPackedLayout, device: torch.device) -> dict[str, Tensor]:
    """The scale and the zero point of static activations as tensors, of the two numbers that safetensors files have."""
    if numbers is None:
        return {}
    dtype = getattr(torch, layout.activation_dtype)
    limits = torch.iinfo(dtype)
    scale, zero_point = numbers if len(numbers) == 2 else (None, None)
    fits = (whole := whole_number(zero_point)) is not None and limits.min <= whole <= limits.max
    if not isinstance(scale, (int, float)) or not fits:
        must = f"a scale and a zero point in [{limits.min}, {limits.max}]"
        refuse("act_quantization", must, repr(numbers)[:100])
    return {
        "act_scale": torch.tensor([float(scale)], dtype=torch.float32, device=device),
        "act_zero_point": torch.tensor([whole], dtype=dtype, device=device),
    }


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
