"""What torch's own ops do with a packed weight: copies, transposes, slices, products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from .linear import linear
from .tensor import ACLPackedTensor, unsupported

aten = torch.ops.aten
implements = ACLPackedTensor.implements
_Arguments = tuple[Any, ...]
_Keywords = dict[str, Any]


def copy_weight(target: Tensor, source: Tensor) -> None:
    """Copies one packed weight's values into another: what ``load_state_dict`` does without ``assign=True``.

    Raises:
        ValueError: if either is no packed weight, or their shapes or schemes differ.
    """
    if not isinstance(source, ACLPackedTensor):
        raise ValueError(
            f"a {source.dtype} tensor cannot be copied into a weight that ao_arm quantized, {target!r}: load it into "
            "the model before quantize_"
        )
    if not isinstance(target, ACLPackedTensor):
        raise ValueError(
            f"a weight that ao_arm quantized cannot be copied into a {target.dtype} tensor. It is {source!r}: "
            "quantize_ the model first, or use load_state_dict(..., assign=True); resize a model before quantize_"
        )
    for name in ("weight_shape", "_layout", "transposed"):
        theirs, ours = getattr(source, name), getattr(target, name)
        if theirs != ours:
            raise ValueError(f"a weight with {name.strip('_')} {theirs} cannot be copied into one with {ours}")
    if target.packed_weight.shape == source.packed_weight.shape:
        target.packed_weight.copy_(source.packed_weight)
    else:
        target.packed_weight = source.packed_weight.clone()
    for name in ("weight_scale", "act_pre_scale", "act_scale", "act_zero_point"):
        ours, theirs = getattr(target, name), getattr(source, name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            setattr(target, name, None if theirs is None else theirs.clone())
        else:
            ours.copy_(theirs)


@implements(aten.copy_.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    target: Tensor = args[0]
    copy_weight(target, args[1])
    return target


@implements(aten.linear.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    return linear(*args, **kwargs)


@implements([aten.detach.default, aten.alias.default, aten.clone.default, aten.contiguous.default])
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    copied = args[0]._rewrap(lambda inner: func(inner, *args[1:], **kwargs))
    result: Tensor = return_and_correct_aliasing(func, args, kwargs, copied)
    return result


@implements(aten._to_copy.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    weight: ACLPackedTensor = args[0]
    target = weight._get_to_kwargs(*args[1:], **kwargs)
    device = torch.device(target["device"])
    if device.type not in ("cpu", "meta"):
        raise NotImplementedError(f"an ACLPackedTensor lives on the CPU, not on {device}: dequantize() it to move it")
    if not target["dtype"].is_floating_point:
        raise ValueError(
            f"an ACLPackedTensor stands for floats, not for {target['dtype']}: dequantize() it to convert it"
        )
    return weight._rewrap(lambda inner: inner.to(device, copy=True), weight_dtype=target["dtype"])


@implements([aten.t.default, aten.transpose.int, aten.permute.default])
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    weight: ACLPackedTensor = args[0]
    dims = args[1] if func is aten.permute.default else args[1:] or (1, 0)
    order = [dim % 2 for dim in dims]
    if sorted(order) != [0, 1]:
        raise ValueError(f"{weight!r} has the dimensions 0 and 1, not {tuple(dims)}")
    swaps = func is not aten.permute.default or order == [1, 0]
    flipped = weight._rewrap(transposed=weight.transposed != swaps)
    result: Tensor = return_and_correct_aliasing(func, args, kwargs, flipped)
    return result


@implements(aten.slice.Tensor)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    """A slice is unpacked, cut and packed again: a tensor of its own, not a view."""
    weight, dim, *bounds = args
    dim = (dim if args[1:] else 0) % 2
    of_k = (dim == 1) != weight.transposed
    plain, group_size = weight.plain(), weight._layout.group_size
    qdata = aten.slice.Tensor(plain.qdata, int(of_k), *bounds)
    if qdata.numel() == 0:
        raise ValueError(f"a slice of an ACLPackedTensor must not be empty, as {tuple(qdata.shape)} is")
    scale, zero_point, pre_scale = plain.scale, plain.zero_point, weight.act_pre_scale
    if not of_k:
        scale = aten.slice.Tensor(scale, 0, *bounds)
        zero_point = None if zero_point is None else aten.slice.Tensor(zero_point, 0, *bounds)
    elif group_size:
        chosen = _groups(weight.weight_shape[1], group_size, *bounds)
        scale = scale[:, chosen]
        zero_point = None if zero_point is None else zero_point[:, chosen]
    if of_k and pre_scale is not None and pre_scale.numel() > 1:
        pre_scale = aten.slice.Tensor(pre_scale, pre_scale.dim() - 1, *bounds)
    made = ACLPackedTensor(
        qdata,
        scale,
        weight._layout,
        weight.weight_dtype,
        pre_scale,
        weight.act_scale,
        weight.act_zero_point,
        zero_point,
    )
    # What was not cut would still be the weight's own memory.
    return made._rewrap(torch.clone, transposed=weight.transposed)


def _groups(k: int, group_size: int, start: int | None = None, end: int | None = None, step: int = 1) -> slice:
    """The groups that a slice along k consists of."""
    first, last, step = slice(start, end, step).indices(k)
    if step != 1 or first % group_size or last % group_size:
        raise ValueError(
            f"a slice along k of 4-bit weights must be of whole groups of {group_size}, not from {first} to {last} in "
            f"steps of {step}"
        )
    return slice(first // group_size, last // group_size)


@implements(aten.embedding.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    """For a weight that a language model shares between its head and its embedding. Dequantizes, so it is slow."""
    weight, indices, *rest = args
    looked_up: Tensor = aten.embedding.default(weight.dequantize(), indices, *rest, **kwargs)
    return looked_up


def _matmul(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``input @ weight + bias`` as compiled graphs write a linear layer: with the weight transposed."""
    if not isinstance(weight, ACLPackedTensor) or not weight.transposed:
        packed = next(operand for operand in (weight, input) if isinstance(operand, ACLPackedTensor))
        raise unsupported("another product", packed)
    return linear(input, weight._rewrap(transposed=False), bias)


@implements(aten.mm.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    return _matmul(args[0], args[1], None)


@implements(aten.addmm.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    bias: Tensor
    bias, input, weight = args[:3]
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
        raise NotImplementedError(f"addmm with {weight!r} supports alpha = beta = 1 only")
    if bias.dim() != 1:
        return _matmul(input, weight, None) + bias
    return _matmul(input, weight, bias)
