"""What torch's functions do with a packed weight above autograd, where gradients are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .gradients import are_asked_for, require_for_weight
from .linear import multiply

_REQUIRE_A_GRADIENT = (torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
#: Of activations and a weight; with a bias in front; whether any number of dimensions will do.
_PRODUCTS: dict[Any, tuple[bool, bool]] = {
    torch.matmul: (False, True),
    torch.Tensor.matmul: (False, True),
    torch.Tensor.__matmul__: (False, True),
    torch.mm: (False, False),
    torch.Tensor.mm: (False, False),
    torch.addmm: (True, False),
    torch.Tensor.addmm: (True, False),
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
    if func in _PRODUCTS and not kwargs:
        return _product_with_gradient(args, held, *_PRODUCTS[func])
    return NotImplemented


def _product_with_gradient(args: tuple[Any, ...], held: Callable[[Any], Any], has_bias: bool, any_rank: bool) -> Any:
    """``x @ w.t()`` as the layer that it is: from torch's own products no gradient comes back through ints."""
    bias: Tensor | None
    bias, input, weight = args if has_bias else (None, *args)
    packed = held(weight)
    if packed is None or not packed.transposed or held(input) is not None or not are_asked_for(input, bias):
        return NotImplemented
    if (not any_rank and input.dim() != 2) or (bias is not None and bias.dim() != 1):
        return NotImplemented
    return multiply(input, packed, bias)
