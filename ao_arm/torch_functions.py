"""What torch's functions do with a packed weight above autograd, where gradients are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .gradients import are_asked_for, require_for_weight
from .linear import multiply

_REQUIRE_A_GRADIENT = (torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
#: Of activations and a weight: the names of the operands; whether any number of dimensions will do.
_PRODUCTS: dict[Any, tuple[tuple[str, ...], bool]] = {
    torch.matmul: (("input", "other"), True),
    torch.Tensor.matmul: (("self", "other"), True),
    torch.Tensor.__matmul__: (("self", "other"), True),
    torch.mm: (("input", "mat2"), False),
    torch.Tensor.mm: (("self", "mat2"), False),
    torch.addmm: (("input", "mat1", "mat2"), False),
    torch.Tensor.addmm: (("self", "mat1", "mat2"), False),
}


def overridden(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, held: Callable[[Any], Any]
) -> Any:
    """What ``func`` gives where it differs from what torch makes of it, else NotImplemented.

    Args:
        func, args, kwargs: of ``__torch_function__``.
        held: the packed weight that an argument is or holds, else None.

    Raises:
        ValueError: if a packed weight is to require a gradient.
    """
    if func in _REQUIRE_A_GRADIENT:
        return require_for_weight(*args, **(kwargs or {}))
    if func in _PRODUCTS:
        return _product_with_gradient(args, kwargs or {}, held, *_PRODUCTS[func])
    return NotImplemented


def _product_with_gradient(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    held: Callable[[Any], Any],
    names: tuple[str, ...],
    any_rank: bool,
) -> Any:
    """``x @ w.t()`` as the layer that it is: from torch's own products no gradient comes back through ints."""
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    scales = given.pop("beta", 1), given.pop("alpha", 1)
    if given.keys() != set(names) or scales != (1, 1):
        return NotImplemented
    bias: Tensor | None
    bias, input, weight = (None, *(given[name] for name in names))[-3:]
    packed = held(weight)
    if packed is None or not packed.transposed or held(input) is not None or not are_asked_for(input, bias):
        return NotImplemented
    if not any_rank and input.dim() != 2:
        return NotImplemented
    if bias is None or bias.dim() == 1:
        return multiply(input, packed, bias)
    return multiply(input, packed, None) + bias
