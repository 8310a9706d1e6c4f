"""What torch's own ops do with a packed weight: copies, transposes, slices, products."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from .gradients import are_being_made
from .linear import float_weight, linear, multiply
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
    target._parts = {}
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


@implements([aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default])
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> list[Tensor]:
    """As nn.MultiheadAttention does it in each call with other keys than queries: packed once, and kept."""
    weight, sizes, dim = args[0], args[1], ([*args[2:], kwargs.get("dim", 0)])[0]
    length = weight.shape[dim]
    if func is not aten.split_with_sizes.default:
        size = -(-length // sizes) if func is aten.chunk.default else sizes
        sizes = [min(size, length - at) for at in range(0, length, size)]
    ends = list(itertools.accumulate(sizes))
    with torch.inference_mode(False):  # they are for calls outside of it, too
        return [_kept_part(weight, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def attention(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Any:
    """``F.multi_head_attention_forward``: its products are calls of our ops if rows of its inputs follow each other."""
    rows = {id(tensor): tensor.contiguous() for tensor in args[:3]}  # it asks whether they are the same tensor
    with torch._C.DisableTorchFunctionSubclass():
        return func(*(rows[id(tensor)] for tensor in args[:3]), *args[3:], **kwargs)


ACLPackedTensor.implements_torch_function(F.multi_head_attention_forward)(attention)


def _kept_part(weight: ACLPackedTensor, dim: int, start: int, end: int) -> ACLPackedTensor:
    if not weight._is_readable():
        warnings.warn(
            f"a packed weight of shape {tuple(weight.shape)} is split in a graph, which unpacks it and packs its parts "
            "in each call: nn.MultiheadAttention does so unless query, key and value are one tensor. Leave it out of "
            "what is compiled, with torch.compiler.disable, or of what is quantized, with filter_fn",
            stacklevel=2,
        )
        return aten.slice.Tensor(weight, dim, start, end)  # type: ignore[no-any-return]
    key = (dim, start, end)
    if key not in weight._parts:
        weight._parts[key] = aten.slice.Tensor(weight, dim, start, end)
    return weight._parts[key]._rewrap()  # autograd marks what it is given as a view


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
    """For a weight that a language model shares between its head and its embedding: unpacks the rows asked for."""
    weight, indices = args[:2]
    if weight.transposed:
        raise NotImplementedError("an ACLPackedTensor is looked up row by row of (n, k), and not if it is transposed")
    looked_up = weight.plain(indices.reshape(-1).long()).dequantized().to(weight.weight_dtype)
    return looked_up.reshape(*indices.shape, looked_up.shape[1])  # type: ignore[no-any-return]


def _matmul(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``input @ weight + bias`` as compiled graphs write a linear layer: with the weight transposed."""
    if isinstance(weight, ACLPackedTensor) and weight.transposed:
        return multiply(input, weight, bias)
    packed = next(operand for operand in (weight, input) if isinstance(operand, ACLPackedTensor))
    if not are_being_made():
        raise unsupported("another product", packed)
    # Of a layer inside a function that torch differentiates itself, as that of nn.MultiheadAttention.
    floats = float_weight(packed, (input if packed is weight else weight).dtype)
    floats = floats.t() if packed.transposed else floats
    return input @ floats if packed is weight else floats @ weight


@implements([aten.mm.default, aten.matmul.default])
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


@implements(aten.is_pinned.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> bool:
    """Asked by torch.distributed.checkpoint before it writes."""
    return any(inner.is_pinned() for inner in args[0]._inner().values())


#: What an AffineQuantizedTensor leaves to the packed tensor that it holds.
AS_THE_PACKED_TENSOR = [
    aten.mm.default,
    aten.matmul.default,
    aten.addmm.default,
    aten.is_pinned.default,
]
