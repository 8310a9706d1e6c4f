"""What torch's own ops do with the packed weights of experts: copies, single experts, products of groups of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _ops
from .experts import ACLPackedExperts

aten = torch.ops.aten
implements = ACLPackedExperts.implements
_Arguments = tuple[Any, ...]
_Keywords = dict[str, Any]


@implements([aten.detach.default, aten.alias.default, aten.clone.default, aten.contiguous.default])
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    return args[0]._rewrap(lambda inner: func(inner, *args[1:], **kwargs))  # type: ignore[no-any-return]


@implements(aten._to_copy.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    target = args[0]._get_to_kwargs(*args[1:], **kwargs)
    device, dtype = torch.device(target["device"]), target["dtype"]
    if device.type not in ("cpu", "meta"):
        raise NotImplementedError(f"ACLPackedExperts live on the CPU, not on {device}: dequantize() them to move them")
    if not dtype.is_floating_point:
        raise ValueError(f"ACLPackedExperts stand for floats, not for {dtype}: dequantize() them to convert them")
    return args[0]._rewrap(lambda inner: inner.to(device, copy=True), weight_dtype=dtype)  # type: ignore[no-any-return]


@implements([aten.transpose.int, aten.permute.default])
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    weight: ACLPackedExperts = args[0]
    dims = [dim % 3 for dim in (args[1] if func is aten.permute.default else args[1:])]
    order = dims if func is aten.permute.default else {frozenset((1, 2)): [0, 2, 1]}.get(frozenset(dims))
    if order not in ([0, 1, 2], [0, 2, 1]):
        raise NotImplementedError("of ACLPackedExperts the last two dimensions can be swapped, no others")
    return weight._rewrap(transposed=weight.transposed != (order == [0, 2, 1]))


@implements([aten.select.int, aten.unbind.int])
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Any:
    weight, dim = args[0], args[1] if len(args) > 1 else 0
    if dim % 3 != 0:
        raise NotImplementedError("of ACLPackedExperts single experts can be taken, w[i], and no parts of them")
    if func is aten.select.int:
        return weight.expert(int(args[2]))._rewrap()
    return [weight.expert(i)._rewrap() for i in range(weight.shape[0])]


@implements(aten.copy_.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    """What ``load_state_dict`` does without ``assign=True``."""
    target, source = args[:2]
    if not isinstance(source, ACLPackedExperts) or not isinstance(target, ACLPackedExperts):
        raise ValueError(
            "experts that ao_arm packed and other tensors cannot be copied into each other: quantize_ the model first, "
            "or use load_state_dict(..., assign=True)"
        )
    if target._attributes() != source._attributes() or target.shape != source.shape:
        raise ValueError(f"{source!r} cannot be copied into {target!r}")
    target.packed_weight.copy_(source.packed_weight)
    if target.weight_scale is not None and source.weight_scale is not None:
        target.weight_scale.copy_(source.weight_scale)
    return target


def _grouped(input: Tensor, weight: ACLPackedExperts, offs: Tensor | None) -> Tensor:
    if not isinstance(weight, ACLPackedExperts) or input.dim() != 2 or offs is None:
        raise NotImplementedError(
            "experts that ao_arm packed multiply as F.grouped_mm(x, w.transpose(-2, -1), offs=offs) with x of (m, k)"
        )
    if not weight.transposed:
        return _backward(input, weight, offs)
    layout = weight._layout
    symmetric, per_token = layout.activation_mapping == "symmetric", layout.activation_granularity == "per_token"
    is_traced = type(weight.packed_weight) is not Tensor
    return (grouped_linear if is_traced else _multiply)(
        input,
        offs,
        weight.packed_weight,
        weight.weight_scale,
        weight.packed_bytes,
        weight.expert_shape[0],
        symmetric,
        per_token,
    )


def _backward(gradient: Tensor, weight: ACLPackedExperts, offs: Tensor) -> Tensor:
    """The straight-through gradient of the input: rows times their expert's (n, k) weight, in floats."""
    parts = gradient.tensor_split(offs.tolist())
    products = [rows @ weight.expert(i).dequantize(rows.dtype) for i, rows in enumerate(parts[:-1]) if len(rows)]
    products.append(gradient.new_zeros(len(parts[-1]), weight.shape[-1]))  # of rows that have no expert
    return torch.cat(products)


@implements(aten._grouped_mm.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    given = {**dict(zip(("self", "mat2", "offs", "bias", "out_dtype"), args, strict=False)), **kwargs}
    product = _grouped(given["self"], given["mat2"], given.get("offs"))
    if given.get("bias") is not None:
        raise NotImplementedError("F.grouped_mm of experts that ao_arm packed takes no bias: add it")
    return product.to(given.get("out_dtype") or product.dtype)


def _multiply(
    input: Tensor,
    offs: Tensor,
    packed_weight: Tensor,
    weight_scale: Tensor | None,
    packed_bytes: int,
    n: int,
    symmetric: bool,
    per_token: bool,
) -> Tensor:
    """The rows of ``input`` from one offset to the next times the weight of one expert: a fused call for each.

    Args:
        input: (m, k), float32, bfloat16 or float16.
        offs: (experts,) integers, where the rows of each expert end.
        packed_weight, weight_scale, packed_bytes: see ``ACLPackedExperts``.
        n: columns of the output.
        symmetric, per_token: how activations that meet int8 weights are quantized.

    Returns:
        (m, n) of the input's dtype; zeros in rows from the last offset on.
    """
    output = input.new_zeros(input.shape[0], n)
    begin = 0
    for i, end in enumerate(offs.tolist()):
        if begin < end:
            rows, packed = input[begin:end], packed_weight[i, :packed_bytes]
            output[begin:end] = (
                _ops.call(_ops.linear_qta8a_qga4w, rows, packed, n, None)
                if weight_scale is None
                else _ops.call(_ops.linear_int8_dynamic, rows, packed, weight_scale[i], None, symmetric, per_token)
            )
        begin = max(begin, end)
    return output


#: For graphs, which must not depend on the offsets' values; eagerly the function itself takes less time.
grouped_linear: Any = torch.library.custom_op("ao_arm::grouped_linear", _multiply, mutates_args=())


@grouped_linear.register_fake
def _(
    input: Tensor, offs: Tensor, packed_weight: Tensor, weight_scale: Any, packed_bytes: int, n: int, *how: bool
) -> Tensor:
    return input.new_empty(input.shape[0], n)
