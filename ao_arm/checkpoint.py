"""How weights are written and read: as plain integers, which are packed for the CPU at hand when they are loaded.

A pickled weight (``torch.save`` of a state dict or a model) is a call of ``rebuild`` with a dictionary, which
``docs/checkpoint_format.md`` describes. torchao's safetensors support stores the same contents by name. Only other
processes of this machine, to which ``torch.multiprocessing`` sends a weight, get the packed bytes as they are: in
shared memory, without a copy.
"""

from __future__ import annotations

import copyreg
import dataclasses
import json
import zlib
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .affine_quantized import as_weight, packed_weight_of
from .checkpoint_contents import (
    PICKLED_EXPERTS,
    PICKLED_WEIGHT,
    STORED_EXPERTS,
    STORED_WEIGHT,
    act_tensors,
    check_contents,
    check_entries,
    check_pre_scale,
    checked_layout,
    refuse,
)
from .experts import ACLPackedExperts
from .import_hooks import after_import
from .layout import HAS_AQT, ACLPackedLayout
from .nibbles import to_nibbles
from .plain import Plain
from .tensor import ACLPackedTensor

FORMAT_VERSION = 3
"""The version that is written, and the newest that is read."""

_Reduced = tuple[Callable[..., Tensor], tuple[dict[str, Any]]]


def reduce_packed(packed: ACLPackedTensor) -> _Reduced:
    """Pickles a bare tensor as a call of ``rebuild``; where there is no AffineQuantizedTensor models hold such ones."""
    return _reduce(packed, is_weight=not HAS_AQT, is_param=hasattr(packed, "_is_param"))


def _reduce_affine(weight: Any) -> _Reduced:
    """Pickles an AffineQuantizedTensor that holds a packed one: any torchao can load it."""
    return _reduce(weight.tensor_impl, is_weight=True, is_param=hasattr(weight, "_is_param"))


def _reduce(packed: ACLPackedTensor, is_weight: bool, is_param: bool) -> _Reduced:
    plain, layout = packed.plain(), packed.get_layout()
    qdata = to_nibbles(plain.qdata) if layout.is_grouped else plain.qdata
    state = {
        "version": FORMAT_VERSION,
        "qdata": qdata,
        "scale": plain.scale,
        "zero_point": plain.zero_point,
        "act_pre_scale": packed.act_pre_scale,
        "act_scale": packed.act_scale,
        "act_zero_point": packed.act_zero_point,
        "layout": dataclasses.asdict(layout),
        "dtype": packed.weight_dtype,
        "transposed": packed.transposed,
        "checksum": _checksum(qdata, plain.scale, packed.act_scale, packed.act_zero_point, plain.zero_point),
        "settings_checksum": _settings_checksum(layout, packed.weight_dtype, packed.transposed, packed.act_pre_scale),
        "is_weight": is_weight,
        "is_param": is_param,
    }
    return rebuild, (state,)


def _checksum(*tensors: Tensor | None, checksum: int = 0) -> int:
    for tensor in tensors:
        if tensor is not None:
            array: Any = tensor.detach().contiguous().view(torch.uint8).numpy()
            checksum = zlib.crc32(array, checksum)
    return checksum


def _settings_checksum(
    layout: ACLPackedLayout, dtype: torch.dtype, transposed: bool, act_pre_scale: Tensor | None = None
) -> int:
    settings = {"layout": dataclasses.asdict(layout), "dtype": str(dtype), "transposed": transposed}
    return _checksum(act_pre_scale, checksum=zlib.crc32(json.dumps(settings, sort_keys=True).encode()))


