"""The memory of tensors, tensor subclasses included."""

from __future__ import annotations

from torch import Tensor


def tensor_bytes(tensor: Tensor) -> int:
    """The memory of a tensor or, for a tensor subclass, of all the tensors that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(tensor_bytes(getattr(tensor, name)) for name in names)