def rebuild(state: dict[str, Any]) -> Tensor:
    """Makes a weight of a checkpoint's dictionary, packed for the CPU at hand.

    Args:
        state: what ``docs/checkpoint_format.md`` describes.

    Returns:
        What ``quantize_`` puts into a model, or the bare tensor if that is what was written.

    Raises:
        ValueError: if the format is newer than this ao_arm's, the bytes are damaged, or no kernel serves the weight.
    """
    _check_version(state)
    check_entries(state, PICKLED_WEIGHT)
    plain = Plain(state["qdata"], state["scale"], state.get("zero_point"))
    act_scale, act_zero_point = state.get("act_scale"), state.get("act_zero_point")
    layout = checked_layout(state["layout"])
    _check_checksum(state["checksum"], plain.qdata, plain.scale, act_scale, act_zero_point, plain.zero_point)
    settings = layout, state["dtype"], state["transposed"], state.get("act_pre_scale")
    _check_settings(state, plain.qdata, *settings)
    packed = _packed(plain, layout, state["dtype"], state.get("act_pre_scale"), act_scale, act_zero_point)
    packed = packed.t() if state["transposed"] else packed
    made = as_weight(packed) if state["is_weight"] else packed
    return _marked(made, state["is_param"])


def _packed(
    plain: Plain, layout: ACLPackedLayout, dtype: torch.dtype, pre_scale: Tensor | None, *act: Tensor | None
) -> ACLPackedTensor:
    """What a file holds, packed for the CPU at hand."""
    check_contents(plain, layout, dtype)
    packed = ACLPackedTensor(plain.qdata, plain.scale, layout, dtype, pre_scale, *act, zero_point=plain.zero_point)
    check_pre_scale(pre_scale, packed.weight_shape[1])
    return packed


def reduce_experts(experts: ACLPackedExperts) -> _Reduced:
    """Pickles experts as a call of ``rebuild_experts``."""
    plain = experts.stored()
    state = {
        "version": FORMAT_VERSION,
        "qdata": plain.qdata,
        "scale": plain.scale,
        "zero_point": plain.zero_point,
        "layout": dataclasses.asdict(experts._layout),
        "dtype": experts.weight_dtype,
        "transposed": experts.transposed,
        "checksum": _checksum(plain.qdata, plain.scale, plain.zero_point),
        "settings_checksum": _settings_checksum(experts._layout, experts.weight_dtype, experts.transposed),
        "is_param": hasattr(experts, "_is_param"),
    }
    return rebuild_experts, (state,)


def rebuild_experts(state: dict[str, Any]) -> Tensor:
    """Makes the weights of experts of a checkpoint's dictionary, packed for the CPU at hand.

    Args:
        state: what ``docs/checkpoint_format.md`` describes.

    Raises:
        ValueError: if the format is newer than this ao_arm's, the bytes are damaged, or no kernel serves the weights.
    """
    _check_version(state)
    check_entries(state, PICKLED_EXPERTS)
    plain = Plain(state["qdata"], state["scale"], state.get("zero_point"))
    layout = checked_layout(state["layout"])
    _check_checksum(state["checksum"], plain.qdata, plain.scale, plain.zero_point)
    _check_settings(state, plain.qdata, layout, state["dtype"], state["transposed"])
    check_contents(plain, layout, state["dtype"], experts=True)
    made = ACLPackedExperts.from_plain(plain, layout, state["dtype"], state["transposed"])
    return _marked(made, state["is_param"])


def _check_version(state: Any) -> None:
    """First of all, as a newer version may have other entries."""
    version = state.get("version") if isinstance(state, dict) else None
    if type(version) is not int or version < 1:
        refuse("version", f"a whole number from 1 to {FORMAT_VERSION}", repr(version)[:100])
    if version > FORMAT_VERSION:
        raise ValueError(
            f"this weight was saved in version {version} of ao_arm's checkpoint format; this ao_arm reads version "
            f"{FORMAT_VERSION} at most: update it"
        )


def _has_bytes(tensor: Tensor) -> bool:
    """Unlike those of the meta device and of traces."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"


def _check_checksum(checksum: int, qdata: Tensor, *others: Tensor | None) -> None:
    if _has_bytes(qdata) and _checksum(qdata, *others) != checksum:
        raise ValueError(f"this weight is damaged: its checksum does not match (qdata of shape {tuple(qdata.shape)})")


def _check_settings(state: dict[str, Any], qdata: Tensor, *settings: Any) -> None:
    """Older files have no such checksum."""
    checksum = state.get("settings_checksum")
    if checksum is not None and _has_bytes(qdata) and _settings_checksum(*settings) != checksum:
        raise ValueError(
            "this weight is damaged: the checksum of its layout and settings does not match (qdata of shape "
            f"{tuple(qdata.shape)})"
        )


def _marked(made: Any, is_param: bool) -> Tensor:
    """Makes a parameter of what was one: torch knows such subclasses by this mark."""
    if is_param:
        made._is_param = True
    result: Tensor = made
    return result


def _share(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """Sends a weight to another process by the memory that it is in, which torch then shares."""
    packed = packed_weight_of(tensor)
    if packed is None:  # registered for no other class
        raise TypeError(f"not a packed weight: {type(tensor)}")
    names, attributes = packed.__tensor_flatten__()
    inner = {name: getattr(packed, name) for name in names}
    is_affine = tensor is not packed
    return _from_shared, (inner, attributes, is_affine, hasattr(tensor, "_is_param"))


def _from_shared(inner: dict[str, Tensor], attributes: dict[str, Any], is_affine: bool, is_param: bool) -> Tensor:
    packed = ACLPackedTensor.__tensor_unflatten__(inner, attributes, None, None)
    return _marked(as_weight(packed) if is_affine else packed, is_param)


def _share_experts(experts: ACLPackedExperts) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    names, attributes = experts.__tensor_flatten__()
    inner = {name: getattr(experts, name) for name in names}
    return _experts_from_shared, (inner, attributes, hasattr(experts, "_is_param"))


def _experts_from_shared(inner: dict[str, Tensor], attributes: tuple[Any, ...], is_param: bool) -> Tensor:
    return _marked(ACLPackedExperts.__tensor_unflatten__(inner, attributes, None, None), is_param)


def _weight_from_plain(**contents: Any) -> Tensor:
    """What torchao's safetensors support calls with the stored contents."""
    check_entries(contents, STORED_WEIGHT)
    plain = Plain(contents["qdata"], contents["scale"], contents.get("zero_point"))
    layout = contents["_layout"]
    act = act_tensors(contents.get("act_quantization"), layout, plain.qdata.device)
    pre_scale = contents.get("act_pre_scale")
    packed = _packed(
        plain, layout, contents["weight_dtype"], pre_scale, act.get("act_scale"), act.get("act_zero_point")
    )
    return as_weight(packed.t() if contents.get("transposed") else packed)


def _experts_from_plain(**contents: Any) -> Tensor:
    check_entries(contents, STORED_EXPERTS)
    plain = Plain(contents["qdata"], contents["scale"], contents.get("zero_point"))
    layout, dtype = contents["_layout"], contents["weight_dtype"]
    check_contents(plain, layout, dtype, experts=True)
    return ACLPackedExperts.from_plain(plain, layout, dtype, bool(contents.get("transposed")))


def _register_safetensors(utilities: ModuleType) -> None:
    """Makes torchao's safetensors support accept our weights, under their names in both worlds."""
    for name in ("ACLPackedTensor", "ACLAffineQuantizedTensor"):
        utilities.ALLOWED_TENSORS_SUBCLASSES.append(name)
        utilities.ALLOWED_CLASSES[name] = _weight_from_plain
    utilities.ALLOWED_TENSORS_SUBCLASSES.append("ACLPackedExperts")
    utilities.ALLOWED_CLASSES["ACLPackedExperts"] = _experts_from_plain
    utilities.ALLOWED_CLASSES["ACLPackedLayout"] = ACLPackedLayout


torch.serialization.add_safe_globals([rebuild, rebuild_experts])
copyreg.pickle(ACLPackedExperts, reduce_experts)  # type: ignore[arg-type]
ForkingPickler.register(ACLPackedExperts, _share_experts)
copyreg.pickle(ACLPackedTensor, reduce_packed)  # type: ignore[arg-type]
ForkingPickler.register(ACLPackedTensor, _share)
if HAS_AQT:
    from .affine_quantized import ACLAffineQuantizedTensor

    copyreg.pickle(ACLAffineQuantizedTensor, _reduce_affine)  # type: ignore[arg-type]
    ForkingPickler.register(ACLAffineQuantizedTensor, _share)
after_import("torchao.prototype.safetensors.safetensors_utils", _register_safetensors)
